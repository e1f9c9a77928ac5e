//! Commands to serial devices: exactly these bytes, at most once, one answer each, whatever the device does and whenever the
//! gateway dies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;
mod writes_support;

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::cloud::Mosquitto;
use common::gateway::{Gateway, PROGRAM, folder, uplink};
use common::peers::{Cable, Subscriber};
use common::process::Process;
use common::{PATIENCE, turn, wait_until};
use serde_json::{Value, json};
use writes_support::Asker;

/// A scripted device at the far end of a cable. It hears lines that end with CR, and remembers them.
#[derive(Clone)]
struct Scale(Arc<Mutex<State>>);

struct State {
    heard: Vec<String>,
    /// What it says to a line; nothing where that is empty.
    says: Box<dyn FnMut(&str) -> String + Send>,
}

impl Scale {
    fn at(cable: &Cable, says: impl FnMut(&str) -> String + Send + 'static) -> Scale {
        let open = || OpenOptions::new().read(true).write(true).open(&cable.far).unwrap();
        let scale = Scale(Arc::new(Mutex::new(State { heard: Vec::new(), says: Box::new(says) })));
        let (mut lines, mut mouth, own): (_, File, _) = (BufReader::new(open()), open(), scale.clone());
        // Ends with its cable.
        std::thread::spawn(move || {
            let mut line = Vec::new();
            while matches!(lines.read_until(b'\r', &mut line), Ok(count) if count > 0) {
                let text = String::from_utf8_lossy(&line).trim().to_owned();
                line.clear();
                let answer = {
                    let mut state = own.0.lock().unwrap();
                    state.heard.push(text.clone());
                    (state.says)(&text)
                };
                if mouth.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        });
        scale
    }

    fn say(&self, says: impl FnMut(&str) -> String + Send + 'static) {
        self.0.lock().unwrap().says = Box::new(says);
    }

    /// What it heard but for questions.
    fn commands(&self) -> Vec<String> {
        self.0.lock().unwrap().heard.iter().filter(|line| *line != "SI").cloned().collect()
    }

    fn heard(&self) -> Vec<String> {
        self.0.lock().unwrap().heard.clone()
    }
}

/// A scale that knows zeroing, taring and a limit, and answers `ES` to what it does not know.
fn usual(line: &str) -> String {
    match line {
        "SI" => "S S 1.50 kg\r\n".to_owned(),
        "T" => "T S 0.25 kg\r\n".to_owned(),
        "Z" => "Z A\r\n".to_owned(),
        _ if line.starts_with("LIM ") => "OK\r\n".to_owned(),
        "BLIND" | "BEEP" => String::new(),
        _ => "ES\r\n".to_owned(),
    }
}

const ASKS: &str = "ask = { send = \"SI\\r\", every = \"100ms\", timeout = \"300ms\" }";

/// A device `scale` with commands of every kind.
fn scale(port: &Path, more: &str) -> String {
    format!(
        "[serial.scale]\nport = \"{}\"\nparse = {{ regex = '^S (?<status>[SD]) (?<weight>[0-9.]+) kg$' }}\n{more}\n\
         [serial.scale.point]\nweight = {{ unit = \"kg\" }}\n[serial.scale.command]\n\
         tare = {{ send = \"T\\r\", good = '^T S\\s+(?<value>[0-9.]+)', bad = '^ES$', per_minute = 1000 }}\n\
         zero = {{ send = \"Z\\r\", good = '^Z A', bad = '^ES', timeout = \"200ms\" }}\n\
         weight = {{ send = \"LIM {{value}}\\r\", min = 0, max = 30, decimals = 2, good = '^OK', bad = '^ES' }}\n\
         light = {{ send = \"LT {{value}}\\r\", values = [\"ON\", \"OFF\"], bad = '^ES', timeout = \"100ms\" }}\n\
         beep = {{ send = \"BEEP\\r\", per_minute = 2 }}\n\
         again = {{ send = \"Z\\r\", good = '^Z A', timeout = \"20s\", idempotent = true }}\n\
         slow = {{ send = \"T\\r\", good = '^T S', timeout = \"20s\" }}\n\
         soon = {{ send = \"T\\r\", good = '^T S', expiry = \"1s\" }}\n",
        port.display()
    )
}

fn is_good(gateway: &Gateway) {
    gateway
        .wait_for_status("the scale answers", |status| (status["devices"]["scale"]["state"] == "good").then_some(()));
}

#[test]
fn what_a_device_makes_of_a_command_is_what_the_answer_says() {
    let _turn = turn();
    let folder = folder();
    let cable = Cable::laid(folder.path());
    let device = Scale::at(&cable, usual);
    let gateway = Gateway::started(folder.path(), &scale(&cable.near, ASKS));
    let mut asker = Asker::connected(gateway.port);
    let tared = asker.asked("scale/tare", "{\"id\": \"t1\"}");
    assert_eq!((&tared["ok"], &tared["value"], &tared["id"]), (&json!(true), &json!(0.25), &json!("t1")), "{tared}");
    assert_eq!((&tared["device"], &tared["command"], tared.get("point")), (&json!("scale"), &json!("tare"), None));
    let zeroed = asker.asked("scale/zero", "");
    assert_eq!((&zeroed["ok"], &zeroed["value"]), (&json!(true), &json!("Z A")), "{zeroed}");
    let limited = asker.asked("scale/weight", "12.5");
    assert_eq!((&limited["ok"], &limited["written"], &limited["value"]), (&json!(true), &json!(12.5), &json!("OK")));
    assert_eq!(asker.asked("scale/beep", "true")["ok"], true, "where no answer is configured, it was sent");
    let dark = asker.asked("scale/light", "\"OFF\"");
    assert_eq!((&dark["ok"], &dark["reason"]), (&json!(false), &json!("failed")), "{dark}");
    assert!(dark["error"].as_str().unwrap().contains("\"ES\""), "{dark}");
    assert_eq!(device.commands(), ["T", "Z", "LIM 12.50", "BEEP", "LT OFF"]);

    device.say(|line| if line == "SI" { usual(line) } else { String::new() });
    assert_eq!(asker.asked("scale/light", "\"ON\"")["ok"], true, "only what it says against it would tell otherwise");
    let silent = asker.asked("scale/zero", "null");
    assert_eq!((&silent["ok"], &silent["reason"]), (&json!(false), &json!("unknown")), "{silent}");
    device.say(|line| if line == "SI" { usual(line) } else { "what?\r\n".to_owned() });
    let odd = asker.asked("scale/zero", "null");
    assert!(odd["reason"] == "unknown" && odd["error"].as_str().unwrap().contains("\"what?\""), "{odd}");

    for (command, body, part) in [
        ("scale/tare", "false", "takes no value"),
        ("scale/weight", "30.01", "more than 30"),
        ("scale/weight", "2.555", "more than 2 digits"),
        ("scale/weight", "\"1\\rRESET\"", "not a number"),
        ("scale/weight", "", "needs a value"),
        ("scale/light", "\"ON\\rRESET\"", "none of ON, OFF"),
        ("scale/tare", "{\"vlaue\": 1}", "`vlaue`"),
    ] {
        let answer = asker.asked(command, body);
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(answer["reason"] == "refused" && error.contains(part), "{body}: {answer}");
    }
    assert_eq!(asker.asked("scale/beep", "")["ok"], true);
    assert!(asker.asked("scale/beep", "")["error"].as_str().unwrap().contains("more than 2 writes in a minute"));
    assert_eq!(device.commands().len(), 9, "nothing else was sent: {:?}", device.commands());
    assert_eq!(asker.rest(), 0, "one answer each");
    gateway.wait_for_status("all are counted", |status| {
        let writes = &status["devices"]["scale"]["writes"];
        let refused = json!({"value": 4, "range": 1, "request": 2, "too-many": 1});
        (writes["refused"] == refused && writes["unknown"] == 2 && writes["failed"] == json!({"refused": 1}))
            .then_some(())
    });
}

#[test]
fn a_device_that_speaks_by_itself_takes_commands_meanwhile_and_one_that_is_never_read_takes_them_too() {
    let _turn = turn();
    let folder = folder();
    let cable = Cable::laid(folder.path());
    // The weight comes before the answer, and after it.
    let device = Scale::at(&cable, |line| format!("S S 2.00 kg\r\n{}S S 3.00 kg\r\n", usual(line)));
    let board = folder.path().join("board");
    std::fs::create_dir(&board).unwrap();
    let other = Cable::laid(&board);
    let relay = Scale::at(&other, |line| if line == "R1" { "\u{6}\r\n".to_owned() } else { "\u{15}\r\n".to_owned() });
    let tables = scale(&cable.near, "")
        + &format!(
            "[serial.relay]\nport = \"{}\"\n[serial.relay.command]\n\
             open = {{ send = \"R1\\r\", good = '^\\x06', bad = '^\\x15' }}\n\
             close = {{ send = [82, 48, 13], good = '^\\x06', bad = '^\\x15' }}\n",
            other.near.display()
        );
    let gateway = Gateway::started(folder.path(), &tables);
    gateway.wait_for_status("the relay is well before anybody has asked anything of it", |status| {
        (status["devices"]["relay"]["state"] == "good").then_some(())
    });
    let mut asker = Asker::connected(gateway.port);
    assert_eq!(asker.asked("scale/tare", "")["value"], 0.25);
    is_good(&gateway);
    assert_eq!(asker.asked("relay/open", "")["ok"], true);
    assert_eq!(asker.asked("relay/close", "")["reason"], "failed");
    assert_eq!((device.commands().len(), relay.heard()), (1, vec!["R1".to_owned(), "R0".to_owned()]));
}

#[test]
fn questions_and_commands_take_turns_and_a_device_that_is_silent_is_sent_nothing() {
    let _turn = turn();
    let folder = folder();
    let cable = Cable::laid(folder.path());
    let device = Scale::at(&cable, usual);
    let asks = ASKS.replace("100ms", "10ms");
    let gateway = Gateway::started(folder.path(), &scale(&cable.near, &asks));
    is_good(&gateway);
    let mut asker = Asker::connected(gateway.port);
    for _ in 0..30 {
        asker.ask_at_once("scale/tare", "");
    }
    let answers: Vec<Value> = (0..30).map(|_| asker.answer("scale/tare")).collect();
    assert!(answers.iter().all(|answer| answer["ok"] == true), "{answers:?}");
    let turns: String = device.heard().iter().map(|line| if line == "SI" { 'q' } else { 'c' }).collect();
    assert!(!turns.contains("cc") && turns.matches('c').count() == 30, "a question has its turn between: {turns}");

    device.say(|_| String::new());
    gateway
        .wait_for_status("the scale is dead", |status| (status["devices"]["scale"]["state"] == "dead").then_some(()));
    let before = device.commands().len();
    let late = asker.asked("scale/soon", "");
    assert_eq!((&late["ok"], &late["reason"]), (&json!(false), &json!("expired")), "{late}");
    asker.ask("scale/tare", "");
    assert_eq!(device.commands().len(), before);
    device.say(usual);
    assert_eq!(asker.answer("scale/tare")["ok"], true, "it was not too old");
}

#[test]
fn an_acknowledged_command_survives_a_kill_until_it_is_carried_out_once() {
    let _turn = turn();
    let folder = folder();
    // No cable yet.
    let near = folder.path().join("near");
    let mut gateway = Gateway::started(folder.path(), &scale(&near, ASKS));
    let mut asker = Asker::connected(gateway.port);
    asker.ask("scale/tare", "{\"id\": 1}");
    asker.ask("scale/weight", "{\"value\": 7, \"id\": 2}");
    gateway.kill();
    drop(asker);
    gateway.start();
    let mut asker = Asker::connected(gateway.port);
    let cable = Cable::laid(folder.path());
    let device = Scale::at(&cable, usual);
    let answers = [asker.answer("scale/tare"), asker.answer("scale/weight")];
    assert_eq!(answers.each_ref().map(|answer| answer["ok"].clone()), [json!(true), json!(true)], "{answers:?}");
    assert_eq!(device.commands(), ["T", "LIM 7.00"]);
    gateway.kill();
    gateway.start();
    assert_eq!(Asker::connected(gateway.port).rest(), 0, "what was answered is forgotten");
    assert_eq!(device.commands().len(), 2);
}

/// Kills the gateway while it waits for an answer; what is told, and what the device heard.
fn killed_while_it_waits(command: &str, cable: &Cable, folder: &Path) -> (Value, Vec<String>) {
    let device = Scale::at(cable, |line| if line == "SI" { usual(line) } else { String::new() });
    let cloud = Mosquitto::started(folder);
    let mut application = Subscriber::started(cloud.port, "application", &["field/+/+/result"]);
    let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "") + &scale(&cable.near, ASKS);
    let mut gateway = Gateway::started(folder, &tables);
    let mut asker = Asker::connected(gateway.port);
    asker.ask(&format!("scale/{command}"), "{\"id\": 5}");
    wait_until(PATIENCE, "the device hears the command", || {
        if device.commands().is_empty() { Err("it does not".to_owned()) } else { Ok(()) }
    });
    gateway.kill();
    drop(asker);
    device.say(usual);
    gateway.start();
    let topic = format!("field/scale/{command}/result");
    application.wait_for_count(&topic, 1);
    gateway.wait_until_drained();
    let received = application.received_on(&topic);
    assert_eq!(received.len(), 1, "one answer, not {received:?}");
    (received[0].json(), device.commands())
}

