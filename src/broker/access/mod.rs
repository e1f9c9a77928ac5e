//! Who may do what: the door that asks for a name and its proof, and the lists of topics behind it.
//!
//! Promises: no message and no socket waits for somebody else's password: hashes are worked out one at a time beside the data
//! path, as many as wait at most, and each password once in the life of the process; guessing is slow; a change of the
//! configuration is in force for whoever is connected already; what is refused is told once, with the reason.
//!
//! The decisions are in pure files: `users` (who is this), `acl` (what may he do), `hashes` (is it his password), `tokens` (is it his token, and
//! until when), `throttle`
//! (how often may one guess), `known` (whose password was right), `told` (which refusals are told).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::{info, warn};
use tokio::sync::{Semaphore, watch};
use tokio::time::{self, Instant};

pub(super) use acl::{Reach, Rights};
pub(super) use users::Identity;

use super::peer::{Peer, PeerAddress};
use crate::clock::Clock;
use crate::config::{AccessConfig, PasswordHash};
use crate::health::Health;
use crate::message::ClockState;
use crate::mqtt::{Connect, ReasonCode, Version};
use known::Known;
use throttle::Throttle;
use tokens::{Moment, TokenFault};
use told::{Telling, Told};
use users::{Book, Claim, Proof};

mod users;

mod acl;

mod hashes;

mod tokens;

mod throttle;

mod known;

mod told;

/// Clients that wait for their passwords to be compared, in all and from one other machine.
const WAITING_MAX: usize = 256;
const WAITING_OF_ONE_MAX: usize = 64;
/// How long one waits for its turn.
const TURN_PATIENCE: Duration = Duration::from_secs(30);
/// Of what a client sent, so much is remembered of a refusal.
const TOLD_CHARACTERS: usize = 128;
/// Whoever shows a token is looked at again when it ends, and at least this often: the clock may get to be known, or be set.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const LOOK_MIN: Duration = Duration::from_millis(10);
/// While the time is not known: it may be at any moment.
const LOOK_UNSURE: Duration = Duration::from_secs(2);
/// Under which name bad tokens count that come without one.
const NAMELESS: &str = "";

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// He gave no name.
    Nameless,
    /// He gave a name and nothing that shows that it is his, or something wrong. Which of them he is not told.
    Unproven,
    /// He has guessed too often.
    TooOften,
    /// Too many wait for their passwords to be compared.
    Busy,
    /// His token opens nothing.
    Token(TokenFault),
    /// His will is for a topic that he may not publish to.
    Will,
}

impl Refused {
    /// What his CONNACK says.
    pub(super) fn reason(self, version: Version) -> ReasonCode {
        match (self, version) {
            (Refused::Nameless | Refused::Will, _) => ReasonCode::NOT_AUTHORIZED,
            (Refused::Token(TokenFault::NoClock), _) => ReasonCode::SERVER_UNAVAILABLE,
            (Refused::Unproven | Refused::Token(_), _) => ReasonCode::BAD_USER_NAME_OR_PASSWORD,
            (Refused::TooOften, Version::V5) => ReasonCode::CONNECTION_RATE_EXCEEDED,
            (Refused::Busy, Version::V5) => ReasonCode::SERVER_BUSY,
            (Refused::TooOften | Refused::Busy, Version::V311) => ReasonCode::SERVER_UNAVAILABLE,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Refused::Nameless => "it gave no user name, and one is needed here",
            Refused::Unproven => "user name, password or certificate is wrong",
            Refused::TooOften => "too many wrong passwords; it is let wait",
            Refused::Busy => "too many passwords wait to be compared",
            Refused::Token(fault) => fault.words(),
            Refused::Will => "its will is for a topic that it may not publish to",
        }
    }
}

/// Why `Access::log_in` lets somebody not in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotLetIn {
    /// Name or password is wrong.
    Wrong,
    /// Too many were wrong, or too many wait: later.
    ForNow,
}

/// What a client did that it may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    Publish,
    Subscribe,
    Will,
}

