//! What waits for the live subscribers of one filter, and who is how far. Pure.
//!
//! The messages lie here and not in rumqttd's logs, of which there is one for each filter, never freed, and whose oldest part
//! goes only when it has filled up: half a megabyte for each filter that was ever busy, read or not. A message is here once,
//! however many filters want it, and is counted (`Shelf`) until the last of them has let go of it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Live;
use crate::message::Qos;

/// What a message takes beside its own bytes.
const OVERHEAD: usize = 256;
/// What is fetched at once: so much is out of the account of its subscriber, not out of the shelf's.
const FETCH_MESSAGES: usize = 64;
const FETCH_BYTES: u64 = 16 * 1024;

/// How much lies with all of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Shelf(Arc<AtomicUsize>);

impl Shelf {
    pub(super) fn bytes(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    /// Takes `live` in.
    pub(super) fn put(&self, live: Live) -> Arc<Lying> {
        let bytes = weight(&live);
        self.0.fetch_add(bytes, Ordering::SeqCst);
        Arc::new(Lying { live, bytes, shelf: self.clone() })
    }
}

/// What `live` takes of memory.
pub(super) fn weight(live: &Live) -> usize {
    let properties = live.properties.as_ref().map_or(0, |properties| {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let user: usize = properties.user.iter().map(|(name, value)| 64 + name.len() + value.len()).sum();
        let response = properties.response_topic.as_ref().map_or(0, |topic| topic.as_str().len());
        OVERHEAD
            + user
            + text(&properties.content_type)
            + response
            + properties.correlation_data.as_ref().map_or(0, |data| data.len())
    });
    OVERHEAD + live.topic.as_str().len() + live.payload.len() + properties
}

/// A message on the shelf.
#[derive(Debug)]
pub(super) struct Lying {
    pub(super) live: Live,
    bytes: usize,
    shelf: Shelf,
}

impl Lying {
    pub(super) fn bytes(&self) -> u64 {
        u64::try_from(self.bytes).unwrap_or(u64::MAX)
    }
}

impl Drop for Lying {
    fn drop(&mut self) {
        self.shelf.0.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// What publishers and a link tell each other.
#[derive(Debug, Default)]
pub(super) struct LinkFlags {
    /// It did not catch up in time: nobody waits for it until it has, and nothing is kept for it but the newest.
    pub(super) slow: AtomicBool,
    /// Nobody is behind it at the moment: shared subscriptions pass it over while they can.
    pub(super) away: AtomicBool,
    /// Bytes that wait for it, of all its filters.
    pub(super) unread: AtomicU64,
    /// Slots in which something waits, each once.
    pending: Mutex<VecDeque<u32>>,
    /// It is being called, or has not gone to sleep since.
    is_called: AtomicBool,
}

impl LinkFlags {
    fn slots(&self) -> MutexGuard<'_, VecDeque<u32>> {
        // Numbers that are whole after every statement.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next slot in which something waits.
    pub(super) fn pending(&self) -> Option<u32> {
        self.slots().pop_front()
    }

    /// A slot that is given up.
    pub(super) fn forget(&self, slot: u32) {
        self.slots().retain(|pending| *pending != slot);
    }

    /// The link goes to sleep: what comes from here on calls it.
    pub(super) fn listen(&self) {
        self.is_called.store(false, Ordering::SeqCst);
    }
}

/// One link's place in one slot.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) link: u32,
    pub(super) flags: Arc<LinkFlags>,
    /// Of its subscription: the highest get their copies first, where there are too many.
    pub(super) qos: AtomicU8,
    /// The number of the message that comes next, and the bytes of the slot up to there. Changed under the index's lock.
    next: AtomicU64,
    bytes: AtomicU64,
    /// The slot is among those in which something waits for the link.
    is_pending: AtomicBool,
}

impl Claim {
    /// The subscription was made again.
    pub(super) fn set_qos(&self, qos: Qos) {
        self.qos.store(qos.level(), Ordering::SeqCst);
    }

    /// The link looks into the slot after this: what comes later is pending again.
    pub(super) fn hear(&self) {
        self.is_pending.store(false, Ordering::SeqCst);
    }

    /// Something waits in the slot; says whether the link sleeps and has to be called.
    pub(super) fn call(&self, slot: u32) -> bool {
        if self.is_pending.swap(true, Ordering::SeqCst) {
            return false;
        }
        self.flags.slots().push_back(slot);
        !self.flags.is_called.swap(true, Ordering::SeqCst)
    }

    fn is_slow(&self) -> bool {
        self.flags.slow.load(Ordering::SeqCst)
    }
}

/// How far a link may be behind: on one of its filters, and with all of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) link_bytes: u64,
    /// What may lie on the shelf.
    pub(super) shelf_bytes: usize,
}

/// What a link gets at once.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    pub(super) messages: Vec<Arc<Lying>>,
    /// How many before the first of them were given up.
    pub(super) lost: u64,
    pub(super) is_more: bool,
}

#[derive(Debug, Default)]
pub(super) struct Slot {
    waiting: VecDeque<Arc<Lying>>,
    /// The number of the first that waits; numbers go on from one use of the slot to the next.
    first: u64,
    first_bytes: u64,
    bytes: u64,
    members: Vec<Arc<Claim>>,
}

impl Slot {
    pub(super) fn members(&self) -> &[Arc<Claim>] {
        &self.members
    }

