//! The account: what was acknowledged to a publisher against what the application in the cloud got. Pure.
//!
//! A publisher numbers its messages. When its session is gone and it cannot know whether a message was taken, it sends
//! that number again as a new message, with a higher attempt; so a repeat that the publisher made is told from one that
//! the gateway made: the same number and attempt twice.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

/// One message as its publisher knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// From 0, without holes.
    pub number: u64,
    /// From 1; more when the publisher had to send it as a new message.
    pub attempt: u32,
}

impl Key {
    /// The payload, from which the key can be read again; `bytes` long or a little longer.
    pub fn payload(self, bytes: usize) -> Vec<u8> {
        let head = format!("{} {} ", self.number, self.attempt);
        let padding = bytes.saturating_sub(head.len());
        let mut payload = head.into_bytes();
        payload.extend(std::iter::repeat_n(self.letter(), padding));
        payload
    }

    /// The key of a payload; nothing when the payload is not one that `payload` made.
    pub fn of(payload: &[u8]) -> Option<Key> {
        let text = std::str::from_utf8(payload).ok()?;
        let mut words = text.splitn(3, ' ');
        let key = Key { number: words.next()?.parse().ok()?, attempt: words.next()?.parse().ok()? };
        words.next()?.bytes().all(|byte| byte == key.letter()).then_some(key)
    }

    fn letter(self) -> u8 {
        b'a' + u8::try_from((self.number + u64::from(self.attempt)) % 26).unwrap()
    }
}

/// One message that arrived.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// What its payload says; nothing: a payload that nobody sent.
    pub key: Option<Key>,
    /// Its `tidegate-id`.
    pub id: Option<String>,
}

/// One topic: one publisher, one QoS.
#[derive(Debug)]
pub struct Account {
    /// Which one, for a person.
    pub what: String,
    /// 1 or 2.
    pub qos: u8,
    /// What was acknowledged to the publisher.
    pub acknowledged: BTreeSet<Key>,
    /// What the application got, in the order of arrival.
    pub arrived: Vec<Arrival>,
}

/// What the account says; of each list the first few.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// How many messages were acknowledged.
    pub acknowledged: usize,
    /// Of those, how many never arrived.
    pub lost: usize,
    /// At QoS 2: messages that arrived more often than once.
    pub doubled: usize,
    /// At QoS 1: arrivals beyond the first of each message.
    pub repeated: usize,
    /// First arrivals that came after one of a higher number.
    pub disordered: usize,
    /// Arrivals of one message under different ids, of different messages under one id, or of what nobody sent.
    pub wrong: usize,
    /// The numbers that the publisher itself sent again.
    pub sent_again: usize,
    /// The first of each, for a person.
    pub examples: Vec<String>,
    /// QoS 2: doubles of the cloud itself, which had got the message once.
    pub doubled_by_cloud: usize,
    /// The messages that were lost, first ones only, and doubled: topic and key.
    pub victims: Vec<(String, Key)>,
    doubles: Vec<(String, Key)>,
}

const EXAMPLES_MAX: usize = 12;

impl Account {
    /// Weighs one against the other.
    pub fn verdict(&self) -> Verdict {
        let mut verdict = Verdict { acknowledged: self.acknowledged.len(), ..Verdict::default() };
        let mut times = HashMap::<Key, (usize, Option<&str>)>::new();
        let mut owners = HashMap::<&str, Key>::new();
        let mut numbers = BTreeMap::<u64, u32>::new();
        let mut highest = None;
        for arrival in &self.arrived {
            let id = arrival.id.as_deref();
            let Some(key) = arrival.key else {
                verdict.wrong += 1;
                verdict.example(&self.what, "nobody sent", arrival);
                continue;
            };
            if numbers.insert(key.number, key.attempt).is_none() {
                if highest.is_some_and(|highest| key.number < highest) {
                    verdict.disordered += 1;
                    verdict.example(&self.what, "out of order", arrival);
                }
                highest = highest.max(Some(key.number));
            }
            let (count, known_id) = times.entry(key).or_insert((0, id));
            *count += 1;
            let is_other_id = *known_id != id;
            let is_other_owner = id.is_some_and(|id| *owners.entry(id).or_insert(key) != key);
            if is_other_id || is_other_owner {
                verdict.wrong += 1;
                verdict.example(&self.what, "under another id", arrival);
            }
            if *count > 1 {
                match self.qos {
                    2 if *count == 2 => {
                        verdict.doubled += 1;
                        verdict.doubles.push((self.what.clone(), key));
                        verdict.example(&self.what, "doubled", arrival);
                    }
                    2 => {}
                    _ => verdict.repeated += 1,
                }
            }
        }
        verdict.sent_again = times.keys().filter(|key| key.attempt > 1).count();
        for key in &self.acknowledged {
            if !times.contains_key(key) {
                verdict.lost += 1;
                verdict.victim(&self.what, *key);
                verdict.example(&self.what, "lost", key);
            }
        }
        verdict
    }
}