impl Deed {
    fn words(self) -> &'static str {
        match self {
            Deed::Publish => "publish to",
            Deed::Subscribe => "subscribe to",
            Deed::Will => "leave a will on",
        }
    }
}

/// Who may do what. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Access(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    book: watch::Sender<Arc<Book>>,
    known: Mutex<Known>,
    throttle: Mutex<Throttle>,
    /// One hash at a time.
    turn: Semaphore,
    waiting: Mutex<Waiting>,
    told: Mutex<Told>,
    /// What the throttle counts from.
    since: Instant,
    health: Health,
    clock: Clock,
}

/// What becomes of somebody who has shown a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Term {
    /// He may stay, and is to be looked at again after this time.
    Stays(Duration),
    /// He may not, and is told this.
    Over(ReasonCode),
}

/// Clients whose passwords wait, by address.
#[derive(Debug, Default)]
struct Waiting {
    count: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A place among them; given back when dropped.
struct Seat<'s> {
    waiting: &'s Mutex<Waiting>,
    address: Option<IpAddr>,
}

/// Tells a session that its rights may be others.
#[derive(Debug)]
pub(super) struct Changes(watch::Receiver<Arc<Book>>);

impl Changes {
    /// Whether there was one since the last that was waited for or asked for.
    pub(super) fn are_there(&mut self) -> bool {
        let are_there = self.0.has_changed().unwrap_or(false);
        if are_there {
            self.0.mark_unchanged();
        }
        are_there
    }

    /// Waits for the next change. Cancel safe.
    pub(super) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            // Who tells of changes is gone, and everything with it.
            std::future::pending().await
        }
    }
}

impl Access {
    /// As the configuration says.
    pub fn new(config: &AccessConfig, health: Health, clock: Clock) -> Access {
        Access(Arc::new(Shared {
            book: watch::Sender::new(Arc::new(Book::new(config.clone()))),
            known: Mutex::new(Known::new()),
            throttle: Mutex::default(),
            turn: Semaphore::new(1),
            waiting: Mutex::default(),
            told: Mutex::default(),
            since: Instant::now(),
            health,
            clock,
        }))
    }

    /// Another configuration: in force for whoever connects, and for each message of whoever is connected. Who cannot log in
    /// any more with what he showed is disconnected.
    pub fn change(&self, config: &AccessConfig) {
        let book = Book::new(config.clone());
        lock(&self.0.known).keep(|user| book.has_user(user));
        lock(&self.0.told).forget();
        self.0.book.send_replace(Arc::new(book));
    }

    /// Lets everybody who is connected look whether he may stay.
    pub(super) fn call_all(&self) {
        self.0.book.send_modify(|_| {});
    }

    pub(super) fn changes(&self) -> Changes {
        Changes(self.0.book.subscribe())
    }

    fn book(&self) -> Arc<Book> {
        self.0.book.borrow().clone()
    }

    /// What somebody may do under a client id.
    pub(super) fn rights(&self, identity: &Identity, client_id: &str) -> Rights {
        self.book().rights(identity, client_id)
    }

    /// Whether what he showed when he connected would let him in today.
    pub(super) fn vouches_for(&self, identity: &Identity) -> bool {
        self.book().vouches_for(identity)
    }

    /// Until when somebody may stay; `None` where what he showed has no end.
    pub(super) fn term(&self, identity: &Identity) -> Option<Term> {
        let Proof::Token(shown) = &identity.proof else { return None };
        let book = self.book();
        // Without tokens he is not vouched for any more, which is another's affair.
        let left = shown.left_ms(book.tokens()?, self.moment());
        Some(match left {
            Ok(Some(left_ms)) => Term::Stays(Duration::from_millis(left_ms).clamp(LOOK_MIN, LOOK_EVERY)),
            Ok(None) => Term::Stays(LOOK_UNSURE),
            Err(TokenFault::Ended) => Term::Over(ReasonCode::MAXIMUM_CONNECT_TIME),
            Err(_) => Term::Over(ReasonCode::NOT_AUTHORIZED),
        })
    }

