//! From an accepted socket to a session: the handshakes, the CONNECT and its answer.
//!
//! Promises: a socket that does not send a whole CONNECT in time, or sends anything else, costs one place and a few
//! kilobytes until then; who is refused is told why, in its own version, before the socket is closed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use log::debug;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::Services;
use super::door::Caller;
use super::places::{Crowded, Entry, Place};
use super::session::{Attachment, Session};
use super::socket::{Socket, Turn};
use crate::message::is_reserved;
use crate::mqtt::{Connack, Connect, DecodeError, Packet, ReasonCode, Version};
use crate::transport::HandshakeFault;

/// Serves one socket: its CONNECT, and then its session, where it is the one that starts it.
///
/// What is over when the session begins is boxed: the task of an idle client would keep the room for it.
pub(super) fn serve(
    caller: Caller,
    place: Place,
    crowded: Option<Crowded>,
    services: Arc<Services>,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send {
    let entering = Box::pin(enter(caller, place, crowded, services, stop.clone()));
    async move {
        if let Some((session, first)) = entering.await {
            session.run(first, stop).await;
        }
    }
}

/// From the socket to a session that it starts; `None` where there is nothing more to do for it.
async fn enter(
    caller: Caller,
    place: Place,
    crowded: Option<Crowded>,
    services: Arc<Services>,
    stop: CancellationToken,
) -> Option<(Box<Session>, Box<Attachment>)> {
    let (address, door) = (caller.address, caller.door.clone());
    let refused = |reason| services.note_refusal(&door.name, &address, reason);
    let stay = services.doorway.enter();
    let arrived = tokio::select! {
        arrived = arrive(caller, place, &services) => arrived,
        () = stay.pushed_out() => {
            refused(PUSHED_OUT);
            return None;
        }
        () = stop.cancelled() => return None,
    };
    drop(stay);
    let (socket, connect) = match arrived {
        Ok(arrived) => arrived,
        Err(Absence::Noted(reason)) => {
            refused(reason);
            return None;
        }
        Err(Absence::Gone) => return None,
        Err(Absence::Wrong(mut socket, error)) => {
            services.note_protocol_error(&address.to_string(), error.reason, &error.what);
            if let Some((version, packet)) = error.answer() {
                say(&mut socket, version, &packet);
            }
            services.see_off(*socket);
            return None;
        }
    };
    if let Some(crowded) = crowded {
        refused(crowded.words());
        refuse(socket, connect.version, too_many(connect.version), &services);
        return None;
    }
    if let Err(reason) = check(&connect, &services) {
        services.health.sessions().protocol_errors.fetch_add(1, Ordering::Relaxed);
        refuse(socket, connect.version, reason, &services);
        return None;
    }
    let is_assigned = connect.client_id.is_empty();
    let client: Arc<str> = match is_assigned {
        false => Arc::from(connect.client_id.as_str()),
        true => match assigned_id(&services) {
            Some(client) => client,
            None => {
                refuse(socket, connect.version, ReasonCode::SERVER_UNAVAILABLE, &services);
                return None;
            }
        },
    };
    let admitted = tokio::select! {
        admitted = services.access.admit(socket.peer(), &connect, &client) => admitted,
        () = stop.cancelled() => return None,
    };
    let identity = match admitted {
        Ok(identity) => identity,
        Err(refused) => {
            let reason = refused.reason(connect.version);
            refuse(socket, connect.version, reason, &services);
            return None;
        }
    };
    let attachment = Box::new(Attachment { socket, connect, identity: identity.clone(), is_assigned });
    match services.register.enter(&client, attachment) {
        Entry::Handed => None,
        Entry::Refused(attachment) => {
            let Attachment { socket, connect, .. } = *attachment;
            refuse(socket, connect.version, too_many(connect.version), &services);
            None
        }
        Entry::New(attachment, mut waiting) => match services.router.attach().await {
            Ok(link) => Some((Box::new(Session::new(client, services, waiting, identity, link)), attachment)),
            Err(error) => {
                debug!(client = client.as_ref(), error:% = error; "A session could not be started");
                let mut refused = Some(attachment);
                while let Some(attachment) = refused {
                    let Attachment { socket, connect, .. } = *attachment;
                    refuse(socket, connect.version, too_many(connect.version), &services);
                    refused = services.register.leave(&client, &mut waiting);
                }
                None
            }
        },
    }
}

/// Why there is no CONNECT.
enum Absence {
    /// Nobody was let in, and somebody should know why.
    Noted(&'static str),
    /// It went away.
    Gone,
    /// What came is none.
    Wrong(Box<Socket>, DecodeError),
}

const PUSHED_OUT: &str = "too many connections have not sent their CONNECT (broker.limits.handshakes)";
const SLOW_HANDSHAKE: &str = "it did not finish the handshake in time (broker.limits.handshake_time)";
const SLOW_CONNECT: &str = "it did not send its CONNECT in time (broker.limits.connect_time)";

/// A frame of a WebSocket may hold a packet of full length and some short ones.
const SHARED_FRAME_BYTES: usize = 64 * 1024;

/// What comes before a session, each part within its time.
async fn arrive(caller: Caller, place: Place, services: &Services) -> Result<(Socket, Box<Connect>), Absence> {
    let (limits, door) = (&services.limits, caller.door.clone());
    let come_in = time::timeout(limits.handshake_timeout, caller.come_in(limits.packet_bytes + SHARED_FRAME_BYTES));
    let (stream, peer) = match come_in.await {
        Ok(Ok(come)) => come,
        Ok(Err(HandshakeFault::BrokeOff)) => return Err(Absence::Gone),
        Ok(Err(fault)) => return Err(Absence::Noted(fault.words())),
        Err(_) => return Err(Absence::Noted(SLOW_HANDSHAKE)),
    };
    let mut socket = Socket::new(stream, Arc::new(peer), limits, place, door);
    match time::timeout(limits.connect_timeout, connect(&mut socket)).await {
        Ok(Ok(Some(connect))) => Ok((socket, connect)),
        Ok(Ok(None)) => Err(Absence::Gone),
        Ok(Err(error)) => Err(Absence::Wrong(Box::new(socket), error)),
        Err(_) => Err(Absence::Noted(SLOW_CONNECT)),
    }
}

async fn connect(socket: &mut Socket) -> Result<Option<Box<Connect>>, DecodeError> {
    loop {
        match socket.decode()? {
            Some(Packet::Connect(connect)) => return Ok(Some(connect)),
            // The decoder takes nothing else first.
            Some(_) => return Ok(None),
            None => {}
        }
        if socket.turn(true).await == Turn::Ended {
            return Ok(None);
        }
    }
}

fn check(connect: &Connect, services: &Services) -> Result<(), ReasonCode> {
    if connect.auth_method.is_some() {
        return Err(ReasonCode::BAD_AUTHENTICATION_METHOD);
    }
    let is_nameless = connect.client_id.is_empty() && connect.version == Version::V311 && !connect.clean_start;
    if is_nameless || connect.client_id.len() > services.limits.client_id_bytes {
        return Err(ReasonCode::CLIENT_IDENTIFIER_NOT_VALID);
    }
    match &connect.will {
        Some(will) if is_reserved(will.topic.as_str()) || !services.limits.takes_topic(will.topic.as_str()) => {
            Err(match connect.version {
                Version::V5 => ReasonCode::TOPIC_NAME_INVALID,
                Version::V311 => ReasonCode::NOT_AUTHORIZED,
            })
        }
        _ => Ok(()),
    }
}

fn assigned_id(services: &Services) -> Option<Arc<str>> {
    let mut bytes = [0; 8];
    // Without random numbers there is no id that nobody else has.
    getrandom::fill(&mut bytes).ok()?;
    let client: Arc<str> = Arc::from(format!("auto-{:016x}", u64::from_be_bytes(bytes)));
    (!services.register.contains(&client)).then_some(client)
}

pub(super) fn too_many(version: Version) -> ReasonCode {
    match version {
        Version::V5 => ReasonCode::QUOTA_EXCEEDED,
        Version::V311 => ReasonCode::SERVER_UNAVAILABLE,
    }
}

pub(super) fn refuse(mut socket: Socket, version: Version, reason: ReasonCode, services: &Services) {
    say(&mut socket, version, &Packet::Connack(Box::new(Connack::new(reason))));
    services.see_off(socket);
}

fn say(socket: &mut Socket, version: Version, packet: &Packet) {
    if let Err(error) = socket.send_as(version, packet) {
        debug!(error:% = error; "A refusal could not be written");
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<A, B, C, D, E, F>(_: impl FnOnce(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_task_of_a_connection_stays_small() {
        let (task, session) = (bytes(serve), size_of::<Session>());
        assert!(task + session < 4500, "every idle client costs {task} bytes of its task and {session} of its session");
    }
}
