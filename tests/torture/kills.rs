//! Does what was acknowledged survive `kill -9` at any moment, and is nothing doubled at QoS 2?
//!
//! A case is a campaign on one store: four publishers that never stop (MQTT 3.1.1 and 5, QoS 1 and 2), resume their
//! sessions over every kill and repeat what they have no answer for, a local subscriber at QoS 2 whose session the gateway
//! keeps, and some ten lives of the gateway, each ended by SIGKILL at a random moment: while it starts, with the cloud there, in an outage,
//! on a line that has fallen silent, while the cloud restarts, in the drain; in half of the campaigns on a disk so slow
//! that many kills fall between the writes of one commit (an acknowledgement that leaves just before its commit is seen
//! there only). The cloud is Debian's mosquitto, with a
//! subscriber at QoS 2 whose session it keeps; the line to it writes down what goes up. At the end everything is healed
//! and the account is made.
//!
//! That "0 lost" means something is shown by controls in the same harness: the same gateway behind a front that
//! acknowledges early, and Mosquitto's bridge.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

use tempfile::TempDir;

use super::balance::{balance, end_all, wait_for_arrivals, wait_for_the_last};
use super::budget::{Budget, Case, Cases};
use super::common::cloud::{Access, Mosquitto};
use super::common::gateway::folder;
use super::common::peers::Subscriber;
use super::common::raw::Version;
use super::ledger::Verdict;
use super::line::{Line, Weather, Wire};
use super::listener::Listener;
use super::publisher::{Habit, Publisher};
use super::random::Random;
use super::subject::{Kind, Subject, Terms};

/// Lives of one campaign.
const KILLS: usize = 10;

/// What the gateway has in flight at QoS 1 at most, by default, and so what it repeats at most after a kill.
const WINDOW: usize = 100;

/// When nothing has arrived for so long, what is missing will not come.
const QUIET: Duration = Duration::from_secs(30);
/// The same for those who have promised nothing.
const QUIET_OF_OTHERS: Duration = Duration::from_secs(6);

#[test]
fn no_kill_at_any_moment_loses_what_was_acknowledged_or_doubles_it_at_qos_2() {
    // A full window at 3.1.1 at the moment of a kill, and a cloud that counts what it holds.
    let mut budget = Budget::begin("kills", Cases { short: 3, long: 100 }).with_found(&[1523700069]);
    let (mut all, mut moments) = (Verdict::default(), Moments::default());
    while let Some(case) = budget.next() {
        let outcome = Campaign::begun(&case, Kind::Tidegate, case.seed % 2 == 0).run();
        let most = outcome.most_repeats();
        budget.say(format!("seed {}: {}; {}; {most} at once", case.seed, outcome.moments, outcome.verdict));
        outcome.assert_kept();
        all.add(&outcome.verdict);
        moments += outcome.moments;
    }
    budget.say(format!("all: {moments}; {all}"));
    assert!(all.acknowledged > 100, "hardly anything was acknowledged: {all}");
}

#[test]
fn the_same_kills_catch_a_front_that_acknowledges_early_and_the_bridge_of_mosquitto() {
    let mut budget = Budget::begin("kills_controls", Cases { short: 1, long: 10 });
    let kinds = [Kind::EarlyTidegate, Kind::Bridge, Kind::BridgeThatSaves, Kind::Tidegate];
    let mut sums = kinds.map(|kind| (kind, Verdict::default(), Moments::default()));
    while let Some(case) = budget.next() {
        for (kind, sum, moments) in &mut sums {
            // The short form needs to see that the harness bites, no more.
            if budget.share().is_none() && matches!(kind, Kind::BridgeThatSaves | Kind::Tidegate) {
                continue;
            }
            let outcome = Campaign::begun(&case, *kind, true).run();
            budget.say(format!("seed {}: {}: {}", case.seed, kind.name(), outcome.verdict));
            sum.add(&outcome.verdict);
            *moments += outcome.moments;
        }
    }
    budget.say("| killed at random moments | kills | acknowledged | lost | doubled at QoS 2 |\n|---|---|---|---|---|");
    for (kind, sum, moments) in sums.iter().filter(|(_, sum, _)| sum.acknowledged > 0) {
        let Verdict { acknowledged, lost, doubled, .. } = sum;
        println!("| {} | {} | {acknowledged} | {lost} | {doubled} |", kind.name(), moments.kills());
    }
    for (kind, sum, _) in &sums[..2] {
        assert!(sum.lost > 0, "the harness must see that {} loses: {sum}", kind.name());
    }
}

