//! From an accepted socket to a session: the CONNECT and its answer.
//!
//! Promises: a socket that does not send a whole CONNECT in time, or sends anything else, costs one place and a few
//! kilobytes until then; who is refused is told why, in its own version, before the socket is closed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use log::debug;
use tokio::net::TcpStream;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::places::{Entry, Place};
use super::session::{Attachment, Session};
use super::socket::{Socket, Turn};
use super::{Services, is_reserved};
use crate::mqtt::{Connack, Connect, DecodeError, Packet, ReasonCode, Version};

/// Serves one socket: its CONNECT, and then its session, where it is the one that starts it.
pub(super) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
    services: Arc<Services>,
    stop: CancellationToken,
) {
    // Small answers must not wait for more of them; a socket where that cannot be set works all the same.
    let _slower = stream.set_nodelay(true);
    let mut socket = Socket::new(stream, peer, services.limits.connect_bytes, place);
    let arrived = tokio::select! {
        arrived = time::timeout(services.limits.connect_timeout, connect(&mut socket)) => arrived,
        () = stop.cancelled() => return,
    };
    let connect = match arrived {
        Ok(Ok(Some(connect))) => connect,
        Ok(Ok(None)) | Err(_) => return,
        Ok(Err(error)) => {
            services.note_protocol_error(&peer.to_string(), error.reason, &error.what);
            if let Some((version, packet)) = error.answer() {
                say(&mut socket, version, &packet);
            }
            return services.see_off(socket);
        }
    };
    if let Err(reason) = check(&connect, &services) {
        services.health.sessions().protocol_errors.fetch_add(1, Ordering::Relaxed);
        return refuse(socket, connect.version, reason, &services);
    }
    let is_assigned = connect.client_id.is_empty();
    let client: Arc<str> = match is_assigned {
        false => Arc::from(connect.client_id.as_str()),
        true => match assigned_id(&services) {
            Some(client) => client,
            None => return refuse(socket, connect.version, ReasonCode::SERVER_UNAVAILABLE, &services),
        },
    };
    let attachment = Attachment { socket, connect, is_assigned };
    match services.register.enter(&client, attachment) {
        Entry::Handed => {}
        Entry::Refused(attachment) => {
            let Attachment { socket, connect, .. } = attachment;
            refuse(socket, connect.version, too_many(connect.version), &services);
        }
        Entry::New(attachment, mut waiting) => match services.router.attach().await {
            Ok(link) => Session::new(client, services, waiting, link).run(attachment, stop).await,
            Err(error) => {
                debug!(client = client.as_ref(), error:% = error; "A session could not be started");
                let mut refused = Some(attachment);
                while let Some(Attachment { socket, connect, .. }) = refused {
                    refuse(socket, connect.version, too_many(connect.version), &services);
                    refused = services.register.leave(&client, &mut waiting);
                }
            }
        },
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
        Some(will) if is_reserved(&will.topic) => Err(match connect.version {
            Version::V5 => ReasonCode::TOPIC_NAME_INVALID,
            Version::V311 => ReasonCode::NOT_AUTHORIZED,
        }),
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
