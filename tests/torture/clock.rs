//! Item 9: somebody sets the wall clock while the gateway works. Is nothing lost, does nothing time out that should
//! not, is every reading's order right, and its time either right or said to be what it is?
//!
//! The faults are steps of the wall clock: to 1970, a day back, 400 days ahead, past 2038. They are survivable because
//! all timers are monotonic and stamps go on from the last synchronisation. The control: a gateway whose owner trusts
//! the clock stamps what it shows, so that the steps are seen to reach the program.

use std::fs::File;
use std::time::{SystemTime, UNIX_EPOCH};

use super::budget::{Budget, Case, Cases};
use super::common::account::assert_whole_in_order_and_once;
use super::common::cloud::Mosquitto;
use super::common::faketime::WallClock;
use super::common::gateway::{FORWARD_PLANT, Gateway, PROGRAM, folder, uplink};
use super::common::peers::{Publisher, Received, Subscriber};
use super::common::process::Process;
use super::common::{PATIENCE, wait_until};

const STEPS: [&str; 5] = ["@1970-01-01 00:00:10", "-1d", "+400d", "@2038-01-19 03:14:00", "+0"];

fn now_ms() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "the truth against which stamps are held")]
    let now = SystemTime::now();
    i64::try_from(now.duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// RFC 3339 in UTC to milliseconds.
fn ms_of(text: &str) -> i64 {
    let number = |from: usize, to: usize| text[from..to].parse::<i64>().unwrap();
    let (year, month, day) = (number(0, 4), number(5, 7), number(8, 10));
    let leap_days = |year: i64| year / 4 - year / 100 + year / 400;
    let before_month = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][usize::try_from(month - 1).unwrap()];
    let is_leap = leap_days(year) > leap_days(year - 1);
    let days = (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969) + before_month + day - 1
        + i64::from(is_leap && month > 2);
    ((days * 24 + number(11, 13)) * 60 + number(14, 16)) * 60_000 + number(17, 19) * 1000 + number(20, 23)
}

fn readings(messages: &[Received]) -> Vec<serde_json::Value> {
    let readings = messages.iter().filter(|message| message.topic == "factory7/plant/meter/seconds");
    readings.map(Received::json).collect()
}

