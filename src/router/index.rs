//! Which live subscription wants which topic, and how far each of them is behind. Pure.
//!
//! Every distinct filter that is in use has a *slot*: a number, which is all that rumqttd ever sees of it. A slot is
//! given back with its last subscriber and used again, because rumqttd frees neither the log of a filter nor its
//! cache of topics: with numbers both are bounded by how many filters were in use at once (facts/rumqttd.md, 5).
//! Each member of a shared subscription has a slot of its own, so that the choice of the member is made here.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use crate::message::tree::Tree;
use crate::message::{COPIES_MAX, Filter, Qos, Topic};

/// The most levels that a filter may have: matching and dropping descend a level at a time.
pub(super) const LEVELS_MAX: usize = 128;

/// What publishers and a link tell each other.
#[derive(Debug, Default)]
pub(super) struct LinkFlags {
    /// It did not catch up in time: nobody waits for it until it has.
    pub(super) slow: AtomicBool,
    /// Nobody is behind it at the moment: shared subscriptions pass it over while they can.
    pub(super) away: AtomicBool,
}

/// One link's place in one slot.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) link: u32,
    pub(super) flags: Arc<LinkFlags>,
    /// Of its subscription: the highest get their copies first, where there are too many.
    qos: AtomicU8,
    /// The offset that comes next; smaller ones are of an earlier use of the slot.
    pub(super) next: AtomicU64,
    /// Bytes of the slot up to there.
    pub(super) bytes: AtomicU64,
}

/// A slot's own side of the account.
#[derive(Debug, Default)]
struct Slot {
    /// Messages ever handed to this slot: the offset of the next one in rumqttd's log.
    claimed: u64,
    claimed_bytes: u64,
    members: Vec<Arc<Claim>>,
}

impl Claim {
    /// The subscription was made again.
    pub(super) fn set_qos(&self, qos: Qos) {
        self.qos.store(qos.level(), Ordering::SeqCst);
    }
}

impl Slot {
    fn lags(&self, claim: &Claim, bounds: &Bounds) -> bool {
        if claim.flags.slow.load(Ordering::SeqCst) {
            return false;
        }
        let messages = self.claimed.saturating_sub(claim.next.load(Ordering::SeqCst));
        let bytes = self.claimed_bytes.saturating_sub(claim.bytes.load(Ordering::SeqCst));
        messages > bounds.messages || bytes > bounds.bytes
    }
}

/// How far a link may be behind on one of its filters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

#[derive(Debug, Default)]
struct Entry {
    plain: Option<u32>,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    name: Arc<str>,
    members: Vec<u32>,
    turn: usize,
}

/// What became of an attempt to hand a message on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nobody subscribes to it.
    Nobody,
    /// These links must catch up first; nothing was handed on.
    Lagging(Vec<u32>),
    /// It has its place in each of these slots.
    Claimed(Vec<u32>),
}

/// All live subscriptions.
#[derive(Debug, Default)]
pub(super) struct Index {
    tree: Tree,
    entries: HashMap<u32, Entry>,
    next_entry: u32,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Index {
    /// How many slots are in use.
    pub(super) fn slots_in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether `filter` would need a slot of its own.
    pub(super) fn needs_slot(&self, filter: &Filter) -> bool {
        if filter.share_group().is_some() {
            return true;
        }
        self.tree.find(filter).and_then(|entry| self.entries.get(&entry)?.plain).is_none()
    }

    /// Gives `link` its place in the slot of `filter`. To be called once for each link and filter.
    pub(super) fn insert(&mut self, filter: &Filter, link: u32, qos: Qos, flags: Arc<LinkFlags>) -> (u32, Arc<Claim>) {
        let place = self.tree.place(filter);
        let number = match *place {
            Some(number) => number,
            None => {
                let number = self.next_entry;
                self.next_entry = self.next_entry.wrapping_add(1);
                *place = Some(number);
                number
            }
        };
        let entry = self.entries.entry(number).or_default();
        let slot = match filter.share_group() {
            None => *entry.plain.get_or_insert_with(|| take_slot(&mut self.free, &mut self.slots)),
            Some(name) => {
                let slot = take_slot(&mut self.free, &mut self.slots);
                match entry.groups.iter_mut().find(|group| &*group.name == name) {
                    Some(group) => group.members.push(slot),
                    None => entry.groups.push(Group { name: Arc::from(name), members: vec![slot], turn: 0 }),
                }
                slot
            }
        };
        let (next, bytes, qos) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU8::new(qos.level()));
        let claim = Arc::new(Claim { link, flags, qos, next, bytes });
        if let Some(slot) = self.slots.get_mut(slot as usize) {
            claim.next.store(slot.claimed, Ordering::SeqCst);
            claim.bytes.store(slot.claimed_bytes, Ordering::SeqCst);
            slot.members.push(claim.clone());
        }
        (slot, claim)
    }