    /// Between which times this moment lies, as far as this board knows.
    fn moment(&self) -> Moment {
        let now = self.0.clock.now();
        match now.clock {
            ClockState::Synced => Moment { earliest_ms: now.wall_ms, latest_ms: Some(now.wall_ms) },
            ClockState::Holdover { error_ms } => {
                let error_ms = i64::from(error_ms);
                let latest_ms = Some(now.wall_ms.saturating_add(error_ms));
                Moment { earliest_ms: now.wall_ms.saturating_sub(error_ms), latest_ms }
            }
            ClockState::Unset => Moment { earliest_ms: self.0.clock.passed_ms(now.mono_ms), latest_ms: None },
        }
    }

    /// Whether there is a user of this name: his sessions are his. Those of nobody are anybody's.
    pub(super) fn has_user(&self, name: &str) -> bool {
        self.book().has_user(name)
    }

    /// Who is at the door, and whether he may come in under a client id. Takes as long as it takes to compare a password.
    ///
    /// # Errors
    /// When he is not let in; that was told and counted.
    pub(super) async fn admit(&self, peer: &Peer, connect: &Connect, client_id: &str) -> Result<Identity, Refused> {
        let name = connect.username.as_deref();
        let admitted = match self.identify(peer, name, connect.password.as_deref()).await {
            Ok(identity) => match &connect.will {
                Some(will) if !self.rights(&identity, client_id).may_publish(&will.topic) => {
                    self.note(client_id, &identity.user, Deed::Will, will.topic.as_str());
                    self.0.health.sessions().refused_logins.fetch_add(1, Ordering::Relaxed);
                    return Err(Refused::Will);
                }
                _ => Ok(identity),
            },
            Err(refused) => Err(refused),
        };
        if let Err(refused) = admitted {
            self.0.health.sessions().refused_logins.fetch_add(1, Ordering::Relaxed);
            let address = peer.ip().map_or_else(|| "this machine".to_owned(), |address| address.to_string());
            let telling = lock(&self.0.told).note(&address, &format!("{} {refused:?}", clip(name.unwrap_or_default())));
            if telling != Telling::Not {
                warn!(client = clip(client_id).as_str(), peer:% = peer, listener = peer.listener.as_ref(),
                      user = clip(name.unwrap_or_default()).as_str(), reason = refused.words();
                      "A client is not let in; it is told once");
                let (client, user) = (clip(client_id), clip(name.unwrap_or_default()));
                let text = format!("client {client:?} from {address}, user {user:?}: {}", refused.words());
                self.0.health.sessions().note_refusal(&text);
            }
            self.say_last(telling, &address);
        }
        admitted
    }

    /// Whether somebody at another door than the broker's, where only names and passwords count, is who he says: compared
    /// and slowed in the same way, beside whoever logs in there.
    ///
    /// # Errors
    /// When he is not let in; that was told.
    pub async fn log_in(&self, door: &str, from: SocketAddr, name: &str, password: &[u8]) -> Result<(), NotLetIn> {
        let peer = Peer {
            address: PeerAddress::Network(from),
            listener: Arc::from(door),
            is_encrypted: false,
            certificate: None,
        };
        let refused = match self.identify(&peer, Some(name), Some(password)).await {
            Ok(_) => return Ok(()),
            Err(refused) => refused,
        };
        let address = peer.address.to_string();
        let whose = peer.ip().map_or_else(String::new, |address| address.to_string());
        let telling = lock(&self.0.told).note(&whose, &format!("{} {refused:?}", clip(name)));
        if telling != Telling::Not {
            warn!(peer = address.as_str(), door = door, user = clip(name).as_str(), reason = refused.words();
                  "Somebody is not let in; it is told once");
        }
        self.say_last(telling, &whose);
        match refused {
            Refused::TooOften | Refused::Busy | Refused::Token(TokenFault::NoClock) => Err(NotLetIn::ForNow),
            Refused::Nameless | Refused::Unproven | Refused::Token(_) | Refused::Will => Err(NotLetIn::Wrong),
        }
    }

