//! A session that outlives its socket, as its actor sees it: what the queue keeps of it, asked for and told.
//!
//! Promises: nothing of it is told to the client before the queue has committed it; what could not be committed ends the
//! connection, so that the client comes back and hears what holds; never more is taken from the store than a window's
//! worth within a bound of bytes, however slowly the client reads.

use std::sync::Arc;
use std::time::Duration;

use log::warn;
use tokio::time::Instant;

use super::Services;
use super::inbound::{Begun, Running};
use super::outbound::{Delivery, Outbound, Stored};
use crate::message::{Body, Filter, Stamp};
use crate::mqtt::{PacketId, Suback, Unsuback};
use crate::queue::sessions::{Parcel, Parcels, Retained, SessionOutlet, Settling, Subscribed};
use crate::queue::{AppendError, SessionNumber};

/// Bytes that are asked for at once.
const FETCH_BYTES: usize = 64 * 1024;

type Asked<T> = Running<Result<T, AppendError>>;

/// What is under way between a session and the queue.
pub(super) struct Durable {
    outlet: SessionOutlet,
    /// After which to go on.
    place: (u64, u32),
    /// The last answer had all that there was.
    is_dry: bool,
    fetching: Option<(Vec<PacketId>, Asked<Parcels>)>,
    settling: Option<(Told, Asked<()>)>,
    pending: Vec<Settling>,
}

/// Packet ids that wait for the queue.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Their PUBRELs may leave then.
    pub received: Vec<PacketId>,
    /// They may be used again then.
    pub completed: Vec<PacketId>,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Progress {
    /// Copies, and the packet ids that were offered for them.
    Fetched(Vec<PacketId>, Result<Parcels, AppendError>),
    /// The queue has heard of them.
    Settled(Told, Result<(), AppendError>),
    /// Something new waits.
    Woken,
}

impl Durable {
    pub(super) fn new(outlet: SessionOutlet) -> Durable {
        Durable { outlet, place: (0, 0), is_dry: false, fetching: None, settling: None, pending: Vec::new() }
    }

    pub(super) fn number(&self) -> SessionNumber {
        self.outlet.number()
    }

    /// Whether the queue knows all that has become of what it gave.
    pub(super) fn is_idle(&self) -> bool {
        self.fetching.is_none() && self.settling.is_none() && self.pending.is_empty()
    }

    /// Tells the queue what has become of copies, and, while a client is there, asks for more, for a window of so many.
    pub(super) fn go_on(&mut self, outbound: &mut Outbound, window: Option<usize>, bytes_max: usize) {
        self.pending.extend(outbound.take_settled());
        if self.settling.is_none() && !self.pending.is_empty() {
            let changes = std::mem::take(&mut self.pending);
            let mut told = Told::default();
            for change in &changes {
                match change {
                    Settling::Received { packet_id } => told.received.extend(PacketId::new(*packet_id)),
                    Settling::Completed { packet_id } => told.completed.extend(PacketId::new(*packet_id)),
                    Settling::Delivered { .. } | Settling::Lost { .. } => {}
                }
            }
            self.settling = Some((told, Box::pin(self.outlet.settle(changes))));
        }
        let Some(window) = window.filter(|_| self.fetching.is_none() && !self.is_dry) else { return };
        let room = outbound.room(window, bytes_max);
        // Not for each acknowledgement anew.
        if room > 0 && room >= window / 4 {
            let ids = outbound.reserve(room);
            let numbers = ids.iter().map(|packet_id| packet_id.get()).collect();
            self.fetching = Some((ids, Box::pin(self.outlet.fetch(self.place, numbers, room, FETCH_BYTES))));
        }
    }

    /// The next thing that comes of it. Cancel safe.
    pub(super) async fn progress(&mut self) -> Progress {
        let Durable { outlet, is_dry, fetching, settling, .. } = self;
        let fetched = async {
            match fetching {
                Some((_, future)) => future.await,
                None => std::future::pending().await,
            }
        };
        let settled = async {
            match settling {
                Some((_, future)) => future.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = settled => {
                let told = settling.take().map(|(told, _)| told).unwrap_or_default();
                Progress::Settled(told, result)
            }
            result = fetched => {
                let ids = fetching.take().map(|(ids, _)| ids).unwrap_or_default();
                Progress::Fetched(ids, result)
            }
            () = outlet.wait(), if *is_dry => {
                *is_dry = false;
                Progress::Woken
            }
        }
    }

    /// Takes what came.
    pub(super) fn take(&mut self, outbound: &mut Outbound, ids: &[PacketId], parcels: Parcels, now: Stamp) {
        (self.place, self.is_dry) = (parcels.place, !parcels.is_more);
        let used: Vec<u16> = parcels.rows.iter().filter_map(|parcel| parcel.packet_id).collect();
        let unused: Vec<PacketId> = ids.iter().copied().filter(|id| !used.contains(&id.get())).collect();
        outbound.give_back(&unused);
        for parcel in parcels.rows {
            if let Some(delivery) = delivery(parcel, now) {
                outbound.push(delivery);
            }
        }
    }
}

/// A copy as it leaves. Readings were stored as such only for uplinks: `None` for those is never seen.
pub(super) fn delivery(parcel: Parcel, now: Stamp) -> Option<Delivery> {
    let Parcel { lane, sequence, bytes, qos, retain, identifier, message, packet_id, expires_mono_ms } = parcel;
    let Body::Bytes(payload) = message.body else { return None };
    let left = |expires_ms: u64| Duration::from_millis(expires_ms.saturating_sub(now.mono_ms));
    Some(Delivery {
        topic: message.topic,
        qos,
        retain,
        payload,
        properties: message.properties,
        subscription_id: identifier,
        expires: expires_mono_ms.map(|expires_ms| Instant::now() + left(expires_ms)),
        stored: Some(Stored { lane, sequence, bytes, packet_id: packet_id.and_then(PacketId::new) }),
    })
}

/// Adds subscriptions to the session in the store, behind which their SUBACK and their retained messages follow.
pub(super) async fn subscribe(
    services: Arc<Services>,
    number: SessionNumber,
    client: Arc<str>,
    asked: Vec<(Subscribed, Retained)>,
    suback: Suback,
) -> Begun {
    match services.inlet.subscribe_session(number, &client, asked, services.limits.retained_messages).await {
        Ok(found) => Begun::Retained { suback, found },
        Err(error) => {
            warn!(session = number.0, error:% = error; "Subscriptions could not be kept");
            Begun::Failed
        }
    }
}

/// Takes subscriptions from the session in the store, behind which their UNSUBACK follows.
pub(super) async fn unsubscribe(
    services: Arc<Services>,
    number: SessionNumber,
    filters: Vec<Filter>,
    unsuback: Unsuback,
) -> Begun {
    match services.inlet.unsubscribe_session(number, filters).await {
        Ok(()) => Begun::Unsubscribed { unsuback },
        Err(error) => {
            warn!(session = number.0, error:% = error; "Subscriptions could not be forgotten");
            Begun::Failed
        }
    }
}