    /// Takes the place of `link` back.
    pub(super) fn remove(&mut self, filter: &Filter, link: u32, slot: u32) {
        let Some(state) = self.slots.get_mut(slot as usize) else { return };
        state.members.retain(|claim| claim.link != link);
        if !state.members.is_empty() {
            return;
        }
        let Some(number) = self.tree.find(filter) else { return };
        let Some(entry) = self.entries.get_mut(&number) else { return };
        match filter.share_group() {
            None => entry.plain = None,
            Some(name) => {
                for group in entry.groups.iter_mut().filter(|group| &*group.name == name) {
                    group.members.retain(|member| *member != slot);
                }
                entry.groups.retain(|group| !group.members.is_empty());
            }
        }
        self.free.push(slot);
        if entry.plain.is_none() && entry.groups.is_empty() {
            self.entries.remove(&number);
            self.tree.remove(filter);
        }
    }

    /// Whether any link subscribes to `topic`.
    pub(super) fn is_wanted(&self, topic: &Topic) -> bool {
        !self.tree.matching(topic).is_empty()
    }

    /// Gives a message of `bytes` its place in every slot that wants `topic`, unless a link is too far behind on one.
    /// With `overdue` those are marked slow instead and waited for no longer.
    pub(super) fn claim(&mut self, topic: &Topic, bytes: usize, bounds: &Bounds, overdue: bool) -> Verdict {
        let found = self.tree.matching(topic);
        let mut chosen = Vec::new();
        let mut shared = Vec::new();
        for number in found {
            let Some(entry) = self.entries.get_mut(&number) else { continue };
            chosen.extend(entry.plain);
            for group in &mut entry.groups {
                shared.extend(choose(group, &self.slots, bounds));
            }
        }
        if chosen.len() > COPIES_MAX {
            thin(&mut chosen, &self.slots);
        }
        chosen.extend(shared);
        if chosen.is_empty() {
            return Verdict::Nobody;
        }
        let mut lagging = Vec::new();
        for slot in chosen.iter().filter_map(|slot| self.slots.get(*slot as usize)) {
            for claim in slot.members.iter().filter(|claim| slot.lags(claim, bounds)) {
                if overdue {
                    claim.flags.slow.store(true, Ordering::SeqCst);
                }
                lagging.push(claim.link);
            }
        }
        if !lagging.is_empty() {
            return Verdict::Lagging(lagging);
        }
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        for slot in &chosen {
            if let Some(slot) = self.slots.get_mut(*slot as usize) {
                slot.claimed = slot.claimed.wrapping_add(1);
                slot.claimed_bytes = slot.claimed_bytes.saturating_add(bytes);
            }
        }
        Verdict::Claimed(chosen)
    }

    /// After a hole: how many bytes of `slot` count as taken, so that the account is right again.
    pub(super) fn bytes_before(&self, slot: u32, next: u64, bytes_each: u64) -> u64 {
        let Some(slot) = self.slots.get(slot as usize) else { return 0 };
        slot.claimed_bytes.saturating_sub(slot.claimed.saturating_sub(next).saturating_mul(bytes_each))
    }

    /// Whether `claim` is within half of its bounds again.
    pub(super) fn has_caught_up(&self, slot: u32, claim: &Claim, bounds: &Bounds) -> bool {
        let Some(slot) = self.slots.get(slot as usize) else { return true };
        slot.claimed.saturating_sub(claim.next.load(Ordering::SeqCst)) <= bounds.messages / 2
            && slot.claimed_bytes.saturating_sub(claim.bytes.load(Ordering::SeqCst)) <= bounds.bytes / 2
    }
}