    async fn identify(&self, peer: &Peer, name: Option<&str>, password: Option<&[u8]>) -> Result<Identity, Refused> {
        if let Some(token) = password.filter(|password| tokens::is_token(password))
            && self.book().tokens_for(name).is_some()
        {
            return self.identify_by_token(peer, name, token).await;
        }
        let (user, hash) = match self.book().claim(peer, name, password.is_some()) {
            Claim::Proven(identity) => return Ok(identity),
            Claim::Nameless => return Err(Refused::Nameless),
            Claim::Unproven { .. } => return Err(Refused::Unproven),
            Claim::Password { user, hash } => (user, hash),
        };
        let (password, address) = (password.unwrap_or_default(), peer.ip());
        // Before what is known: that would be the quickest way to guess.
        if lock(&self.0.throttle).is_blocked(address, &user, self.now_ms()) {
            return Err(Refused::TooOften);
        }
        if let Some(hash) = self.known(&user, hash.as_ref(), password) {
            return Ok(proven(user, hash));
        }
        let _seat = self.sit_down(address).ok_or(Refused::Busy)?;
        let turn = time::timeout(TURN_PATIENCE, self.0.turn.acquire()).await;
        let (Ok(Ok(turn)), now_ms) = (turn, self.now_ms()) else { return Err(Refused::Busy) };
        // While it waited, others may have guessed, or shown the same password.
        if lock(&self.0.throttle).is_blocked(address, &user, now_ms) {
            return Err(Refused::TooOften);
        }
        if let Some(hash) = self.known(&user, hash.as_ref(), password) {
            return Ok(proven(user, hash));
        }
        let (compared, shown) = (hash.clone(), password.to_vec());
        let compared = tokio::task::spawn_blocking(move || match compared {
            Some(hash) => hashes::verify(&hash, &shown),
            // Only for the time that it takes.
            None => hashes::verify(&hashes::of_nobody(), &shown),
        });
        let is_right = compared.await.unwrap_or(false);
        drop(turn);
        match hash {
            Some(hash) if is_right => {
                lock(&self.0.known).remember(&user, &hash, password);
                Ok(proven(user, hash))
            }
            _ => {
                lock(&self.0.throttle).count(address, &user, self.now_ms());
                Err(Refused::Unproven)
            }
        }
    }

    /// Who bears a token. Signatures are verified one at a time beside the data path, like passwords: on a small board one takes
    /// some milliseconds.
    async fn identify_by_token(&self, peer: &Peer, name: Option<&str>, token: &[u8]) -> Result<Identity, Refused> {
        let name = name.filter(|name| !name.is_empty());
        let (address, guessed) = (peer.ip(), name.unwrap_or(NAMELESS));
        if lock(&self.0.throttle).is_blocked(address, guessed, self.now_ms()) {
            return Err(Refused::TooOften);
        }
        let _seat = self.sit_down(address).ok_or(Refused::Busy)?;
        let Ok(Ok(turn)) = time::timeout(TURN_PATIENCE, self.0.turn.acquire()).await else { return Err(Refused::Busy) };
        let (book, token) = (self.book(), token.to_vec());
        let read = tokio::task::spawn_blocking(move || match book.tokens() {
            Some(tokens) => tokens::read(tokens, &token),
            None => Err(TokenFault::UnknownKey),
        });
        let read = read.await.unwrap_or(Err(TokenFault::Malformed));
        drop(turn);
        let book = self.book();
        let shown = read.and_then(|shown| match book.tokens_for(Some(&shown.user)) {
            _ if name.is_some_and(|name| name != &*shown.user) => Err(TokenFault::AnotherName),
            Some(tokens) => shown.left_ms(tokens, self.moment()).map(|_| shown),
            None => Err(TokenFault::NotByToken),
        });
        match shown {
            Ok(shown) => Ok(Identity { user: shown.user.clone(), proof: Proof::Token(Arc::new(shown)) }),
            Err(fault) => {
                if fault.is_guess() {
                    lock(&self.0.throttle).count(address, guessed, self.now_ms());
                }
                Err(Refused::Token(fault))
            }
        }
    }