#[test]
fn a_command_that_had_begun_when_the_gateway_was_killed_is_unknown_and_only_a_harmless_one_is_repeated() {
    let _turn = turn();
    for (command, reason, heard) in [("slow", json!("unknown"), vec!["T"]), ("again", Value::Null, vec!["Z", "Z"])] {
        let folder = folder();
        let cable = Cable::laid(folder.path());
        let (answer, commands) = killed_while_it_waits(command, &cable, folder.path());
        assert_eq!((&answer["reason"], &answer["id"]), (&reason, &json!(5)), "{answer}");
        assert_eq!(commands, heard);
    }
}

#[test]
fn a_port_that_is_pulled_while_a_command_waits_for_its_answer_leaves_it_unknown() {
    let _turn = turn();
    let folder = folder();
    let cable = Cable::laid(folder.path());
    let device = Scale::at(&cable, |line| if line == "SI" { usual(line) } else { String::new() });
    let gateway = Gateway::started(folder.path(), &scale(&cable.near, ASKS));
    is_good(&gateway);
    let mut asker = Asker::connected(gateway.port);
    asker.ask("scale/slow", "");
    wait_until(Duration::from_secs(30), "the device hears the command", || {
        if device.commands().is_empty() { Err("it does not".to_owned()) } else { Ok(()) }
    });
    drop(cable);
    let answer = asker.answer("scale/slow");
    assert_eq!((&answer["ok"], &answer["reason"]), (&json!(false), &json!("unknown")), "{answer}");
}

