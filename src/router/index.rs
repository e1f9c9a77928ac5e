//! Which live subscription wants which topic. Pure.
//!
//! Every distinct filter that is in use has a *slot*: a number. A slot is given back with its last subscriber and used
//! again. Each member of a shared subscription has a slot of its own, so that the choice of the member is made here.
//! What waits in a slot: slot.rs.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Live;
use super::slot::{self, Bounds, Claim, Fetched, LinkFlags, Shelf, Slot};
use crate::message::tree::Tree;
use crate::message::{COPIES_MAX, Filter, Qos, Topic};

/// The most levels that a filter may have: matching and dropping descend a level at a time.
pub(super) const LEVELS_MAX: usize = 128;

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
    /// These links must catch up first, or some of all of them; nothing was handed on.
    Lagging(Vec<u32>),
    /// It has its place, and these links have to be called.
    Claimed(Vec<u32>),
    /// There is no room for it, and it was not handed on. These links are to blame, as far as it is known.
    Lost(Vec<u32>),
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
        let Some(state) = self.slots.get_mut(slot as usize) else {
            return (slot, Slot::default().join(link, qos, flags));
        };
        (slot, state.join(link, qos, flags))
    }

    /// Takes the place of `link` back.
    pub(super) fn remove(&mut self, filter: &Filter, link: u32, slot: u32) {
        let Some(state) = self.slots.get_mut(slot as usize) else { return };
        if !state.leave(link) {
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

    /// Gives a message its place in every slot that wants its topic, unless a link is too far behind on one, or there is no
    /// room on the shelf. With `overdue` those are marked slow instead and waited for no longer.
    pub(super) fn claim(&mut self, live: &Live, shelf: &Shelf, bounds: &Bounds, overdue: bool) -> Verdict {
        let found = self.tree.matching(&live.topic);
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
            for claim in slot.members().iter().filter(|claim| slot.lags(claim, bounds)) {
                if overdue {
                    claim.flags.slow.store(true, Ordering::SeqCst);
                }
                lagging.push(claim.link);
            }
        }
        if !lagging.is_empty() {
            if overdue {
                self.slots.iter_mut().for_each(Slot::trim);
            }
            return Verdict::Lagging(lagging);
        }
        if shelf.bytes().saturating_add(slot::weight(live)) > bounds.shelf_bytes {
            if !overdue {
                return Verdict::Lagging(Vec::new());
            }
            let mut slow = Vec::new();
            self.slots.iter_mut().for_each(Slot::trim_all);
            for (link, flags) in self.greediest() {
                if shelf.bytes().saturating_add(slot::weight(live)) <= bounds.shelf_bytes {
                    break;
                }
                flags.slow.store(true, Ordering::SeqCst);
                self.slots.iter_mut().for_each(Slot::trim_all);
                slow.push(link);
            }
            if shelf.bytes().saturating_add(slot::weight(live)) > bounds.shelf_bytes {
                // All that is left is with links that have fetched it. Whoever wanted this one sees that it is missing.
                for slot in chosen {
                    if let Some(slot) = self.slots.get_mut(slot as usize) {
                        slot.give_up(true);
                    }
                }
                return Verdict::Lost(slow);
            }
            return Verdict::Lagging(slow);
        }
        let lying = shelf.put(live.clone());
        let mut calls = Vec::new();
        for number in chosen {
            if let Some(slot) = self.slots.get_mut(number as usize) {
                slot.push(number, &lying, &mut calls);
            }
        }
        Verdict::Claimed(calls)
    }

    /// The links for which something waits, those with the most of it first.
    fn greediest(&self) -> Vec<(u32, Arc<LinkFlags>)> {
        let mut links = BTreeMap::new();
        for claim in self.slots.iter().flat_map(Slot::members) {
            if !claim.flags.slow.load(Ordering::SeqCst) && claim.flags.unread.load(Ordering::SeqCst) > 0 {
                links.entry(claim.link).or_insert_with(|| claim.flags.clone());
            }
        }
        let mut links: Vec<(u32, Arc<LinkFlags>)> = links.into_iter().collect();
        links.sort_by_key(|(_, flags)| Reverse(flags.unread.load(Ordering::SeqCst)));
        links
    }

    /// What comes next for a link in a slot.
    pub(super) fn fetch(&mut self, slot: u32, claim: &Claim) -> Fetched {
        self.slots.get_mut(slot as usize).map(|slot| slot.fetch(claim)).unwrap_or_default()
    }

    /// Whether `claim` is within half of its bounds again.
    pub(super) fn has_caught_up(&self, slot: u32, claim: &Claim, bounds: &Bounds) -> bool {
        self.slots.get(slot as usize).is_none_or(|slot| slot.has_caught_up(claim, bounds))
    }
}