fn step_under_load(case: &mut Case, trusts: bool) {
    let folder = folder();
    let clock = WallClock::right(folder.path());
    let meter = ["simulate", "modbus", "--listen", "127.0.0.1:0", "--units", "1"];
    let mut meter = Process::start("simulate", PROGRAM, &meter);
    let line = meter.wait_for_line(PATIENCE, "where it serves", |line| line.contains("tcp://"));
    let address = line.split("tcp://").nth(1).unwrap().split(';').next().unwrap().to_owned();
    let cloud = Mosquitto::started(folder.path());
    let mut application = Subscriber::started(cloud.port, "application", &["factory7/#"]);

    // A device that is given ten seconds does not fail because the machine is busy.
    let tables = format!(
        "[queue]\nmax_age = \"30 days\"\n\n{}{FORWARD_PLANT}\n[modbus.meter]\nline = \"tcp://{address}\"\nunit_id = 1\n\
         poll = \"50ms\"\ntimeout = \"10s\"\ntopic = \"plant/{{device}}/{{point}}\"\n\
         point.seconds = {{ address = \"holding:0\", type = \"u16\" }}\n",
        uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "keep_alive = \"60s\"")
    );
    let mut gateway = Gateway::prepared(folder.path(), &tables);
    let mark = folder.path().join("synchronized");
    if !trusts {
        gateway.set_clock(&format!("clock = \"auto\"\nclock_mark = \"{}\"", mark.display()));
    }
    File::create(&mark).unwrap();
    let begun_ms = now_ms();
    gateway.start_with(&clock.environment());
    gateway.wait_until_connected();
    let connected_since = gateway.status().unwrap()["uplinks"]["cloud"]["since"].clone();
    let mut publishers = [("1", "plant/one"), ("2", "plant/two")].map(|(qos, topic)| {
        Publisher::started(gateway.port, &format!("client-{qos}"), topic, 600, &["--qos", qos, "--pause", "0.005"])
    });

    let mut steps: Vec<&str> = STEPS.to_vec();
    for _ in 0..case.random.within(0..4) {
        let place = usize::try_from(case.random.within(0..steps.len() as u64)).unwrap();
        steps.insert(place, case.random.pick::<&str>(&STEPS));
    }
    let mut is_seen_beyond_2030 = false;
    for (place, step) in steps.iter().enumerate() {
        clock.set(step);
        let before = readings(application.received()).len();
        let enough = 600 * (place + 1) / (steps.len() + 1);
        publishers.iter_mut().for_each(|publisher| publisher.wait_for_acknowledged(enough));
        let what = format!("readings that were taken after the clock was set to {step}");
        application.wait(&what, |messages| readings(messages).len() > before + 6);
        let shown_s = clock.shown_s();
        is_seen_beyond_2030 |= shown_s > 1_900_000_000;
    }
    assert!(is_seen_beyond_2030, "faketime does not work here");
    publishers.iter_mut().for_each(Publisher::wait_until_done);
    for topic in ["factory7/plant/one", "factory7/plant/two"] {
        application.wait_for_count(topic, 600);
    }
    gateway.wait_until_drained();
    let ended_ms = now_ms();

    let (seed, steps) = (case.seed, steps.join(", "));
    let what = |topic: &str| format!("seed {seed}, {topic}, clock set to {steps}");
    for topic in ["factory7/plant/one", "factory7/plant/two"] {
        assert_whole_in_order_and_once(&what(topic), &application.numbers_on(topic), 0..600);
    }
    let status = gateway.status().unwrap();
    let cloud_now = &status["uplinks"]["cloud"];
    assert_eq!((&cloud_now["since"], &cloud_now["state"]), (&connected_since, &"connected".into()), "{status}");
    assert_eq!((&cloud_now["resent"], &status["losses"]), (&0.into(), &serde_json::json!({})), "{status}");
    assert_eq!(status["devices"]["meter"]["failures"], 0, "{status}");
    assert_eq!(status["sessions"]["protocol_errors"], 0, "{status}");
    assert!(publishers.iter().all(|publisher| publisher.connections() == 1), "no local client was cut off");

    let readings = readings(application.received());
    let numbers: Vec<u64> = readings.iter().map(|reading| reading["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "{}", what("readings"));
    let times: Vec<i64> = readings.iter().map(|reading| ms_of(reading["ts"].as_str().unwrap())).collect();
    if trusts {
        const DAY: i64 = 86_400_000;
        // Past 2038 it goes on from there; a clock of 1970 is believed by nobody, and the boot knew better.
        let beyond_ms = ms_of("2038-01-19T03:14:00.000Z") - begun_ms;
        let span_ms = ended_ms - begun_ms;
        let windows = [0, -DAY, 400 * DAY, beyond_ms].map(|off_ms| {
            let from_ms = begun_ms + off_ms - 2000;
            from_ms..from_ms + span_ms + 4000
        });
        for window in &windows {
            let is_shown = times.iter().any(|time| window.contains(time));
            assert!(is_shown, "the control: no reading of {window:?}, though the clock was set so");
        }
        let wrong = times.iter().find(|time| !windows.iter().any(|window| window.contains(time)));
        assert_eq!(wrong, None, "{}", what("readings"));
    } else {
        assert!(times.is_sorted(), "{}", what("readings"));
        let wrong = times.iter().find(|time| !(begun_ms - 2000..=ended_ms + 2000).contains(*time));
        assert_eq!(wrong, None, "between {begun_ms} and {ended_ms}: {}", what("readings"));
        assert!(readings.iter().all(|reading| reading.get("clock").is_none()), "{}", what("readings"));
    }
    gateway.stop();
}

#[test]
fn steps_of_the_wall_clock_lose_nothing_and_time_nothing_out() {
    let mut budget = Budget::begin("clock", Cases { short: 1, long: 30 });
    let mut runs = 0;
    for mut case in budget.by_ref() {
        for trusts in [false, true] {
            step_under_load(&mut case, trusts);
            runs += 1;
        }
    }
    budget.say(format!("{runs} runs with five to eight steps each: 0 lost, 0 doubled, 0 timed out, 0 wrong times"));
}

#[test]
fn the_clock_of_a_program_under_faketime_is_what_the_test_sets() {
    let folder = folder();
    let clock = WallClock::right(folder.path());
    let is_at = |expected_s: i64| (clock.shown_s() - expected_s).abs() < 60;
    wait_until(PATIENCE, "the clock is right", || is_at(now_ms() / 1000).then_some(()).ok_or_else(String::new));
    clock.set("+400d");
    assert!(is_at(now_ms() / 1000 + 400 * 86_400));
    clock.set("@1970-01-01 00:00:10");
    assert!(is_at(10));
}
