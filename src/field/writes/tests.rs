//! The clerk before a line that is played here, on a real queue: what begins, and what comes of it when the line fails.

use std::collections::BTreeMap;

use serde_json::json;

use super::super::modbus_lines;
use super::*;
use crate::clock::{Clock, ClockSource};
use crate::config::{LoadRequest, load};
use crate::health::Health;
use crate::queue::{self, Inlet, Opened, QueueSettings, StreamSpec, Submission};
use crate::router::{Router, RouterLimits};

const DEADLINE: Duration = Duration::from_secs(30);

const DEVICE: &str = "[gateway]\nid = \"test\"\n[modbus.d]\nline = \"tcp://127.0.0.1:1\"\nunit_id = 1\n\
    [modbus.d.point]\nlevel = { address = \"holding:1\", type = \"u16\", write = true }\n";

struct Office {
    inlet: Inlet,
    /// Gets what the clerk says.
    answers: Outlet,
    line: LineEnd,
    switchboard: Switchboard,
    config: Arc<Config>,
    health: Health,
    stop: CancellationToken,
    clerk: tokio::task::JoinSet<Result<(), AcceptError>>,
    thread: std::thread::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Office {
    fn opened() -> Office {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tidegate.toml");
        std::fs::write(&file, DEVICE).unwrap();
        let request =
            LoadRequest { root: dir.path().to_owned(), config: Some(file), credentials_dir: None, kept_id: None };
        let config = load(&request).unwrap().config;
        let (clock, health) = (Clock::new(ClockSource::Trusted), Health::default());
        let set_topics = set_topics(&config);
        let answers =
            StreamSpec { name: Arc::from("answers"), rules: queue_rule("field/d/level/result"), own_topic: None };
        let Opened { inlet, mut outlets, worker } = queue::open(QueueSettings {
            set_topics: set_topics.clone(),
            dir: dir.path().join("state"),
            gateway: Arc::from("test"),
            bytes_max: std::num::NonZeroU64::new(8 << 20).unwrap(),
            age_max: None,
            when_full: crate::config::WhenFull::DropOldest,
            hold: None,
            streams: vec![answers, StreamSpec::writes()],
            clock: clock.clone(),
            health: health.clone(),
        })
        .unwrap();
        let thread = std::thread::spawn(move || worker.run().unwrap());
        let router = Router::start(RouterLimits::default()).unwrap();
        let intake = Intake::new(inlet.clone(), router, BTreeMap::new(), clock, health.clone());
        intake.take_writes(set_topics);
        let mut lines = modbus_lines(&config, &health).unwrap();
        let (clerk, switchboard) = Clerk::new(outlets.remove(queue::WRITES).unwrap(), intake, &mut lines);
        let Some(Line::Modbus(line)) = lines.pop() else { panic!("there is one line") };
        let stop = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(clerk.run(stop.clone()));
        let answers = outlets.remove("answers").unwrap();
        let (config, health) = (Arc::new(config), health);
        let line = line.writes.unwrap();
        Office { inlet, answers, line, switchboard, config, health, stop, clerk: tasks, thread, _dir: dir }
    }

    async fn ask(&self, body: &str) {
        let message = Message {
            topic: Topic::new("field/d/level/set").unwrap(),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: None,
            body: Body::Bytes(bytes::Bytes::copy_from_slice(body.as_bytes())),
            origin: Origin::Client(Arc::from("c")),
            received: Clock::new(ClockSource::Trusted).now(),
        };
        self.inlet.append(Submission { message, once: None }).await.unwrap();
    }

    /// What the line is told next.
    async fn told(&self) -> ToLine {
        let mut inbox = self.line.inbox.lock().await;
        tokio::time::timeout(DEADLINE, inbox.recv()).await.unwrap().unwrap()
    }

    async fn order(&self) -> Ticket {
        match self.told().await {
            ToLine::Write(order) => order.ticket,
            other => panic!("{other:?}"),
        }
    }

    async fn tell(&self, event: FromLine) {
        self.line.events.send(event).await.unwrap();
    }

    async fn begin(&self, ticket: Ticket) {
        self.tell(FromLine::Ask { line: 0, ticket }).await;
        assert!(matches!(self.told().await, ToLine::Begin(begun) if begun == ticket));
    }

    async fn answer(&mut self) -> Json {
        let rows = tokio::time::timeout(DEADLINE, self.answers.next(1, 1 << 20)).await.unwrap().unwrap();
        let Body::Bytes(body) = &rows[0].message.body else { panic!("an answer is no reading") };
        serde_json::from_slice(body).unwrap()
    }

    async fn waiting(&self) -> (u64, u64) {
        let stats = self.inlet.stats().await.unwrap();
        let writes = stats.streams[queue::WRITES];
        (writes.waiting, writes.in_flight)
    }

    async fn close(self) {
        let Office { inlet, line, switchboard, stop, mut clerk, thread, .. } = self;
        stop.cancel();
        // The clerk waits for what lines bring to an end, until they are gone.
        drop((line, switchboard));
        tokio::time::timeout(DEADLINE, clerk.join_next()).await.unwrap().unwrap().unwrap().unwrap();
        inlet.stop().await;
        thread.join().unwrap();
    }
}

fn queue_rule(filter: &str) -> Vec<crate::config::ForwardRule> {
    vec![crate::config::ForwardRule {
        filter: crate::message::Filter::new(filter).unwrap(),
        topic: crate::config::TopicTemplate::identity(),
        qos: None,
        when_full: None,
        strict_order: false,
        payload: crate::config::Payload::JSON,
        batch: None,
    }]
}

fn written() -> End {
    End::Written { read: Some(Value::Uint(5)) }
}

#[tokio::test]
async fn that_a_write_begins_is_on_disk_before_the_line_hears_that_it_may() {
    let mut office = Office::opened();
    office.ask("5").await;
    let ticket = office.order().await;
    assert_eq!(office.waiting().await, (1, 0));
    office.begin(ticket).await;
    assert_eq!(office.waiting().await, (1, 1));
    office.tell(FromLine::Done { line: 0, ticket, end: written() }).await;
    assert_eq!(office.answer().await["ok"], true);
    assert_eq!(office.waiting().await, (0, 0));
    office.tell(FromLine::Ask { line: 0, ticket }).await;
    assert!(matches!(office.told().await, ToLine::Drop(_)), "what was answered begins no more");
    office.close().await;
}

#[tokio::test]
async fn a_line_that_fails_leaves_what_it_had_begun_unknown_and_gets_the_rest_again() {
    let mut office = Office::opened();
    office.ask("{\"value\": 1, \"id\": 1}").await;
    office.ask("{\"value\": 2, \"id\": 2}").await;
    let (first, second) = (office.order().await, office.order().await);
    office.begin(first).await;
    office.tell(FromLine::Started { line: 0 }).await;
    let answer = office.answer().await;
    assert_eq!((&answer["id"], &answer["reason"]), (&json!(1), &json!("unknown")));
    assert_eq!(office.order().await, second, "the same one, so that a line that has it knows it");
    // What the line said before it failed comes too late.
    office.tell(FromLine::Done { line: 0, ticket: first, end: written() }).await;
    office.begin(second).await;
    office.tell(FromLine::Done { line: 0, ticket: second, end: written() }).await;
    let answer = office.answer().await;
    assert_eq!((&answer["id"], &answer["ok"]), (&json!(2), &json!(true)), "one answer each");
    assert_eq!(office.waiting().await, (0, 0));
    office.close().await;
}

#[tokio::test]
async fn no_more_wait_for_a_line_than_its_lane_holds_and_the_others_hear_so() {
    let mut office = Office::opened();
    for number in 0..=LANE_MAX {
        office.ask(&number.to_string()).await;
    }
    let answer = office.answer().await;
    assert!(answer["error"].as_str().unwrap().contains("32 writes wait"), "{answer}");
    let tickets: Vec<Ticket> = {
        let mut tickets = Vec::new();
        for _ in 0..LANE_MAX {
            tickets.push(office.order().await);
        }
        tickets
    };
    office.tell(FromLine::Done { line: 0, ticket: tickets[0], end: End::Expired }).await;
    assert_eq!(office.answer().await["reason"], "expired");
    office.ask("7").await;
    office.order().await;
    office.close().await;
}

#[tokio::test]
async fn when_lines_change_what_had_begun_is_unknown_and_the_rest_goes_to_the_line_that_has_the_point_now() {
    let mut office = Office::opened();
    for number in 1..=3 {
        office.ask(&format!("{{\"value\": {number}, \"id\": {number}}}")).await;
    }
    let (first, second) = (office.order().await, office.order().await);
    office.order().await;
    office.begin(first).await;
    // Unchanged, a line keeps what it was given.
    let mut lines = modbus_lines(&office.config, &office.health).unwrap();
    if let Line::Modbus(line) = &mut lines[0] {
        line.writes = Some(office.line.clone());
    }
    office.switchboard.connect(&mut lines).await;
    drop(lines);
    office.tell(FromLine::Done { line: 0, ticket: first, end: written() }).await;
    assert_eq!(office.answer().await["ok"], true);
    office.begin(second).await;

    let mut lines = modbus_lines(&office.config, &office.health).unwrap();
    office.switchboard.connect(&mut lines).await;
    let answer = office.answer().await;
    assert_eq!((&answer["id"], &answer["reason"]), (&json!(2), &json!("unknown")));
    let Some(Line::Modbus(line)) = lines.pop() else { panic!("there is one line") };
    office.line = line.writes.unwrap();
    let third = office.order().await;
    assert!(office.line.number == 1 && third > second);

    // And where nobody has the point any more, whoever asked hears so.
    office.switchboard.connect(&mut []).await;
    let answer = office.answer().await;
    assert_eq!((&answer["id"], &answer["error"]), (&json!(3), &json!("there is no such point any more")));
    assert_eq!(office.waiting().await, (0, 0));
    office.close().await;
}
