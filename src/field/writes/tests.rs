//! The clerk before a line that is played here, on a real queue: what begins, and what comes of it when the line fails.

use std::collections::BTreeMap;

use serde_json::json;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_serial::{SerialPort as _, SerialStream};

use super::super::device::Desk;
use super::super::tending::Tending;
use super::super::{Lines, modbus_lines};
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

fn loaded(dir: &tempfile::TempDir, text: &str) -> Config {
    let file = dir.path().join("tidegate.toml");
    std::fs::write(&file, text).unwrap();
    let request = LoadRequest { root: dir.path().to_owned(), config: Some(file), credentials_dir: None, kept_id: None };
    load(&request).unwrap().config
}

impl Office {
    fn opened() -> Office {
        Office::opened_with(DEVICE)
    }

    fn opened_with(device: &str) -> Office {
        let dir = tempfile::tempdir().unwrap();
        let config = loaded(&dir, device);
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
            keep: None,
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
async fn a_write_that_comes_when_its_line_has_ended_waits_for_the_next_one_or_for_the_next_start() {
    let mut office = Office::opened();
    office.line.inbox.lock().await.close();
    office.ask("{\"value\": 1, \"id\": 1}").await;
    // The second is judged after the first, and its answer would come after that one's.
    office.ask("no value").await;
    assert_eq!(office.answer().await["reason"], "refused");
    assert_eq!(office.waiting().await, (1, 0), "nobody was told that the first was refused");

    let mut lines = modbus_lines(&office.config, &office.health).unwrap();
    office.switchboard.connect(&mut lines).await;
    let Some(Line::Modbus(line)) = lines.pop() else { panic!("there is one line") };
    office.line = line.writes.unwrap();
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

#[tokio::test]
async fn what_goes_to_another_line_is_counted_once_against_per_minute_which_no_change_of_lines_forgets() {
    let mut office = Office::opened_with(&DEVICE.replace("write = true", "write = { per_minute = 1 }"));
    office.ask("{\"value\": 1, \"id\": 1}").await;
    office.order().await;
    office.switchboard.connect(&mut []).await;
    assert_eq!(office.answer().await["error"], "there is no such point any more");
    for number in 1..=2 {
        let mut lines = modbus_lines(&office.config, &office.health).unwrap();
        office.switchboard.connect(&mut lines).await;
        let Some(Line::Modbus(line)) = lines.pop() else { panic!("there is one line") };
        office.line = line.writes.unwrap();
        assert_eq!(office.line.number, number);
    }
    office.ask("{\"value\": 2, \"id\": 2}").await;
    let answer = office.answer().await;
    assert!(answer["error"].as_str().unwrap().contains("more than 1 writes in a minute"), "{answer}");
    office.close().await;

    let mut office = Office::opened_with(&DEVICE.replace("write = true", "write = { per_minute = 1 }"));
    office.ask("1").await;
    let first = office.order().await;
    let mut lines = modbus_lines(&office.config, &office.health).unwrap();
    office.switchboard.connect(&mut lines).await;
    let Some(Line::Modbus(line)) = lines.pop() else { panic!("there is one line") };
    office.line = line.writes.unwrap();
    assert!(office.order().await > first, "it waits for the other line now");
    office.close().await;
}

#[tokio::test]
async fn a_serial_line_that_is_to_end_begins_nothing_more_and_ends_when_the_command_that_had_begun_is_answered() {
    let (mut device, port) = SerialStream::pair().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "[gateway]\nid = \"test\"\n[serial.scale]\nport = \"{}\"\n[serial.scale.command]\n\
         zero = {{ send = \"Z\\r\", good = \"^OK\", timeout = \"60s\" }}\n",
        port.name().unwrap()
    );
    drop(port);
    let config = loaded(&dir, &text);
    let lines = || Lines::new(&config, &Health::default()).unwrap().0;
    let (events, mut said) = mpsc::channel(64);
    let switchboard = Switchboard { events, next: AtomicUsize::new(0) };
    let mut ours = lines();
    let layout = switchboard.lay_out(&mut ours);
    let target = layout.targets.get(&Topic::new("field/scale/zero/set").unwrap()).unwrap();
    let act = target.act(None).unwrap();
    let (line, end) = (ours.pop().unwrap(), &layout.inboxes[&target.line]);

    let (outbox, _inbox) = mpsc::channel(64);
    let (desk, stop) = (Desk { outbox, clock: Clock::new(ClockSource::Trusted) }, CancellationToken::new());
    let mut tending = Tending::new(desk, stop.clone());
    tending.add(line);
    let mut hear = async || tokio::time::timeout(DEADLINE, said.recv()).await.unwrap().unwrap();
    assert!(matches!(hear().await, FromLine::Started { line: 0 }));
    for ticket in 1..=2 {
        let order = Order { ticket, unit: 0, act: act.clone(), expires: Instant::now() + DEADLINE * 10 };
        end.send(ToLine::Write(Box::new(order))).await.unwrap();
    }
    assert!(matches!(hear().await, FromLine::Ask { ticket: 1, .. }));

    // Configured as it is, it goes on, and has the way to the clerk that it had.
    tending.change(lines(), Some(&switchboard)).await;
    let FromLine::Lines(same) = hear().await else { panic!("the clerk is told of the lines") };
    assert!(same.inboxes[&0].same_channel(end) && same.inboxes.len() == 1);

    // While it is to end, the first is sent and answered, and the second is not begun.
    let change = tending.change(Vec::new(), Some(&switchboard));
    let device = async {
        tokio::task::yield_now().await;
        end.send(ToLine::Begin(1)).await.unwrap();
        let mut bytes = [0; 2];
        tokio::time::timeout(DEADLINE, device.read_exact(&mut bytes)).await.unwrap().unwrap();
        assert_eq!(&bytes, b"Z\r");
        device.write_all(b"OK\r\n").await.unwrap();
    };
    tokio::join!(change, device);
    let ended = hear().await;
    assert!(matches!(ended, FromLine::Done { ticket: 1, end: End::Written { read: Some(_) }, .. }), "{ended:?}");
    let FromLine::Lines(none) = hear().await else { panic!("the second may be asked for by nobody") };
    assert!(none.inboxes.is_empty());
}
