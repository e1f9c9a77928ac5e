//! Is the status page elsewhere than on loopback shown to its users only, over TLS, and does guessing cost time?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::process::{Command, Stdio};
use tokio::time::Instant;

use common::certificates::Certificates;
use common::gateway::{Gateway, PROGRAM, folder};
use common::raw::{Heard, RawClient, Version};
use common::{PATIENCE, port, turn, wait_until};

struct Page {
    port: u16,
    ca: String,
}

impl Page {
    /// The status and the body that curl got.
    fn get(&self, path: &str, more: &[&str]) -> (String, String) {
        let url = format!("https://localhost:{}{path}", self.port);
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "20", "--cacert", &self.ca, "-w", "\n%{http_code}", &url])
            .args(more)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, code) = text.rsplit_once('\n').unwrap();
        (code.to_owned(), body.to_owned())
    }
}

fn hash(password: &str) -> String {
    use std::io::Write as _;
    let mut child = Command::new(PROGRAM)
        .args(["passwd", "--web", "anna"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{password}\n").as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn the_page_is_shown_to_its_users_over_tls_and_guessing_is_slowed_without_stalling_anybody() {
    let _turn = turn();
    let folder = folder();
    let pki = Certificates::make(&folder.path().join("pki"), "x");
    let page = Page { port: port::free(), ca: pki.ca.display().to_string() };
    let user = hash("open sesame");
    assert!(user.starts_with("[web.user.anna]\npassword_hash = \"$argon2id$"), "{user}");
    let tables = format!(
        "[web]\nbind = \"0.0.0.0:{}\"\ntls = {{ cert = \"{}\", key = \"{}\" }}\n{user}",
        page.port,
        pki.server_cert.display(),
        pki.server_key.display()
    );
    let mut gateway = Gateway::started(folder.path(), &tables);
    for path in ["/", "/api/v1/status", "/api/v1/events", "/metrics", "/healthz", "/page.js"] {
        let (code, body) = page.get(path, &["-D", "-"]);
        assert_eq!(code, "401", "{path}");
        assert!(body.contains("www-authenticate: Basic realm=\"Tidegate\"") && !body.contains("hall-3"), "{body}");
    }
    let (code, body) = page.get("/api/v1/status", &["-u", "anna:open sesame"]);
    assert_eq!((code.as_str(), body.contains("\"gateway\":\"hall-3\"")), ("200", true), "{body}");
    assert_eq!(page.get("/", &["-u", "anna:open sesame", "-H", "Host: cabinet.example"]).0, "200");
    assert_eq!(page.get("/", &["-u", "anna:open says me"]).0, "401");
    assert_eq!(page.get("/", &["-u", "berta:open sesame"]).0, "401");
    // In the clear nothing is said at all.
    let plain =
        Command::new("curl").args(["-sS", "--max-time", "20", &format!("http://localhost:{}/", page.port)]).output();
    assert!(!plain.unwrap().status.success());

    // Guesses, many at once: after some of them nobody is even compared; the broker answers all the while.
    let mut client = RawClient::connected(gateway.port, Version::V5, "plc");
    let mut guesses = Vec::new();
    for number in 0..40 {
        let url = format!("https://localhost:{}/", page.port);
        let guess = format!("anna:guess {number}");
        let words = [
            "-sS",
            "-o",
            "/dev/null",
            "--max-time",
            "60",
            "--cacert",
            &page.ca,
            "-w",
            "%{http_code}",
            "-u",
            &guess,
            &url,
        ];
        guesses.push(Command::new("curl").args(words).stdout(Stdio::piped()).spawn().unwrap());
        let began = Instant::now();
        client.publish(b"plant/x", 1, 1, b"x");
        assert!(matches!(client.hear(PATIENCE), Heard::Packet(0x40, _)));
        println!("acknowledged in {:?}", began.elapsed());
    }
    let codes: Vec<String> =
        guesses.into_iter().map(|guess| String::from_utf8(guess.wait_with_output().unwrap().stdout).unwrap()).collect();
    assert!(codes.iter().all(|code| code == "401" || code == "429"), "{codes:?}");
    assert!(codes.iter().any(|code| code == "429"), "{codes:?}");
    // Who guesses is let wait, and the right password works again after that.
    wait_until(PATIENCE, "the user is let in again", || {
        let (code, _) = page.get("/healthz", &["-u", "anna:open sesame"]);
        if code == "200" { Ok(()) } else { Err(code) }
    });
    gateway.stop();
    let log = gateway.log().join("\n");
    assert!(!log.contains("open sesame") && !log.contains("guess"), "a password stands in the log:\n{log}");
    assert!(log.matches("Somebody is not let in").count() <= 5, "told once of each kind:\n{log}");
}