impl Verdict {
    fn example(&mut self, of: &str, what: &str, which: impl fmt::Debug) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(format!("{of}: {what}: {which:?}"));
        }
    }

    /// Tells by how often each was given to the cloud who has doubled what.
    pub fn attribute(&mut self, given: impl Fn(&str, Key) -> usize) {
        let (own, of_cloud): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.doubles).into_iter().partition(|(topic, key)| given(topic, *key) > 1);
        self.doubled = own.len();
        self.doubled_by_cloud += of_cloud.len();
        self.victims.extend(own);
    }

    fn victim(&mut self, of: &str, key: Key) {
        if self.victims.len() < 3 {
            self.victims.push((of.to_owned(), key));
        }
    }

    /// Takes another one in.
    pub fn add(&mut self, other: &Verdict) {
        self.acknowledged += other.acknowledged;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.doubled_by_cloud += other.doubled_by_cloud;
        self.doubles.extend(other.doubles.iter().cloned());
        self.repeated += other.repeated;
        self.disordered += other.disordered;
        self.wrong += other.wrong;
        self.sent_again += other.sent_again;
        let room = EXAMPLES_MAX.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.iter().take(room).cloned());
        self.victims.extend(other.victims.iter().cloned());
    }

    /// Whether the promise was kept.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.disordered == 0 && self.wrong == 0
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict { acknowledged, lost, doubled, doubled_by_cloud, repeated, disordered, wrong, sent_again, .. } =
            self;
        write!(
            f,
            "{acknowledged} acknowledged, {lost} lost, {doubled} doubled at QoS 2 \
             ({doubled_by_cloud} more by the cloud itself), {repeated} repeated at QoS 1, \
             {disordered} out of order, {wrong} wrong, {sent_again} sent again by their publisher"
        )
    }
}

fn account(qos: u8, acknowledged: &[(u64, u32)], arrived: &[(u64, u32, &str)]) -> Verdict {
    let key = |number, attempt| Key { number, attempt };
    let arrived = arrived
        .iter()
        .map(|(number, attempt, id)| Arrival { key: Some(key(*number, *attempt)), id: Some((*id).into()) });
    Account {
        what: "test".to_owned(),
        qos,
        acknowledged: acknowledged.iter().map(|(number, attempt)| key(*number, *attempt)).collect(),
        arrived: arrived.collect(),
    }
    .verdict()
}

#[test]
fn the_account_sees_each_kind_of_fault() {
    let good = account(2, &[(0, 1), (1, 2)], &[(0, 1, "a"), (1, 1, "b"), (1, 2, "c")]);
    assert!(good.is_clean(), "a number that its publisher sent again is no double: {good}");
    assert_eq!(good.sent_again, 1);
    let lost = account(2, &[(0, 1), (1, 1)], &[(0, 1, "a")]);
    assert_eq!((lost.lost, lost.is_clean()), (1, false));
    let doubled = account(2, &[(0, 1)], &[(0, 1, "a"), (0, 1, "a"), (0, 1, "a")]);
    assert_eq!((doubled.doubled, doubled.is_clean()), (1, false));
    let repeated = account(1, &[(0, 1)], &[(0, 1, "a"), (0, 1, "a"), (0, 1, "a")]);
    assert_eq!((repeated.repeated, repeated.is_clean()), (2, true));
    let disordered = account(1, &[], &[(1, 1, "a"), (0, 1, "b")]);
    assert_eq!((disordered.disordered, disordered.is_clean()), (1, false));
    let renamed = account(1, &[], &[(0, 1, "a"), (0, 1, "b")]);
    assert_eq!((renamed.wrong, renamed.is_clean()), (1, false));
    let shared = account(1, &[], &[(0, 1, "a"), (1, 1, "a")]);
    assert_eq!((shared.wrong, shared.is_clean()), (1, false));
}

#[test]
fn a_payload_names_its_key_and_a_damaged_one_does_not() {
    let key = Key { number: 71, attempt: 2 };
    let mut payload = key.payload(40);
    assert_eq!((payload.len(), Key::of(&payload)), (40, Some(key)));
    payload[30] ^= 1;
    assert_eq!(Key::of(&payload), None);
    assert_eq!(Key::of(&key.payload(0)), Some(key));
}