/// In which moments the kills fell.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moments {
    starting: usize,
    online: usize,
    draining: usize,
    cut: usize,
    silent: usize,
    /// Lives in which something was acknowledged.
    answered: usize,
}

impl Moments {
    fn kills(self) -> usize {
        self.starting + self.online + self.draining + self.cut + self.silent
    }
}

impl AddAssign for Moments {
    fn add_assign(&mut self, other: Moments) {
        self.starting += other.starting;
        self.online += other.online;
        self.draining += other.draining;
        self.cut += other.cut;
        self.silent += other.silent;
        self.answered += other.answered;
    }
}

impl fmt::Display for Moments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Moments { starting, online, draining, cut, silent, answered } = self;
        write!(
            f,
            "{} kills ({starting} while starting, {online} online, {draining} in a drain, {cut} in an outage, {silent} \
             on a silent line; {answered} processes had acknowledged something)",
            self.kills()
        )
    }
}

/// One store and what happens to it.
struct Campaign {
    random: Random,
    _folder: TempDir,
    cloud: Mosquitto,
    application: Subscriber,
    line: Line,
    subject: Subject,
    publishers: Vec<Publisher>,
    /// At the gateway itself, where that keeps sessions.
    listener: Option<Listener>,
    moments: Moments,
}

struct Outcome {
    verdict: Verdict,
    moments: Moments,
    wire: Wire,
    refused: u64,
    forgotten: u64,
}

impl Campaign {
    fn begun(case: &Case, kind: Kind, is_lenient: bool) -> Campaign {
        let mut random = case.random.clone();
        let terms = Terms {
            protocol: random.pick::<&str>(&["3.1.1", "5"]),
            // In half of the campaigns a drain lasts for several lives.
            pace: random.happens(50).then(|| random.within(500..2000)),
            is_disk_slow: random.happens(50),
        };
        let folder = folder();
        let mut cloud = Mosquitto::prepared(folder.path(), Access::Open);
        if is_lenient {
            // After a restart Mosquitto's bridge sends more at once than Mosquitto takes, and is thrown out for ever.
            cloud.configure("max_inflight_messages 0");
        }
        cloud.start();
        let application = Subscriber::started(cloud.port, "application", &["factory7/#"]);
        let line = Line::laid(cloud.port);
        let subject = Subject::prepared(kind, folder.path(), line.port, &terms);
        let publishers = habits(&mut random)
            .into_iter()
            .map(|habit| Publisher::started(subject.port(), habit, random.branch()))
            .collect();
        let moments = Moments::default();
        Campaign { random, _folder: folder, cloud, application, line, subject, publishers, listener: None, moments }
    }

    fn run(mut self) -> Outcome {
        let mut before = BTreeMap::new();
        if self.subject.promises() {
            // It has subscribed when it gets something: what is published from then on is for it as well.
            self.subject.start();
            let version = *self.random.pick(&[Version::V311, Version::V5]);
            self.listener = Some(Listener::started(self.subject.port(), version));
            self.subject.wait_for_a_subscriber();
            before = self.publishers.iter().map(|one| (one.habit.topic(), one.begun_count())).collect();
            self.subject.kill(true);
        }
        for _ in 0..KILLS {
            self.life();
        }
        self.heal();
        if let Some(listener) = &self.listener {
            listener.assert_has_all(&self.publishers, &before);
        }
        self.account()
    }

    /// From a start to a kill, with a change of the weather somewhere.
    fn life(&mut self) {
        let next = self.next_weather();
        let changes_before = self.random.happens(30);
        if changes_before {
            self.change(next);
        }
        let acknowledged_before = self.acknowledged();
        // Some are killed before they are ready: while the store is opened and its log recovered.
        if self.random.happens(15) && self.subject.can_be_killed_early() {
            self.subject.spawn();
            std::thread::sleep(Duration::from_millis(self.random.within(1..80)));
            self.note_moment(true, acknowledged_before);
            self.line.note("kill while it starts");
            self.subject.kill(false);
            return;
        }
        self.subject.start();
        let (until_change, after_change) = (self.random.within(0..700), self.random.within(20..900));
        std::thread::sleep(Duration::from_millis(until_change));
        if !changes_before {
            self.change(next);
        }
        std::thread::sleep(Duration::from_millis(after_change));
        self.note_moment(false, acknowledged_before);
        self.line.note("kill");
        self.subject.kill(true);
    }

