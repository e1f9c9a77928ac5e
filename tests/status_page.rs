//! The status page before a real browser, the metrics before Prometheus' own parser, and callers who mean no good.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::time::Instant;

use common::cloud::Mosquitto;
use common::gateway::{FORWARD_PLANT, Gateway, PROGRAM, folder, uplink};
use common::process::Process;
use common::raw::{Heard, RawClient, Version};
use common::{PATIENCE, peers, port, turn, wait_for, wait_until};

/// A gateway with a page, a cloud and a device; it has the page at `page`.
struct Site {
    cloud: Mosquitto,
    gateway: Gateway,
    _device: Process,
    page: u16,
}

impl Site {
    fn started(folder: &Path) -> Site {
        let cloud = Mosquitto::started(folder);
        let (page, device) = (port::free(), port::free());
        let listen = format!("127.0.0.1:{device}");
        let simulator = Process::start("device", PROGRAM, &["simulate", "modbus", "--listen", &listen]);
        let tables = uplink(&format!("mqtt://127.0.0.1:{}", cloud.port), "")
            + FORWARD_PLANT
            + &format!(
                "[web]\nbind = \"127.0.0.1:{page}\"\n[modbus.chiller]\nline = \"tcp://{listen}\"\nunit_id = 1\npoll = \
                 \"300ms\"\n[modbus.chiller.point]\nsupply = {{ address = \"holding:0\", type = \"u16\", unit = \"°C\" }}\n"
            );
        let gateway = Gateway::started(folder, &tables);
        Site { cloud, gateway, _device: simulator, page }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.page)
    }

    /// The answer to a GET: its head, and its body.
    fn get(&self, path: &str) -> (String, String) {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
    }

    fn ask(&self, request: &[u8]) -> (String, String) {
        let answer = self.say(request);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        (head.to_owned(), body.to_owned())
    }

    /// Sends some bytes and hears all that comes back.
    fn say(&self, bytes: &[u8]) -> Vec<u8> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.page)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        // Whoever is refused in the middle of it may see a broken pipe.
        let _refused = socket.write_all(bytes).and_then(|()| socket.shutdown(Shutdown::Write));
        let mut answer = Vec::new();
        let _cut = socket.read_to_end(&mut answer);
        answer
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path).1).unwrap()
    }
}

fn chromium() -> PathBuf {
    let found =
        ["/usr/bin/chromium", "/usr/bin/chromium-browser"].map(PathBuf::from).into_iter().find(|path| path.exists());
    found.expect("chromium is missing: ./test.sh installs it")
}

#[test]
fn a_browser_sees_values_change_and_an_outage_and_nothing_that_a_client_is_called_becomes_markup() {
    let _turn = turn();
    let folder = folder();
    let mut site = Site::started(folder.path());
    let name = "<img src=x onerror=\"document.title='taken'\"><b>";
    let client = RawClient::connected(site.gateway.port, Version::V5, name);
    let shots = std::env::var("TIDEGATE_SCREENSHOTS").ok();
    let argument = json!({ "url": site.url("/"), "chromium": chromium(), "shots": shots });
    let mut browser = peers::start_javascript("page", &argument);
    let mut hear = |what: &str| -> Value {
        let line = browser.wait_for_line(PATIENCE * 2, what, |line| line.contains(&format!("\"what\":\"{what}\"")));
        serde_json::from_str(&line).unwrap()
    };
    let well = hear("all is well");
    assert_eq!(well["title"], "hall-3 – Tidegate");
    let values = hear("values change");
    assert_ne!(values["before"], values["after"]);
    assert!(values["after"].as_str().unwrap().ends_with(" °C"), "{values}");
    assert_eq!((&values["clients"][0], &values["markup"]), (&json!(name), &json!(0)));
    site.cloud.stop();
    let stopped = Instant::now();
    let outage = hear("an outage shows");
    println!("the outage stood on the page after {} ms", stopped.elapsed().as_millis());
    assert!(outage["verdict"].as_str().unwrap().contains("What is acknowledged waits in the queue"), "{outage}");
    assert!(outage["state"].as_str().unwrap().starts_with("not connected"), "{outage}");
    let aloud = hear("read aloud");
    assert_eq!((&aloud["language"], &aloud["live"], &aloud["unnamed"]), (&json!("en"), &json!("status"), &json!(0)));
    let phone = hear("a phone at night");
    assert_eq!(phone["width"], 360, "nothing is wider than the screen");
    assert_eq!(phone["ground"], "rgb(20, 24, 27)");
    assert_eq!(hear("faults")["faults"], json!([]));
    assert!(browser.wait(PATIENCE).success());
    drop(client);
}