/// Takes out the slots in which every link that is there has copies enough in others, the best of them kept. Without it a
/// few clients whose filters all match one topic would have each message handed over thousands of times.
fn thin(chosen: &mut Vec<u32>, slots: &[Slot]) {
    let mut wanted: Vec<(u32, Reverse<u8>, u32)> = Vec::new();
    for slot in chosen.iter() {
        let members = slots.get(*slot as usize).map(Slot::members);
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
            slot.members().iter().all(|claim| {
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

    const BOUNDS: Bounds = Bounds { messages: 2, bytes: 1 << 20, link_bytes: 1 << 30, shelf_bytes: 1 << 30 };
    const WIDE: Bounds = Bounds { messages: 1000, ..BOUNDS };

    fn filter(text: &str) -> Filter {
        Filter::new(text).unwrap()
    }

    fn live(text: &str) -> Live {
        Live {
            topic: Topic::new(text).unwrap(),
            qos: Qos::AtLeastOnce,
            retain: false,
            payload: bytes::Bytes::from_static(&[b'x'; 100]),
            properties: None,
            publisher: None,
            ordinal: None,
        }
    }

    fn insert(index: &mut Index, text: &str, link: u32) -> (u32, Arc<Claim>) {
        index.insert(&filter(text), link, Qos::AtMostOnce, Arc::new(LinkFlags::default()))
    }

    /// Those of the slots in which something has come.
    fn got(index: &mut Index, places: &[(u32, Arc<Claim>)]) -> Vec<u32> {
        let mut got = Vec::new();
        for (slot, claim) in places {
            claim.hear();
            claim.flags.listen();
            if !index.fetch(*slot, claim).messages.is_empty() {
                got.push(*slot);
            }
        }
        got
    }

    #[test]
    fn a_link_gets_no_more_copies_of_a_message_than_the_bound_and_those_of_the_highest_qos() {
        let (mut index, shelf) = (Index::default(), Shelf::default());
        let filters: Vec<String> = (0..64)
            .map(|bits| {
                (0..6).map(|place| if bits >> place & 1 == 1 { "+" } else { "a" }).collect::<Vec<_>>().join("/")
            })
            .collect();
        let (mut best, mut places) = (Vec::new(), Vec::new());
        for (place, text) in filters.iter().enumerate() {
            let (slot, claim) = insert(&mut index, text, 1);
            if place % 8 == 3 {
                claim.set_qos(Qos::AtLeastOnce);
                best.push(slot);
            }
            places.push((slot, claim));
        }
        places.push(insert(&mut index, &filters[63], 2));
        places.push(insert(&mut index, "$share/g/#", 1));
        let (other, shared) = (places[64].0, places[65].0);
        assert!(matches!(index.claim(&live("a/a/a/a/a/a"), &shelf, &WIDE, false), Verdict::Claimed(_)));
        let chosen = got(&mut index, &places[..64]);
        assert!(best.iter().all(|slot| chosen.contains(slot)), "{chosen:?}");
        assert_eq!(got(&mut index, &places[64..]), [other, shared]);
        let of_the_first = chosen.iter().filter(|slot| **slot != other).count();
        assert_eq!(of_the_first, COPIES_MAX);
    }

    #[test]
    fn the_tree_finds_what_the_filters_themselves_match() {
        let filters =
            ["#", "a/#", "a/+", "+", "+/+", "a", "a/b", "/", "/+", "+/b/#", "$SYS/#", "$SYS/+", "a//b", "温度/+"];
        let topics =
            ["a", "a/b", "a/b/c", "/", "/x", "$SYS", "$SYS/x", "a//b", "温度/1", "b", "$x/a", "x/b", "x/b/c/d"];
        let (mut index, shelf) = (Index::default(), Shelf::default());
        let places: Vec<(u32, Arc<Claim>)> = filters.iter().map(|text| insert(&mut index, text, 1)).collect();
        for text in topics {
            let matching =
                filters.iter().zip(&places).filter(|(pattern, _)| filter(pattern).matches(&live(text).topic));
            let expected: Vec<u32> = matching.map(|(_, (slot, _))| *slot).collect();
            let verdict = index.claim(&live(text), &shelf, &WIDE, false);
            assert_eq!(verdict == Verdict::Nobody, expected.is_empty(), "{text}: {verdict:?}");
            assert_eq!(got(&mut index, &places), expected, "{text}");
        }
        for (place, text) in filters.iter().enumerate() {
            index.remove(&filter(text), 1, places[place].0);
        }
        assert!(index.tree.is_empty() && index.entries.is_empty());
        assert_eq!(index.slots_in_use(), 0);
    }

    #[test]
    fn a_slot_is_used_again_and_its_numbers_go_on() {
        let (mut index, shelf) = (Index::default(), Shelf::default());
        let (slot, claim) = insert(&mut index, "a", 1);
        assert_eq!(index.claim(&live("a"), &shelf, &BOUNDS, false), Verdict::Claimed(vec![1]));
        assert_eq!(index.claim(&live("a"), &shelf, &BOUNDS, false), Verdict::Claimed(vec![]), "it was called already");
        index.remove(&filter("a"), 1, slot);
        assert_eq!((shelf.bytes(), claim.flags.unread.load(Ordering::SeqCst)), (0, 0), "nobody waits for it");
        assert_eq!(index.claim(&live("a"), &shelf, &BOUNDS, false), Verdict::Nobody);
        let (again, claim) = insert(&mut index, "b", 2);
        assert_eq!(again, slot);
        assert_eq!(index.claim(&live("b"), &shelf, &BOUNDS, false), Verdict::Claimed(vec![2]));
        let fetched = index.fetch(slot, &claim);
        assert_eq!((fetched.lost, fetched.messages.len()), (0, 1), "what the former filter had is not waited for");
    }

    #[test]
    fn a_link_that_is_behind_holds_its_publishers_and_no_others() {
        let (mut index, shelf) = (Index::default(), Shelf::default());
        let (slot, claim) = insert(&mut index, "a", 1);
        insert(&mut index, "b", 2);
        for _ in 0..3 {
            assert!(matches!(index.claim(&live("a"), &shelf, &BOUNDS, false), Verdict::Claimed(_)));
        }
        assert_eq!(index.claim(&live("a"), &shelf, &BOUNDS, false), Verdict::Lagging(vec![1]));
        assert!(matches!(index.claim(&live("b"), &shelf, &BOUNDS, false), Verdict::Claimed(_)));
        assert_eq!(index.fetch(slot, &claim).messages.len(), 3);
        for _ in 0..3 {
            assert!(matches!(index.claim(&live("a"), &shelf, &BOUNDS, false), Verdict::Claimed(_)));
        }
        assert_eq!(index.claim(&live("a"), &shelf, &BOUNDS, true), Verdict::Lagging(vec![1]));
        assert!(claim.flags.slow.load(Ordering::SeqCst));
        assert_eq!(index.claim(&live("a"), &shelf, &BOUNDS, false), Verdict::Claimed(vec![]), "nobody waits for it");
        let fetched = index.fetch(slot, &claim);
        assert_eq!((fetched.lost, fetched.messages.len()), (3, 1), "the newest, and how many are missing before it");
        assert!(index.has_caught_up(slot, &claim, &BOUNDS));
    }

    #[test]
    fn a_message_lies_there_once_until_the_last_who_wants_it_has_it() {
        let (mut index, shelf) = (Index::default(), Shelf::default());
        let (all, first) = insert(&mut index, "#", 1);
        let (same, second) = insert(&mut index, "#", 2);
        let (one, third) = insert(&mut index, "a", 3);
        assert_eq!(all, same);
        for _ in 0..3 {
            assert!(matches!(index.claim(&live("a"), &shelf, &WIDE, false), Verdict::Claimed(_)));
        }
        assert_eq!(shelf.bytes(), 3 * slot::weight(&live("a")));
        drop(index.fetch(all, &first));
        drop(index.fetch(one, &third));
        assert_eq!(shelf.bytes(), 3 * slot::weight(&live("a")), "the second has not read");
        let fetched = index.fetch(all, &second);
        assert_eq!(shelf.bytes(), 3 * slot::weight(&live("a")), "it has them still in its hands");
        drop(fetched);
        assert_eq!(shelf.bytes(), 0);
    }

    #[test]
    fn what_lies_there_never_takes_more_than_its_bound_and_the_greediest_pays_first() {
        let bounds = Bounds { shelf_bytes: 100 * slot::weight(&live("t/000")), ..WIDE };
        let (mut index, shelf) = (Index::default(), Shelf::default());
        let (slot, modest) = insert(&mut index, "mine", 1);
        let flags = Arc::new(LinkFlags::default());
        let greedy: Vec<(u32, Arc<Claim>)> = (0..200)
            .map(|number| index.insert(&filter(&format!("t/{number:03}")), 2, Qos::AtMostOnce, flags.clone()))
            .collect();
        assert!(matches!(index.claim(&live("mine"), &shelf, &bounds, false), Verdict::Claimed(_)));
        let mut taken = 1;
        while let Verdict::Claimed(_) = index.claim(&live(&format!("t/{taken:03}")), &shelf, &bounds, false) {
            taken += 1;
        }
        assert_eq!(taken, 100);
        assert_eq!(index.claim(&live("mine"), &shelf, &bounds, false), Verdict::Lagging(vec![]), "first it is waited");
        assert_eq!(index.claim(&live("mine"), &shelf, &bounds, true), Verdict::Lagging(vec![2]));
        assert!(matches!(index.claim(&live("mine"), &shelf, &bounds, true), Verdict::Claimed(_)));
        assert_eq!(shelf.bytes(), 2 * slot::weight(&live("mine")));
        let in_hand = index.fetch(slot, &modest);
        assert_eq!((in_hand.messages.len(), in_hand.lost), (2, 0));

        // What was fetched is not to be had back: then the message itself is not taken.
        let tight = Bounds { shelf_bytes: shelf.bytes(), ..bounds };
        assert_eq!(index.claim(&live("mine"), &shelf, &tight, false), Verdict::Lagging(vec![]));
        assert_eq!(index.claim(&live("mine"), &shelf, &tight, true), Verdict::Lost(vec![]));
        drop(in_hand);
        greedy.iter().for_each(|(slot, claim)| drop(index.fetch(*slot, claim)));
        assert!(matches!(index.claim(&live("mine"), &shelf, &bounds, false), Verdict::Claimed(_)));
        let fetched = index.fetch(slot, &modest);
        assert_eq!((fetched.messages.len(), fetched.lost), (1, 1), "whoever wanted it sees that it is missing");
        drop(fetched);
        assert_eq!(shelf.bytes(), 0);
    }

    #[test]
    fn members_of_a_shared_subscription_take_turns_and_the_absent_are_passed_over() {
        let (mut index, shelf) = (Index::default(), Shelf::default());
        let claims = [("$share/g/a/#", 1), ("$share/g/a/#", 2), ("$share/h/a/#", 3)]
            .map(|(text, link)| insert(&mut index, text, link));
        let chosen = |index: &mut Index| {
            assert!(matches!(index.claim(&live("a/b"), &shelf, &WIDE, false), Verdict::Claimed(_)));
            got(index, &claims)
        };
        let [first, second, other] = [claims[0].0, claims[1].0, claims[2].0];
        let mut counts = HashMap::new();
        for _ in 0..10 {
            for slot in chosen(&mut index) {
                *counts.entry(slot).or_insert(0) += 1;
            }
        }
        assert_eq!(counts, HashMap::from([(first, 5), (second, 5), (other, 10)]));
        claims[0].1.flags.away.store(true, Ordering::SeqCst);
        for _ in 0..4 {
            assert_eq!(chosen(&mut index), [second, other]);
        }
        index.remove(&filter("$share/g/a/#"), 2, second);
        assert_eq!(chosen(&mut index), [first, other]);
    }
}