    /// The hash, where this password is known to fit it.
    fn known(&self, user: &str, hash: Option<&PasswordHash>, password: &[u8]) -> Option<PasswordHash> {
        hash.filter(|hash| lock(&self.0.known).is_right(user, hash, password)).cloned()
    }

    fn sit_down(&self, address: Option<IpAddr>) -> Option<Seat<'_>> {
        let mut waiting = lock(&self.0.waiting);
        let address = address.filter(|address| !address.is_loopback());
        if waiting.count >= WAITING_MAX {
            return None;
        }
        if let Some(address) = address {
            let count = waiting.by_address.entry(address).or_default();
            if *count >= WAITING_OF_ONE_MAX {
                return None;
            }
            *count += 1;
        }
        waiting.count += 1;
        Some(Seat { waiting: &self.0.waiting, address })
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.0.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Counts what a client may not do, and tells it once.
    pub(super) fn note(&self, client: &str, user: &str, deed: Deed, topic: &str) {
        self.0.health.sessions().denied.fetch_add(1, Ordering::Relaxed);
        let telling = lock(&self.0.told).note(&clip(client), &format!("{deed:?} {}", clip(topic)));
        if telling != Telling::Not {
            warn!(client = client, user = user, deed = deed.words(), topic = topic;
                  "A client did what it may not; it is told once");
            let (whom, to) = (clip(client), clip(topic));
            let text = format!("client {whom:?}, user {:?}: may not {} {to:?}", clip(user), deed.words());
            self.0.health.sessions().note_refusal(&text);
        }
        self.say_last(telling, client);
    }

    /// Counts a client that asked for another user's session, and tells it once.
    pub(super) fn note_foreign(&self, client: &str, user: &str, owner: &str) {
        self.0.health.sessions().refused_logins.fetch_add(1, Ordering::Relaxed);
        let telling = lock(&self.0.told).note(&clip(client), &format!("session {}", clip(user)));
        if telling != Telling::Not {
            warn!(client = client, user = user, owner = owner;
                  "A client is not let in: this client id has a session of another user; it is told once");
            let (whom, user) = (clip(client), clip(user));
            let text = format!("client {whom:?}, user {user:?}: this client id has a session of the user {owner:?}");
            self.0.health.sessions().note_refusal(&text);
        }
        self.say_last(telling, client);
    }

    fn say_last(&self, telling: Telling, whom: &str) {
        if telling == Telling::TellLast {
            info!(whom = clip(whom).as_str(); "Further refusals are counted and not told until the configuration is read again");
        }
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut waiting = lock(self.waiting);
        waiting.count = waiting.count.saturating_sub(1);
        if let Some(address) = self.address
            && let Some(count) = waiting.by_address.get_mut(&address)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                waiting.by_address.remove(&address);
            }
        }
    }
}

fn proven(user: Arc<str>, hash: PasswordHash) -> Identity {
    Identity { user, proof: Proof::Password(Box::new(hash)) }
}

fn clip(text: &str) -> String {
    text.chars().take(TOLD_CHARACTERS).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Maps that are whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The hash of a new password, as it is written in the configuration; `None` without random numbers. Takes its time and
/// 19 MiB of memory.
pub fn hash_password(password: &[u8]) -> Option<PasswordHash> {
    let mut salt = [0; hashes::SALT_BYTES];
    getrandom::fill(&mut salt).ok()?;
    hashes::make(password, salt)
}

/// A hash that is quick to work out, and another for each text.
#[cfg(test)]
fn hashes_for_tests(of: &str) -> String {
    use base64ct::Encoding as _;
    let mut hash = [0; 64];
    hash.iter_mut().zip(of.bytes()).for_each(|(place, byte)| *place = byte);
    format!("$6$AAAAAAAAAAAAAAAA${}", base64ct::Base64::encode_string(&hash))
}