#[test]
fn prometheus_reads_the_metrics_and_programs_read_the_rest() {
    let _turn = turn();
    let folder = folder();
    let mut site = Site::started(folder.path());
    wait_for(PATIENCE, "the device is read", || site.json("/api/v1/points")["chiller"]["supply"]["quality"] == "good");
    let read = || -> Vec<Value> {
        let mut parser = peers::script("metrics", &[site.url("/metrics")]);
        assert!(parser.wait(PATIENCE).success(), "{}", parser.transcript());
        parser.stdout().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let samples = read();
    let value = |name: &str, labels: Value| {
        let found = samples.iter().find(|sample| sample["name"] == name && sample["labels"] == labels);
        found.and_then(|sample| sample["value"].as_f64())
    };
    assert_eq!(value("tidegate_uplink_connected", json!({ "uplink": "cloud" })), Some(1.0));
    assert_eq!(value("tidegate_device_up", json!({ "device": "chiller" })), Some(1.0));
    assert_eq!(value("tidegate_alarm", json!({ "alarm": "store-fails" })), Some(0.0));
    assert!(value("tidegate_device_exchanges_total", json!({ "device": "chiller" })).unwrap() >= 1.0);
    assert!(
        samples.len() > 30 && samples.iter().all(|sample| sample["name"].as_str().unwrap().starts_with("tidegate_"))
    );

    let status = site.json("/api/v1/status");
    let asked: Value = site.gateway.status().unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&status), keys(&asked), "the page says what `status --json` says");
    let client = RawClient::connected(site.gateway.port, Version::V311, "panel");
    wait_until(PATIENCE, "the client is shown", || match &site.json("/api/v1/clients")["panel"] {
        Value::Null => Err("not yet".to_owned()),
        panel => {
            assert_eq!((&panel["protocol"], &panel["is_kept"]), (&json!("3.1.1"), &json!(false)));
            Ok(())
        }
    });
    drop(client);
    wait_for(PATIENCE, "the client is gone", || site.json("/api/v1/clients").get("panel").is_none());
    assert!(!site.json("/api/v1/history").as_array().unwrap().is_empty());
    for path in ["/healthz", "/readyz"] {
        assert_eq!(site.get(path).1, "ok\n");
    }
    // A cloud that is away is no reason to start the gateway anew.
    site.cloud.stop();
    wait_for(PATIENCE, "the outage is seen", || {
        site.json("/api/v1/status")["uplinks"]["cloud"]["state"] != "connected"
    });
    assert_eq!(site.get("/readyz").1, "ok\n");
}

#[test]
fn a_page_of_somebody_else_gets_nothing_and_ours_may_load_nothing_from_elsewhere() {
    let _turn = turn();
    let folder = folder();
    let site = Site::started(folder.path());
    for host in ["evil.example", "evil.example:9080", "127.0.0.1.evil.example", "", "[::1", "localhost.evil.example"] {
        let (head, body) = site.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes());
        assert!(head.starts_with("HTTP/1.1 403"), "{host}: {head}");
        assert!(body.starts_with("ask for this page by its address"), "{host}: {body}");
    }
    for host in ["127.0.0.1", "localhost:9080", "[::1]:9080", "LOCALHOST"] {
        let (head, body) = site.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes());
        assert!(head.starts_with("HTTP/1.1 200"), "{host}: {head}");
        assert!(head.contains("content-security-policy: default-src 'none'; script-src 'self'"), "{head}");
        assert!(!body.contains("http://") && !body.contains("https://"), "it names another place");
    }
    for (method, path, code) in [("POST", "/api/v1/status", 405), ("DELETE", "/", 405), ("GET", "/../etc/passwd", 404)]
    {
        let (head, _) =
            site.ask(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes());
        assert!(head.starts_with(&format!("HTTP/1.1 {code}")), "{method} {path}: {head}");
    }
}

#[test]
fn no_caller_takes_what_others_need_and_none_holds_up_a_message() {
    let _turn = turn();
    let folder = folder();
    let site = Site::started(folder.path());
    // Pages that follow, more than there are places for.
    let follow = b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut followers = Vec::new();
    let mut refused = 0;
    for _ in 0..14 {
        let mut socket = TcpStream::connect(("127.0.0.1", site.page)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(follow).unwrap();
        let mut head = [0; 12];
        socket.read_exact(&mut head).unwrap();
        refused += u32::from(&head == b"HTTP/1.1 503");
        followers.push(socket);
    }
    assert_eq!(refused, 2);
    drop(followers);
    // Callers who say half of it, and nothing more: they are cut off, and the next one is heard.
    let silent: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut socket = TcpStream::connect(("127.0.0.1", site.page)).unwrap();
            socket.write_all(b"GET / HTTP/1.1\r\nHost: loc").unwrap();
            socket
        })
        .collect();
    // Meanwhile the plant goes on.
    let mut client = RawClient::connected(site.gateway.port, Version::V5, "plc");
    for number in 1..=20 {
        client.publish(b"plant/press", 1, number, b"x");
        let heard = client.hear(PATIENCE);
        assert!(matches!(&heard, Heard::Packet(0x40, body) if body[..2] == number.to_be_bytes()), "{heard:?}");
    }
    assert!(site.get("/healthz").0.starts_with("HTTP/1.1 200"));
    drop(silent);
}

#[test]
fn mutated_requests_are_answered_or_refused_and_the_page_goes_on() {
    let _turn = turn();
    let folder = folder();
    let site = Site::started(folder.path());
    let good = b"GET /api/v1/status?a=b HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nConnection: close\r\n\r\n";
    let count = if std::env::var_os("TIDEGATE_TORTURE_MINUTES").is_some() { 10_000 } else { 2000 };
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = |bound: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % bound as u64).unwrap()
    };
    let mut answered = 0;
    for _ in 0..count {
        let mut request = good.to_vec();
        for _ in 0..=next(4) {
            let at = next(request.len().max(1));
            if request.is_empty() {
                break;
            }
            match next(5) {
                0 => request[at] = u8::try_from(next(256)).unwrap(),
                1 => drop(request.remove(at)),
                2 => request.insert(at, u8::try_from(next(256)).unwrap()),
                3 => request.truncate(at + 1),
                _ => {
                    let piece = request[at..].to_vec();
                    request.extend(piece.repeat(next(20)));
                }
            }
        }
        answered += u32::from(!site.say(&request).is_empty());
    }
    assert!(answered > count / 4, "{answered} of {count}");
    let long =
        [b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ".to_vec(), vec![b'x'; 1 << 20], b"\r\n\r\n".to_vec()].concat();
    assert!(!site.ask(&long).0.starts_with("HTTP/1.1 200"));
    assert!(site.get("/healthz").0.starts_with("HTTP/1.1 200"));
    let log = site.gateway.log().join("\n");
    assert!(!log.contains("panicked"), "{log}");
}