/// Whether the gateway has this port open.
fn holds(gateway: &Gateway, port: &Path) -> bool {
    let port = std::fs::canonicalize(port).unwrap();
    let open = std::fs::read_dir(format!("/proc/{}/fd", gateway.id())).unwrap().flatten();
    open.filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|target| target == port)
}

#[test]
fn a_command_that_had_begun_when_its_device_is_reloaded_ends_in_its_one_answer_and_the_next_one_goes_to_the_new_device()
{
    let _turn = turn();
    let folder = folder();
    let cable = Cable::laid(folder.path());
    let board = folder.path().join("board");
    std::fs::create_dir(&board).unwrap();
    let other = Cable::laid(&board);
    // Cables end when nobody holds their end, as the gateway does between one line and the next.
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path).unwrap();
    let (_near, _other_near, mut mouth) = (open(&cable.near), open(&other.near), open(&cable.far));
    let device = Scale::at(&cable, |line| if line == "T" { String::new() } else { usual(line) });
    let relay = "[serial.relay]\nport = \"NEAR\"\n[serial.relay.command]\nopen = { send = \"R1\\r\" }\n"
        .replace("NEAR", other.near.to_str().unwrap());
    let gateway = Gateway::started(folder.path(), &(scale(&cable.near, ASKS) + &relay));
    is_good(&gateway);
    assert!(holds(&gateway, &other.near), "the control");
    let mut asker = Asker::connected(gateway.port);
    asker.ask("scale/slow", "{\"id\": \"begun\"}");
    wait_until(PATIENCE, "the device hears the command", || {
        if device.commands().is_empty() { Err("it does not".to_owned()) } else { Ok(()) }
    });
    asker.ask("scale/zero", "{\"id\": \"waits\"}");

    let text = std::fs::read_to_string(gateway.config_path()).unwrap();
    let changed = text.replace(&relay, "").replace("every = \"100ms\"", "every = \"70ms\"").replace("Z A", "Z A*");
    std::fs::write(gateway.config_path(), changed).unwrap();
    let path = gateway.config_path();
    let mut reload = Process::start("reload", PROGRAM, &["reload", "--config", path.to_str().unwrap()]);
    // Lines that are to end are told so all at once: the relay has ended, the scale has not.
    wait_until(PATIENCE, "the relay's port is closed", || {
        if holds(&gateway, &other.near) { Err("it is not".to_owned()) } else { Ok(()) }
    });
    assert!(holds(&gateway, &cable.near), "a command is under way");
    assert_eq!(reload.status(), None, "the reload waits for it");
    mouth.write_all(b"T S 0.75 kg\r\n").unwrap();
    let answer = asker.answer("scale/slow");
    assert_eq!((&answer["ok"], &answer["id"]), (&json!(true), &json!("begun")), "{answer}");
    let answer = asker.answer("scale/zero");
    assert_eq!((&answer["ok"], &answer["id"]), (&json!(true), &json!("waits")), "{answer}");
    assert_eq!(reload.wait(PATIENCE).code(), Some(0), "{}", reload.transcript());
    assert_eq!(device.commands(), ["T", "Z"], "each was sent once");
    assert_eq!(asker.rest(), 0, "one answer each");
    is_good(&gateway);
}

