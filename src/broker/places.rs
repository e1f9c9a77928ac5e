//! Who may have a socket and who a session: the counts, and the register of sessions by client id.
//!
//! Promises: a place is given back when its holder is dropped, however that came; of two connections with one client
//! id, one starts the session and the other is handed to it, never both the one or both the other.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Maps that are whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many sockets there are, by address.
#[derive(Debug, Clone)]
pub(super) struct Places {
    taken: Arc<Mutex<Taken>>,
    total_max: usize,
    each_max: usize,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Places {
    pub(super) fn new(total_max: usize, each_max: usize) -> Places {
        Places { taken: Arc::default(), total_max, each_max }
    }

    /// A place for a socket from `address`; all that comes over loopback is one machine, ours, and has no cap of its
    /// own.
    pub(super) fn take(&self, address: IpAddr) -> Option<Place> {
        let mut taken = lock(&self.taken);
        if taken.total >= self.total_max {
            return None;
        }
        if !address.is_loopback() {
            let count = taken.by_address.entry(address).or_default();
            if *count >= self.each_max {
                return None;
            }
            *count += 1;
        }
        taken.total += 1;
        Some(Place { taken: self.taken.clone(), address })
    }
}

/// A socket's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    taken: Arc<Mutex<Taken>>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.total = taken.total.saturating_sub(1);
        if let Some(count) = taken.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

/// Connections of one client id that wait for its session; more at once are refused.
const WAITING_MAX: usize = 4;

/// The sessions by client id; `A` is a connection that asks for one.
#[derive(Debug)]
pub(super) struct Register<A> {
    sessions: Mutex<HashMap<Arc<str>, mpsc::Sender<A>>>,
    count_max: usize,
}

/// Where a connection goes.
#[derive(Debug)]
pub(super) enum Entry<A> {
    /// To the session that there is.
    Handed,
    /// It starts one; later connections come by the receiver.
    New(A, mpsc::Receiver<A>),
    /// Nowhere: too many sessions, or too many connections of this one at once.
    Refused(A),
}

impl<A> Register<A> {
    pub(super) fn new(count_max: usize) -> Register<A> {
        Register { sessions: Mutex::default(), count_max }
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.sessions).len()
    }

    pub(super) fn contains(&self, client: &str) -> bool {
        lock(&self.sessions).contains_key(client)
    }

    pub(super) fn enter(&self, client: &Arc<str>, attachment: A) -> Entry<A> {
        let mut sessions = lock(&self.sessions);
        let attachment = match sessions.get(client) {
            None => attachment,
            Some(session) => match session.try_send(attachment) {
                Ok(()) => return Entry::Handed,
                Err(mpsc::error::TrySendError::Full(attachment)) => return Entry::Refused(attachment),
                // A session that ended without leaving: its task has panicked.
                Err(mpsc::error::TrySendError::Closed(attachment)) => attachment,
            },
        };
        if sessions.len() >= self.count_max && !sessions.contains_key(client) {
            return Entry::Refused(attachment);
        }
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        sessions.insert(client.clone(), sender);
        Entry::New(attachment, receiver)
    }

    /// Ends a session, unless a connection has just been handed to it: that one is given back, and it goes on.
    pub(super) fn leave(&self, client: &Arc<str>, waiting: &mut mpsc::Receiver<A>) -> Option<A> {
        let mut sessions = lock(&self.sessions);
        if let Ok(attachment) = waiting.try_recv() {
            return Some(attachment);
        }
        sessions.remove(client);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_address_and_given_back() {
        let places = Places::new(3, 2);
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let first = places.take(address).unwrap();
        let _second = places.take(address).unwrap();
        assert!(places.take(address).is_none());
        drop(first);
        let _third = places.take(address).unwrap();
        let _local = places.take("127.0.0.1".parse().unwrap()).unwrap();
        assert!(places.take("127.0.0.1".parse().unwrap()).is_none(), "the total holds for all");
    }

    #[test]
    fn the_second_connection_of_a_client_is_handed_to_its_session() {
        let register = Register::new(1);
        let client: Arc<str> = Arc::from("a");
        let Entry::New(1, mut waiting) = register.enter(&client, 1) else { panic!() };
        assert!(matches!(register.enter(&client, 2), Entry::Handed));
        assert!(matches!(register.enter(&Arc::from("b"), 3), Entry::Refused(3)));
        assert_eq!(register.leave(&client, &mut waiting), Some(2), "it cannot leave with a connection waiting");
        assert_eq!(register.leave(&client, &mut waiting), None);
        assert!(matches!(register.enter(&client, 4), Entry::New(4, _)));
    }
}
