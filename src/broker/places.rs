//! Who may have a socket and who a session: the counts, and the register of sessions by client id.
//!
//! Promises: a place is given back when its holder is dropped, however that came; of two connections with one client
//! id, one starts the session and the other is handed to it, never both the one or both the other.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

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

    /// A place for a socket from `address`; all that comes over loopback or without an address is one machine, ours,
    /// and has no cap of its own.
    pub(super) fn take(&self, address: Option<IpAddr>) -> Result<Place, Crowded> {
        let mut taken = lock(&self.taken);
        if taken.total >= self.total_max {
            return Err(Crowded::All);
        }
        let address = address.filter(|address| !address.is_loopback());
        if let Some(address) = address {
            let count = taken.by_address.entry(address).or_default();
            if *count >= self.each_max {
                return Err(Crowded::Address);
            }
            *count += 1;
        }
        taken.total += 1;
        Ok(Place { taken: self.taken.clone(), address })
    }
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crowded {
    /// Too many sockets.
    All,
    /// Too many from this address.
    Address,
}

impl Crowded {
    pub(super) fn words(self) -> &'static str {
        match self {
            Crowded::All => "there are too many connections (broker.limits.connections)",
            Crowded::Address => {
                "there are too many connections from its address (broker.limits.connections_per_address)"
            }
        }
    }
}

/// A socket's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    taken: Arc<Mutex<Taken>>,
    /// Where it counts.
    address: Option<IpAddr>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.total = taken.total.saturating_sub(1);
        let Some(address) = &self.address else { return };
        if let Some(count) = taken.by_address.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                taken.by_address.remove(address);
            }
        }
    }
}

/// Those that have come in and not said who they are. There are never more than so many: the one that has taken
/// longest gives way to the next, so that silent ones cannot keep out those that speak.
#[derive(Debug, Clone)]
pub(super) struct Doorway {
    inside: Arc<Mutex<Inside>>,
    count_max: usize,
}

#[derive(Debug, Default)]
struct Inside {
    /// In the order in which they came.
    waiting: VecDeque<(u64, CancellationToken)>,
    next: u64,
}

impl Doorway {
    pub(super) fn new(count_max: usize) -> Doorway {
        Doorway { inside: Arc::default(), count_max }
    }

    pub(super) fn enter(&self) -> Stay {
        let mut inside = lock(&self.inside);
        while inside.waiting.len() >= self.count_max.max(1) {
            if let Some((_, pushed_out)) = inside.waiting.pop_front() {
                pushed_out.cancel();
            }
        }
        let number = inside.next;
        inside.next += 1;
        let pushed_out = CancellationToken::new();
        inside.waiting.push_back((number, pushed_out.clone()));
        Stay { inside: self.inside.clone(), number, pushed_out }
    }
}

/// One that has come in; dropped when it has said who it is, or is gone.
#[derive(Debug)]
pub(super) struct Stay {
    inside: Arc<Mutex<Inside>>,
    number: u64,
    pushed_out: CancellationToken,
}

impl Stay {
    /// Waits until it has to give way.
    pub(super) async fn pushed_out(&self) {
        self.pushed_out.cancelled().await;
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let mut inside = lock(&self.inside);
        if let Ok(at) = inside.waiting.binary_search_by_key(&self.number, |(number, _)| *number) {
            inside.waiting.remove(at);
        }
    }
}

/// Connections of one client id that wait for its session; more at once are refused.
const WAITING_MAX: usize = 4;

/// The sessions by client id; `A` is a connection that asks for one.
#[derive(Debug)]
pub(super) struct Register<A> {
    sessions: Mutex<HashMap<Arc<str>, Arc<Letterbox<A>>>>,
    count_max: usize,
}

/// What waits for one session. A channel of tokio's takes 800 bytes for each that has never had a second connection.
#[derive(Debug)]
struct Letterbox<A> {
    letters: Mutex<Letters<A>>,
    stirred: Notify,
}

#[derive(Debug)]
struct Letters<A> {
    waiting: VecDeque<A>,
    /// Nobody will ever look.
    is_abandoned: bool,
}