#[test]
fn who_may_not_publish_a_command_moves_nothing() {
    let _turn = turn();
    let folder = folder();
    let cable = Cable::laid(folder.path());
    let device = Scale::at(&cable, usual);
    let rights =
        "[broker.anonymous]\npublish = [\"field/scale/tare/set\"]\nsubscribe = [\"field/+/+/result\"]\n".to_owned();
    let gateway = Gateway::started(folder.path(), &(rights + &scale(&cable.near, ASKS)));
    let publish = |command: &str| {
        let topic = format!("field/scale/{command}/set");
        let words = ["-V", "5", "-q", "1", "-p", &gateway.port.to_string(), "-t", &topic, "-n"];
        let output = Command::new("mosquitto_pub").args(words).output().unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = publish("zero");
    assert!(said.contains("ot authorized"), "{said}");
    let mut asker = Asker::connected(gateway.port);
    publish("tare");
    assert_eq!(asker.answer("scale/tare")["ok"], true);
    assert_eq!((asker.rest(), device.commands()), (0, vec!["T".to_owned()]));
}

#[test]
fn check_says_what_is_wrong_with_a_command() {
    let folder = folder();
    let path = folder.path().join("tidegate.toml");
    let check = |command: &str| {
        let text = format!(
            "[gateway]\nid = \"g\"\nstate_dir = \"{}\"\n[serial.d]\nport = \"/dev/ttyS0\"\n[serial.d.command]\n{command}\n",
            folder.path().display()
        );
        std::fs::write(&path, text).unwrap();
        let output = Command::new(PROGRAM).args(["check", "--config"]).arg(&path).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr))
    };
    let (code, said) = check("c = { send = \"T\\r\" }");
    assert_eq!(code, Some(0), "{said}");
    for (command, problem) in [
        ("c = { good = '^OK' }", "`send` is missing"),
        ("c = { send = \"\" }", "must not be empty"),
        ("c = { send = \"{value}{value}\" }", "can stand in it once"),
        ("c = { send = \"T\", min = 1 }", "`send` has no place for one"),
        ("c = { send = \"{value}\", min = 2, max = 1 }", "must not be less than `min`"),
        ("c = { send = \"{value}\", min = 2, values = [\"A\"] }", "`min` is for numbers"),
        ("c = { send = \"{value}\", values = [] }", "has 0 words"),
        ("c = { send = \"T\", timeout = \"1s\" }", "nothing is waited for"),
        ("c = { send = \"T\", good = '(' }", "`good`: unclosed group"),
        ("c = { send = \"T\", expires = \"1s\" }", "it is called `expiry`"),
        ("\"a/b\" = { send = \"T\" }", "a name must not contain"),
        (
            "c = { send = \"T\" }\n[serial.e]\nport = \"/dev/ttyS1\"\ntopic = \"field/d/{point}\"\n[serial.e.command]\nc = { send = \"T\" }",
            "both written on",
        ),
        (
            "c = { send = \"T\" }\n[serial.e]\nport = \"/dev/ttyS1\"\nask = { send = \"a\" }\n[serial.e.command]\nc = { send = \"T\" }",
            "`ask` needs `parse`",
        ),
        ("c = { send = \"T\" }\n[serial.e]\nport = \"/dev/ttyS1\"", "`parse` is missing"),
    ] {
        let (code, said) = check(command);
        assert!(code == Some(78) && said.contains(problem), "{command}: {said}");
    }
}