/// Takes out the slots in which every link that is there has copies enough in others, the best of them kept. Without it a
/// few clients whose filters all match one topic would have each message handed over thousands of times.
fn thin(chosen: &mut Vec<u32>, slots: &[Slot]) {
    let mut wanted: Vec<(u32, Reverse<u8>, u32)> = Vec::new();
    for slot in chosen.iter() {
        let members = slots.get(*slot as usize).map(|state| &state.members);
        wanted.extend(
            members.into_iter().flatten().map(|claim| (claim.link, Reverse(claim.qos.load(Ordering::SeqCst)), *slot)),
        );
    }
    wanted.sort_unstable();
    let mut kept = HashSet::new();
    let (mut of, mut count) = (None, 0);
    for (link, _, slot) in wanted {
        count = if of == Some(link) { count + 1 } else { 1 };
        of = Some(link);
        if count <= COPIES_MAX {
            kept.insert(slot);
        }
    }
    chosen.retain(|slot| kept.contains(slot));
}

fn take_slot(free: &mut Vec<u32>, slots: &mut Vec<Slot>) -> u32 {
    // The slot that was given back last: its log is there already.
    if let Some(slot) = free.pop() {
        return slot;
    }
    slots.push(Slot::default());
    u32::try_from(slots.len() - 1).unwrap_or(u32::MAX)
}