    fn next_weather(&mut self) -> Weather {
        let bad = [Weather::Cut, Weather::Silent];
        match self.line.weather() {
            Weather::Fair if self.random.happens(40) => *self.random.pick(&bad),
            Weather::Fair => Weather::Fair,
            stays if self.random.happens(30) => stays,
            _ => Weather::Fair,
        }
    }

    fn change(&mut self, next: Weather) {
        let now = self.line.weather();
        if (now, next) == (Weather::Silent, Weather::Fair) && self.random.happens(50) {
            // What was under way is lost with its connection.
            self.line.set(Weather::Cut);
        }
        if (now, next) == (Weather::Fair, Weather::Fair) && self.random.happens(30) {
            // The cloud itself is restarted in order, and keeps its sessions.
            self.line.note("the cloud stops");
            self.cloud.stop();
            self.cloud.start();
            self.line.note("the cloud has started");
        }
        self.line.set(next);
    }

    fn note_moment(&mut self, is_starting: bool, acknowledged_before: u64) {
        let acknowledged = self.acknowledged();
        let went_up = self.line.messages() as u64;
        let moments = &mut self.moments;
        let place = match self.line.weather() {
            _ if is_starting => &mut moments.starting,
            Weather::Cut => &mut moments.cut,
            Weather::Silent => &mut moments.silent,
            Weather::Fair if acknowledged > went_up + 200 => &mut moments.draining,
            Weather::Fair => &mut moments.online,
        };
        *place += 1;
        moments.answered += usize::from(acknowledged > acknowledged_before);
    }

    fn acknowledged(&self) -> u64 {
        self.publishers.iter().map(Publisher::acknowledged_count).sum()
    }

    /// Everything works again, the publishers finish what they have begun.
    fn heal(&mut self) {
        self.line.set(Weather::Cut);
        self.line.set(Weather::Fair);
        self.subject.hurry();
        self.subject.start();
        end_all(&self.publishers);
    }

    fn account(mut self) -> Outcome {
        let promises = self.subject.promises();
        let quiet = if promises { QUIET } else { QUIET_OF_OTHERS };
        wait_for_arrivals(&mut self.application, &self.publishers, quiet);
        if promises {
            wait_for_the_last(&mut self.application, self.subject.port());
        }
        let mut verdict = balance(&mut self.application, &self.publishers);
        let wire = self.line.wire();
        // Mosquitto's restart at times gives its subscriber a second time what it got once.
        verdict.attribute(|topic, key| wire.cycles(topic, key));
        let refused = self.publishers.iter().map(Publisher::refused).sum();
        let forgotten = self.publishers.iter().map(Publisher::forgotten_sessions).sum();
        Outcome { verdict, moments: self.moments, wire, refused, forgotten }
    }
}

impl Outcome {
    /// QoS 1: how many messages were sent again at most on one connection.
    fn most_repeats(&self) -> usize {
        self.wire.repeats.values().max().copied().unwrap_or(0)
    }

    #[track_caller]
    fn assert_kept(&self) {
        let Outcome { verdict, wire, refused, forgotten, .. } = self;
        let stories: Vec<String> = verdict.victims.iter().take(3).map(|(topic, key)| wire.story(topic, *key)).collect();
        assert!(verdict.is_clean(), "{verdict}\n{}\n{}", verdict.examples.join("\n"), stories.join("\n"));
        // Also where the cloud had not got the first one, and so nothing arrived twice.
        let doubled = wire.doubled().first().map(|(topic, key)| wire.story(topic, *key));
        assert!(doubled.is_none(), "given to the cloud as new more than once: {}", doubled.unwrap_or_default());
        assert_eq!(*refused, 0, "nothing may be refused");
        assert_eq!(wire.forgotten_sessions, 0, "the cloud forgot a session");
        // So nothing was begun anew either: each message is one from its publisher to the cloud.
        assert_eq!(*forgotten, 0, "the gateway forgot sessions of publishers");
        assert!(wire.changed.is_empty(), "a repeat is not what it repeats: {:?}", wire.changed.first());
        assert!(wire.twice.is_empty(), "sent twice on one connection: {:?}", wire.twice.first());
        let most = self.most_repeats();
        assert!(most <= WINDOW, "{most} QoS 1 messages were repeated on one connection: {:?}", wire.repeats);
    }
}

/// Four publishers: every version and QoS.
fn habits(random: &mut Random) -> Vec<Habit> {
    Habit::of_each_kind(|version| {
        (
            // Version 5 brings a Receive Maximum, of which Mosquitto's is 20.
            random.within(1..if version == Version::V5 { 20 } else { 60 }),
            Duration::from_micros(random.within(1000..8000)),
            random.within(10..600),
        )
    })
}