/// The session's end of it.
#[derive(Debug)]
pub(super) struct Post<A>(Arc<Letterbox<A>>);

impl<A> Post<A> {
    fn take(&mut self) -> Option<A> {
        lock(&self.0.letters).waiting.pop_front()
    }

    /// Waits for the next connection. Cancel safe.
    pub(super) async fn next(&mut self) -> A {
        loop {
            if let Some(attachment) = self.take() {
                return attachment;
            }
            // What came since is remembered there.
            self.0.stirred.notified().await;
        }
    }
}

impl<A> Drop for Post<A> {
    fn drop(&mut self) {
        let mut letters = lock(&self.0.letters);
        letters.is_abandoned = true;
        letters.waiting.clear();
    }
}

/// Where a connection goes.
#[derive(Debug)]
pub(super) enum Entry<A> {
    /// To the session that there is.
    Handed,
    /// It starts one; later connections come by the post.
    New(A, Post<A>),
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
            Some(session) => {
                let mut letters = lock(&session.letters);
                match letters.is_abandoned {
                    // A session that ended without leaving: its task has panicked.
                    true => attachment,
                    false if letters.waiting.len() >= WAITING_MAX => return Entry::Refused(attachment),
                    false => {
                        letters.waiting.push_back(attachment);
                        session.stirred.notify_one();
                        return Entry::Handed;
                    }
                }
            }
        };
        if sessions.len() >= self.count_max && !sessions.contains_key(client) {
            return Entry::Refused(attachment);
        }
        let letters = Mutex::new(Letters { waiting: VecDeque::new(), is_abandoned: false });
        let letterbox = Arc::new(Letterbox { letters, stirred: Notify::new() });
        sessions.insert(client.clone(), letterbox.clone());
        Entry::New(attachment, Post(letterbox))
    }

    /// Ends a session, unless a connection has just been handed to it: that one is given back, and it goes on.
    pub(super) fn leave(&self, client: &Arc<str>, waiting: &mut Post<A>) -> Option<A> {
        let mut sessions = lock(&self.sessions);
        if let Some(attachment) = waiting.take() {
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
        let address = Some("192.0.2.1".parse().unwrap());
        let first = places.take(address).unwrap();
        let _second = places.take(address).unwrap();
        assert_eq!(places.take(address).unwrap_err(), Crowded::Address);
        drop(first);
        let _third = places.take(address).unwrap();
        let _local = places.take(Some("127.0.0.1".parse().unwrap())).unwrap();
        assert_eq!(places.take(None).unwrap_err(), Crowded::All, "the total holds for all");
    }

    #[test]
    fn a_full_doorway_pushes_out_whoever_has_taken_longest() {
        let doorway = Doorway::new(2);
        let is_out = |stay: &Stay| stay.pushed_out.is_cancelled();
        let (first, second) = (doorway.enter(), doorway.enter());
        assert!(!is_out(&first));
        let third = doorway.enter();
        assert!(is_out(&first) && !is_out(&second) && !is_out(&third));
        drop(second);
        let fourth = doorway.enter();
        assert!(!is_out(&third), "who has left makes room");
        drop((first, third, fourth));
        assert!(lock(&doorway.inside).waiting.is_empty());
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
        // That one's end was dropped with it, as by a panic.
        let Entry::New(5, _waiting) = register.enter(&client, 5) else { panic!("it is handed to nobody") };
        for number in 0..WAITING_MAX {
            assert!(matches!(register.enter(&client, number), Entry::Handed));
        }
        assert!(matches!(register.enter(&client, 9), Entry::Refused(9)), "the bound");
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_hears_of_a_connection_that_came_before_it_asked_and_while_it_waits() {
        let register = Register::new(1);
        let client: Arc<str> = Arc::from("a");
        let Entry::New(1, mut post) = register.enter(&client, 1) else { panic!() };
        register.enter(&client, 2);
        assert_eq!(post.next().await, 2);
        let (heard, _) = tokio::join!(post.next(), async {
            tokio::task::yield_now().await;
            register.enter(&client, 3)
        });
        assert_eq!(heard, 3);
    }
}
