//! Do users log in as people make them: with `tidegate passwd`, with mosquitto_passwd, from mosquitto's and paho's clients;
//! and does a reload change them while the gateway runs?
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::gateway::{Gateway, PROGRAM, folder};
use common::peers::script;
use common::{PATIENCE, turn, wait_until};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `tidegate passwd`, with what is piped into it.
fn passwd(arguments: &[&str], piped: &str) -> Output {
    let mut child = Command::new(PROGRAM)
        .arg("passwd")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end before it has read this.
    let _refused = child.stdin.take().unwrap().write_all(piped.as_bytes());
    child.wait_with_output().unwrap()
}

/// The hash that mosquitto_passwd makes of `password`.
fn mosquitto_hash(folder: &Path, kind: &str, password: &str) -> String {
    let file = folder.join(kind);
    std::fs::write(&file, "").unwrap();
    let made = Command::new("mosquitto_passwd").args(["-H", kind, "-b"]).arg(&file).args(["user", password]).output();
    let made = made.expect("mosquitto_passwd of Debian's mosquitto is needed");
    assert!(made.status.success(), "{}", text(&made.stderr));
    let line = std::fs::read_to_string(&file).unwrap();
    line.trim().strip_prefix("user:").unwrap().to_owned()
}

/// mosquitto_pub at QoS 1; its exit status and what it says.
fn publish(gateway: &Gateway, arguments: &[&str]) -> (bool, String) {
    let port = gateway.port.to_string();
    let output = Command::new("mosquitto_pub")
        .args(["-h", "127.0.0.1", "-p", &port, "-q", "1", "-m", "x"])
        .args(arguments)
        .output()
        .expect("mosquitto_pub of Debian's mosquitto-clients is needed");
    (output.status.success(), text(&output.stderr))
}

fn hash_line(text: &str) -> String {
    text.lines().nth(1).unwrap().to_owned()
}

fn reload(gateway: &Gateway, tables: &str) {
    let old = std::fs::read_to_string(gateway.config_path()).unwrap();
    let head = old.split("#users").next().unwrap();
    std::fs::write(gateway.config_path(), format!("{head}#users\n{tables}")).unwrap();
    let lines = gateway.log().len();
    common::process::signal_to(gateway.id(), rustix::process::Signal::HUP);
    wait_until(PATIENCE, "the configuration is read again", || {
        let log = gateway.log();
        let said = log.iter().skip(lines).any(|line| line.contains("The configuration was read again and is in force"));
        if said { Ok(()) } else { Err(log.join("\n")) }
    });
}

#[test]
fn passwords_of_all_kinds_open_the_door_to_mosquittos_clients_and_wrong_ones_do_not() {
    let _turn = turn();
    let folder = folder();
    let ours = passwd(&["ours"], "open sesame\n");
    assert!(ours.status.success() && ours.stderr.is_empty(), "{}", text(&ours.stderr));
    let mut tables = text(&ours.stdout);
    assert!(tables.starts_with("[broker.user.ours]\npassword_hash = \"$argon2id$v=19$m=19456,t=2,p=1$"), "{tables}");
    tables.push_str("publish = [\"plant/#\"]\n");
    for (name, kind) in [("six", "sha512"), ("seven", "sha512-pbkdf2")] {
        let hash = mosquitto_hash(folder.path(), kind, "open sesame");
        tables.push_str(&format!("[broker.user.{name}]\npassword_hash = \"{hash}\"\npublish = [\"plant/#\"]\n"));
    }
    let mut gateway = Gateway::started(folder.path(), &tables);
    for name in ["ours", "six", "seven"] {
        for version in ["mqttv311", "mqttv5"] {
            let login = |password| ["-V", version, "-u", name, "-P", password, "-t", "plant/x"];
            let (is_taken, said) = publish(&gateway, &login("open sesame"));
            assert!(is_taken, "{name} {version}: {said}");
            let (is_taken, said) = publish(&gateway, &login("open says me"));
            let expected = if version == "mqttv5" { "Bad User Name or Password" } else { "bad user name or password" };
            assert!(!is_taken && said.to_lowercase().contains(&expected.to_lowercase()), "{name} {version}: {said}");
        }
    }
    let (is_taken, said) = publish(&gateway, &["-t", "plant/x"]);
    assert!(!is_taken && said.contains("not authorised"), "{said}");
    gateway.stop();
    let log = gateway.log().join("\n");
    assert!(!log.contains("open sesame") && !log.contains("open says me"), "a password stands in the log");
    assert_eq!(log.matches("A client is not let in").count(), 4, "each kind once:\n{log}");
}