    fn next(&self) -> u64 {
        self.first.saturating_add(u64::try_from(self.waiting.len()).unwrap_or(u64::MAX))
    }

    /// Gives a link a place: what comes from here on is for it.
    pub(super) fn join(&mut self, link: u32, qos: Qos, flags: Arc<LinkFlags>) -> Arc<Claim> {
        let (next, bytes) = (AtomicU64::new(self.next()), AtomicU64::new(self.bytes));
        let (qos, is_pending) = (AtomicU8::new(qos.level()), AtomicBool::new(false));
        let claim = Arc::new(Claim { link, flags, qos, next, bytes, is_pending });
        self.members.push(claim.clone());
        claim
    }

    /// Takes the place of a link back; says whether the slot is free now.
    pub(super) fn leave(&mut self, link: u32) -> bool {
        let bytes = self.bytes;
        self.members.retain(|claim| {
            if claim.link == link {
                release(claim, bytes.saturating_sub(claim.bytes.load(Ordering::SeqCst)));
            }
            claim.link != link
        });
        self.trim();
        self.members.is_empty()
    }

    pub(super) fn lags(&self, claim: &Claim, bounds: &Bounds) -> bool {
        if claim.is_slow() {
            return false;
        }
        let messages = self.next().saturating_sub(claim.next.load(Ordering::SeqCst));
        let bytes = self.bytes.saturating_sub(claim.bytes.load(Ordering::SeqCst));
        messages > bounds.messages
            || bytes > bounds.bytes
            || claim.flags.unread.load(Ordering::SeqCst) > bounds.link_bytes
    }

    /// Puts a message behind the others, in the slot of this number; adds whoever sleeps to `calls`.
    pub(super) fn push(&mut self, slot: u32, lying: &Arc<Lying>, calls: &mut Vec<u32>) {
        let bytes = lying.bytes();
        self.waiting.push_back(lying.clone());
        self.bytes = self.bytes.saturating_add(bytes);
        for claim in &self.members {
            claim.flags.unread.fetch_add(bytes, Ordering::SeqCst);
            if claim.call(slot) {
                calls.push(claim.link);
            }
        }
        if self.members.iter().any(|claim| claim.is_slow()) {
            self.trim();
        }
    }

    /// What comes next for a member, as much as is handed over at once.
    pub(super) fn fetch(&mut self, claim: &Claim) -> Fetched {
        let (mut next, mut bytes) = (claim.next.load(Ordering::SeqCst), claim.bytes.load(Ordering::SeqCst));
        let (was_front, before) = (next <= self.first, bytes);
        let lost = self.first.saturating_sub(next);
        if lost > 0 {
            (next, bytes) = (self.first, self.first_bytes);
        }
        let start = usize::try_from(next.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let begun = bytes;
        let mut messages = Vec::new();
        for lying in self.waiting.iter().skip(start) {
            if messages.len() >= FETCH_MESSAGES || bytes.saturating_sub(begun) >= FETCH_BYTES {
                break;
            }
            bytes = bytes.saturating_add(lying.bytes());
            next = next.saturating_add(1);
            messages.push(lying.clone());
        }
        claim.next.store(next, Ordering::SeqCst);
        claim.bytes.store(bytes, Ordering::SeqCst);
        release(claim, bytes.saturating_sub(before));
        let is_more = next < self.next();
        if was_front {
            self.trim();
        }
        Fetched { messages, lost, is_more }
    }

    /// Lets go of what nobody waits for. Of those that are slow nothing is kept but the newest, by which they see that they
    /// have lost the rest.
    pub(super) fn trim(&mut self) {
        self.trim_but(1);
    }

    /// The same, and for those that are slow not even that.
    pub(super) fn trim_all(&mut self) {
        self.trim_but(0);
    }

    fn trim_but(&mut self, newest: u64) {
        let end = self.next();
        let wanted = |claim: &Arc<Claim>| {
            let next = claim.next.load(Ordering::SeqCst);
            if claim.is_slow() { next.max(end.saturating_sub(newest)) } else { next }
        };
        let keep = self.members.iter().map(wanted).min().unwrap_or(end);
        while self.first < keep {
            let Some(gone) = self.waiting.pop_front() else { break };
            self.first = self.first.saturating_add(1);
            self.first_bytes = self.first_bytes.saturating_add(gone.bytes());
        }
        if self.waiting.is_empty() {
            // A burst leaves no room behind that nobody needs.
            self.waiting.shrink_to(FETCH_MESSAGES);
        }
    }

    /// Gives all of it up, and `one_more` that was not even taken in.
    pub(super) fn give_up(&mut self, one_more: bool) {
        self.first = self.next().saturating_add(u64::from(one_more));
        self.first_bytes = self.bytes;
        self.waiting = VecDeque::new();
    }

    /// Whether `claim` is within half of its bounds again.
    pub(super) fn has_caught_up(&self, claim: &Claim, bounds: &Bounds) -> bool {
        self.next().saturating_sub(claim.next.load(Ordering::SeqCst)) <= bounds.messages / 2
            && self.bytes.saturating_sub(claim.bytes.load(Ordering::SeqCst)) <= bounds.bytes / 2
    }
}

fn release(claim: &Claim, bytes: u64) {
    claim.flags.unread.fetch_sub(bytes, Ordering::SeqCst);
}