/// In turn; a member that is away or behind is passed over while another one is not.
fn choose(group: &mut Group, slots: &[Slot], bounds: &Bounds) -> Option<u32> {
    let count = group.members.len();
    let in_turn = (0..count).map(|step| (group.turn + step) % count);
    let is_ready = |place: &usize| {
        group.members.get(*place).and_then(|slot| slots.get(*slot as usize)).is_some_and(|slot| {
            slot.members.iter().all(|claim| {
                let flags = &claim.flags;
                !flags.away.load(Ordering::SeqCst) && !flags.slow.load(Ordering::SeqCst) && !slot.lags(claim, bounds)
            })
        })
    };
    let place = in_turn.clone().find(is_ready).or_else(|| in_turn.clone().next())?;
    group.turn = (place + 1) % count;
    group.members.get(place).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { messages: 2, bytes: 100 };

    fn filter(text: &str) -> Filter {
        Filter::new(text).unwrap()
    }

    fn topic(text: &str) -> Topic {
        Topic::new(text).unwrap()
    }

    fn insert(index: &mut Index, text: &str, link: u32) -> (u32, Arc<Claim>) {
        index.insert(&filter(text), link, Qos::AtMostOnce, Arc::new(LinkFlags::default()))
    }

    #[test]
    fn a_link_gets_no_more_copies_of_a_message_than_the_bound_and_those_of_the_highest_qos() {
        let mut index = Index::default();
        let filters: Vec<String> = (0..64)
            .map(|bits| {
                (0..6).map(|place| if bits >> place & 1 == 1 { "+" } else { "a" }).collect::<Vec<_>>().join("/")
            })
            .collect();
        let mut best = Vec::new();
        for (place, text) in filters.iter().enumerate() {
            let (slot, claim) = insert(&mut index, text, 1);
            if place % 8 == 3 {
                claim.set_qos(Qos::AtLeastOnce);
                best.push(slot);
            }
        }
        let (other, _) = insert(&mut index, &filters[63], 2);
        let (shared, _) = insert(&mut index, "$share/g/#", 1);
        let wide = Bounds { messages: 1000, bytes: 100_000 };
        let Verdict::Claimed(chosen) = index.claim(&topic("a/a/a/a/a/a"), 1, &wide, false) else { panic!() };
        assert!(best.iter().chain([&other, &shared]).all(|slot| chosen.contains(slot)), "{chosen:?}");
        let of_the_first = chosen.iter().filter(|slot| **slot != other && **slot != shared).count();
        assert_eq!(of_the_first, COPIES_MAX);
    }

    #[test]
    fn the_tree_finds_what_the_filters_themselves_match() {
        let filters =
            ["#", "a/#", "a/+", "+", "+/+", "a", "a/b", "/", "/+", "+/b/#", "$SYS/#", "$SYS/+", "a//b", "温度/+"];
        let topics =
            ["a", "a/b", "a/b/c", "/", "/x", "$SYS", "$SYS/x", "a//b", "温度/1", "b", "$x/a", "x/b", "x/b/c/d"];
        let mut index = Index::default();
        let slots: Vec<u32> = filters.iter().map(|text| insert(&mut index, text, 1).0).collect();
        for text in topics {
            let wide = Bounds { messages: 1000, bytes: 100_000 };
            let mut expected: Vec<u32> = Vec::new();
            for (place, pattern) in filters.iter().enumerate() {
                if filter(pattern).matches(&topic(text)) {
                    expected.push(slots[place]);
                }
            }
            let mut chosen = match index.claim(&topic(text), 1, &wide, false) {
                Verdict::Claimed(chosen) => chosen,
                Verdict::Nobody => Vec::new(),
                Verdict::Lagging(_) => panic!("{text}"),
            };
            chosen.sort_unstable();
            expected.sort_unstable();
            assert_eq!(chosen, expected, "{text}");
        }
        for (place, text) in filters.iter().enumerate() {
            index.remove(&filter(text), 1, slots[place]);
        }
        assert!(index.tree.is_empty() && index.entries.is_empty());
        assert_eq!(index.slots_in_use(), 0);
    }

    #[test]
    fn a_slot_is_used_again_and_its_numbers_go_on() {
        let mut index = Index::default();
        let (slot, _) = insert(&mut index, "a", 1);
        assert_eq!(index.claim(&topic("a"), 10, &BOUNDS, false), Verdict::Claimed(vec![slot]));
        index.remove(&filter("a"), 1, slot);
        assert_eq!(index.claim(&topic("a"), 10, &BOUNDS, false), Verdict::Nobody);
        let (again, claim) = insert(&mut index, "b", 2);
        assert_eq!(again, slot);
        assert_eq!(claim.next.load(Ordering::SeqCst), 1, "what the former filter had is not waited for");
    }

    #[test]
    fn a_link_that_is_behind_holds_its_publishers_and_no_others() {
        let mut index = Index::default();
        let (slot, claim) = insert(&mut index, "a", 1);
        insert(&mut index, "b", 2);
        for _ in 0..3 {
            assert!(matches!(index.claim(&topic("a"), 1, &BOUNDS, false), Verdict::Claimed(_)));
        }
        assert_eq!(index.claim(&topic("a"), 1, &BOUNDS, false), Verdict::Lagging(vec![1]));
        assert!(matches!(index.claim(&topic("b"), 1, &BOUNDS, false), Verdict::Claimed(_)));
        claim.next.store(1, Ordering::SeqCst);
        assert_eq!(index.claim(&topic("a"), 1, &BOUNDS, false), Verdict::Claimed(vec![slot]));
        assert_eq!(index.claim(&topic("a"), 1, &BOUNDS, true), Verdict::Lagging(vec![1]));
        assert!(claim.flags.slow.load(Ordering::SeqCst));
        assert_eq!(index.claim(&topic("a"), 1, &BOUNDS, false), Verdict::Claimed(vec![slot]));
    }

    #[test]
    fn members_of_a_shared_subscription_take_turns_and_the_absent_are_passed_over() {
        let mut index = Index::default();
        let (first, absent) = insert(&mut index, "$share/g/a/#", 1);
        let (second, _) = insert(&mut index, "$share/g/a/#", 2);
        let (other, _) = insert(&mut index, "$share/h/a/#", 3);
        let wide = Bounds { messages: 1000, bytes: 100_000 };
        let mut counts = HashMap::new();
        for _ in 0..10 {
            let Verdict::Claimed(chosen) = index.claim(&topic("a/b"), 1, &wide, false) else { panic!() };
            for slot in chosen {
                *counts.entry(slot).or_insert(0) += 1;
            }
        }
        assert_eq!(counts, HashMap::from([(first, 5), (second, 5), (other, 10)]));
        absent.flags.away.store(true, Ordering::SeqCst);
        for _ in 0..4 {
            assert_eq!(index.claim(&topic("a/b"), 1, &wide, false), Verdict::Claimed(vec![second, other]));
        }
        index.remove(&filter("$share/g/a/#"), 2, second);
        assert_eq!(index.claim(&topic("a/b"), 1, &wide, false), Verdict::Claimed(vec![first, other]));
    }
}