#[test]
fn a_password_is_asked_for_twice_at_a_terminal_and_not_shown() {
    let typed = |first: &str, second: &str| {
        let mut child = Command::new("script")
            .args(["-qec", &format!("{PROGRAM} passwd plc7"), "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script of Debian's bsdutils is needed");
        let mut keys = child.stdin.take().unwrap();
        let mut screen = child.stdout.take().unwrap();
        let mut seen = String::new();
        for (question, answer) in [("Password of plc7: ", first), ("Again: ", second)] {
            // What is typed before the question is shown and thrown away.
            while !seen.contains(question) {
                let mut some = [0; 256];
                let count = std::io::Read::read(&mut screen, &mut some).unwrap();
                assert!(count > 0, "{seen}");
                seen.push_str(&text(&some[..count]));
            }
            keys.write_all(format!("{answer}\n").as_bytes()).unwrap();
        }
        std::io::Read::read_to_string(&mut screen, &mut seen).unwrap();
        (child.wait().unwrap().code(), seen)
    };
    let (code, seen) = typed("s3same", "s3same");
    assert_eq!(code, Some(0), "{seen}");
    assert!(seen.contains("password_hash = \"$argon2id$") && !seen.contains("s3same"), "{seen}");
    let (code, seen) = typed("s3same", "s3sane");
    assert_eq!(code, Some(64), "{seen}");
    assert!(seen.contains("the two are not the same") && !seen.contains("argon2id"), "{seen}");
}

#[test]
fn a_password_may_be_piped_and_a_user_needs_a_name_and_a_password() {
    let hash = passwd(&["--hash-only", "plc7"], "secret");
    assert!(text(&hash.stdout).starts_with("$argon2id$"));
    let odd = passwd(&["press 3"], "secret\r\n");
    assert!(text(&odd.stdout).starts_with("[broker.user.\"press 3\"]\n"));
    for (name, piped, expected) in [("plc/7", "secret", "must not contain '/'"), ("plc7", "\n", "must not be empty")] {
        let output = passwd(&[name], piped);
        assert_eq!(output.status.code(), Some(64));
        assert!(text(&output.stderr).contains(expected) && output.stdout.is_empty(), "{}", text(&output.stderr));
    }
}

#[test]
fn a_reload_changes_users_and_rights_while_clients_stay_connected() {
    let _turn = turn();
    let folder = folder();
    let line = hash_line(&text(&passwd(&["any"], "open sesame").stdout));
    let user = |name: &str, lists: &str| format!("[broker.user.{name}]\n{line}\n{lists}\n");
    let mut gateway = Gateway::started(folder.path(), "#users\n");
    assert!(publish(&gateway, &["-t", "plant/x"]).0, "without users whoever is here may do everything");

    let hmi = user("hmi", "subscribe = [\"plant/#\"]");
    reload(&gateway, &(hmi.clone() + &user("plc", "publish = [\"plant/x\"]")));
    let port = gateway.port.to_string();
    let paho = |id: &str, version: &str| {
        let arguments = ["--port", &port, "--client-id", id, "--version", version, "--clean", "--user", "hmi"];
        let mut process = script("subscriber", &[&arguments[..], &["--password", "open sesame", "--", "#"]].concat());
        process.wait_for_line(PATIENCE, "that it has subscribed", |line| line.contains("subscribed"));
        process
    };
    let readers = [paho("old", "3.1.1"), paho("new", "5")];
    let login = ["-u", "plc", "-P", "open sesame"];
    let as_plc = |topic: &str| publish(&gateway, &[&login[..], &["-t", topic, "-V", "mqttv5"]].concat());
    assert!(!publish(&gateway, &["-t", "plant/x"]).0, "now everybody needs a name");
    assert!(as_plc("plant/x").0);
    let (_, said) = as_plc("plant/y");
    assert!(said.contains("Not authorized"), "{said}");

    reload(&gateway, &(hmi.clone() + &user("plc", "publish = [\"plant/y\"]")));
    assert!(as_plc("plant/y").0);
    assert!(as_plc("plant/x").1.contains("Not authorized"));
    reload(&gateway, &hmi);
    assert!(!as_plc("plant/y").0, "the user is gone");
    for mut reader in readers {
        reader.wait_for_line(PATIENCE, "both messages", |line| line.contains("plant/y"));
        let heard: Vec<String> = reader.stdout().into_iter().filter(|line| line.contains("\"topic\"")).collect();
        assert_eq!(heard.len(), 2, "{heard:?}");
        assert!(!reader.stdout().iter().any(|line| line.contains("resumed")), "it was connected all the time");
    }
    let status = gateway.status().unwrap();
    assert_eq!(
        (&status["sessions"]["denied"], &status["sessions"]["refused_logins"]),
        (&2.into(), &2.into()),
        "{status}"
    );
    gateway.stop();
}
