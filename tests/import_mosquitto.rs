//! Is a site that runs Mosquitto carried over? Its configuration of twenty clients, which Debian's Mosquitto accepts, becomes
//! one that `tidegate check` accepts; the same twenty clients then do the same things on the same ports, with the same results.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::certificates::Certificates;
use common::cloud::Mosquitto;
use common::gateway::{Gateway, PROGRAM, folder};
use common::process::Process;
use common::{PATIENCE, port, turn, wait_until};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The twenty: sixteen machines, a screen, flows, one with a certificate, and one without a name.
fn clients() -> Vec<String> {
    let machines = (1..=16).map(|number| format!("plc{number:02}"));
    machines.chain(["hmi", "flows", "gate", "nobody"].map(str::to_owned)).collect()
}

struct Site {
    plain: u16,
    tls: u16,
    certificates: Certificates,
    config: PathBuf,
}

impl Site {
    /// A configuration as sites have it: files beside each other, one included, comments, a bridge, things of the past.
    fn new(folder: &Path) -> Site {
        let certificates = Certificates::make(&folder.join("tls"), "gate");
        let (plain, tls) = (port::free(), port::free());
        let passwords = folder.join("passwords");
        fs::write(&passwords, "# the plant\n").unwrap();
        for name in clients().iter().filter(|name| !matches!(name.as_str(), "gate" | "nobody")) {
            // Half of them were made years ago.
            let kind = if name.ends_with(['1', '3', '5', 'i']) { "sha512" } else { "sha512-pbkdf2" };
            let made = Command::new("mosquitto_passwd")
                .args(["-H", kind, "-b"])
                .arg(&passwords)
                .args([name.as_str(), &format!("pw-{name}")])
                .output()
                .expect("mosquitto_passwd of Debian's mosquitto is needed");
            assert!(made.status.success(), "{}", text(&made.stderr));
        }
        fs::write(folder.join("acl"), ACL).unwrap();
        fs::create_dir_all(folder.join("conf.d")).unwrap();
        let bridge = "connection cloud\naddress 127.0.0.1:9\ntopic plant/# out 1 \"\" factory7/\n\
                      topic # in 1 commands/ factory7/commands/\nremote_username site\nremote_password s3same\n\
                      notifications false\nrestart_timeout 1 5\ncleansession false\n";
        fs::write(folder.join("conf.d/bridge.conf"), bridge).unwrap();
        let Certificates { ca, server_cert, server_key, .. } = &certificates;
        let text = format!(
            "# Our broker\nuser root\npersistence false\nlog_type error\nallow_anonymous true\nmax_inflight_messages 20\n\
             password_file {folder}/passwords\nacl_file {folder}/acl\n\n\
             listener {plain} 127.0.0.1\n\n\
             listener {tls} 127.0.0.1\ncafile {ca}\ncertfile {cert}\nkeyfile {key}\nrequire_certificate true\n\
             use_identity_as_username true\n\ninclude_dir {folder}/conf.d\n",
            folder = folder.display(),
            ca = ca.display(),
            cert = server_cert.display(),
            key = server_key.display(),
        );
        let config = folder.join("mosquitto.conf");
        fs::write(&config, text).unwrap();
        Site { plain, tls, certificates, config }
    }

    /// How a client says where the broker is and who it is.
    fn arguments(&self, client: &str) -> Vec<String> {
        let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        match client {
            "nobody" => words(format!("-h 127.0.0.1 -p {}", self.plain)),
            "gate" => {
                let Certificates { ca, client_cert, client_key, .. } = &self.certificates;
                let files = format!("{} --cert {} --key {}", ca.display(), client_cert.display(), client_key.display());
                words(format!("-h 127.0.0.1 -p {} --cafile {files}", self.tls))
            }
            name => words(format!("-h 127.0.0.1 -p {} -u {name} -P pw-{name}", self.plain)),
        }
    }

    /// Whether it was taken, and what mosquitto_pub says.
    fn publish(&self, client: &str, topic: &str, payload: &str, more: &[&str]) -> String {
        let output = Command::new("mosquitto_pub")
            .args(self.arguments(client))
            .args(["-V", "mqttv5", "-q", "1", "-t", topic, "-m", payload])
            .args(more)
            .output()
            .expect("mosquitto_pub of Debian's mosquitto-clients is needed");
        format!("{}: {}", output.status, text(&output.stderr).trim())
    }

    fn subscribe(&self, client: &str) -> Process {
        let mut arguments = self.arguments(client);
        arguments.extend(
            ["-d", "-q", "1", "-F", "got %t %p qos %q", "-t", "plant/#", "-t", "time", "-t", "flows/+"]
                .map(str::to_owned),
        );
        // Half of them speak the older version.
        arguments.extend(
            ["-V", if client.ends_with(['0', '2', '4', '6']) { "mqttv311" } else { "mqttv5" }].map(str::to_owned),
        );
        // Into a pipe it would write only when it has much to say.
        arguments.splice(0..0, ["-oL", "mosquitto_sub"].map(str::to_owned));
        let mut process = Process::start(client, "stdbuf", &arguments);
        process.wait_for_line(PATIENCE, "that it has subscribed", |line| line.starts_with("Subscribed"));
        process
    }

    /// What the plant does in a minute: what each publisher was told, and what each subscriber got.
    fn live(&self) -> (Vec<String>, BTreeMap<String, Vec<String>>) {
        let mut told = Vec::new();
        let say = |client: &str, topic: &str, payload: &str, more: &[&str]| {
            format!("{client} on {topic}: {}", self.publish(client, topic, payload, more))
        };
        told.push(say("plc01", "plant/plc01/state", "on", &["-r"]));
        let subscribers: Vec<(String, Process)> =
            clients().into_iter().map(|client| (client.clone(), self.subscribe(&client))).collect();
        for client in clients() {
            told.push(say(&client, &format!("plant/{client}/level"), &client, &[]));
            told.push(say(&client, "plant/plc03/level", "forged?", &[]));
            told.push(say(&client, "time", "forged?", &[]));
        }
        for number in [1, 7, 16] {
            told.push(say("hmi", &format!("plant/plc{number:02}/set"), "42", &[]));
            told.push(say("hmi", &format!("plant/plc{number:02}/secret"), "42", &[]));
        }
        for wrong in [["-u", "plc01", "-P", "pw-plc02"], ["-u", "plc99", "-P", "pw-plc99"]] {
            let port = self.plain.to_string();
            let refused =
                Command::new("mosquitto_pub").args(["-p", &port, "-t", "time", "-m", "x"]).args(wrong).output();
            told.push(format!("{wrong:?}: {}", refused.unwrap().status.success()));
        }
        told.push(say("flows", "time", "end", &[]));
        let heard = subscribers.into_iter().map(|(client, mut process)| {
            process.wait_for_line(PATIENCE, "the end", |line| line.starts_with("got time end"));
            let got = process.stdout().into_iter().filter(|line| line.starts_with("got ")).collect();
            (client, got)
        });
        let heard = heard.collect();
        self.publish("plc01", "plant/plc01/state", "", &["-r"]);
        (told, heard)
    }

    fn import(&self, more: &[&str]) -> Output {
        Command::new(PROGRAM).args(["import", "mosquitto"]).arg(&self.config).args(more).output().unwrap()
    }
}

const ACL: &str = "\
# what everybody may read without a name
topic read time

user hmi
topic readwrite plant/#
topic deny plant/+/secret

user flows
topic read plant/+/level
topic write time
topic flows/#
topic read $SYS/#

user gate
topic read plant/#

user former
topic #

pattern readwrite plant/%u/#
pattern read time
";

#[test]
fn twenty_clients_of_mosquitto_find_everything_as_it_was() {
    let _turn = turn();
    let folder = folder();
    let site = Site::new(folder.path());

    let mut mosquitto = Process::start("mosquitto", "mosquitto", &["-c".as_ref(), site.config.as_os_str()]);
    wait_until(PATIENCE, "Mosquitto listens", || match mosquitto.status() {
        Some(status) => panic!("Mosquitto does not accept it: {status}: {}", mosquitto.transcript()),
        None if port::is_served_by(site.tls, mosquitto.id()) => Ok(()),
        None => Err("it does not".to_owned()),
    });
    let before = site.live();
    let refused = before.0.iter().filter(|told| told.contains("Not authorized")).count();
    assert!((30..60).contains(&refused), "this test is about what may be done and what may not: {:?}", before.0);
    mosquitto.kill();

    let secrets = folder.path().join("secrets");
    let imported = site.import(&["--secrets", secrets.to_str().unwrap()]);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    let config = folder.path().join("tidegate.toml");
    let state = folder.path().join("state");
    let head = format!("[gateway]\nid = \"hall-3\"\nstate_dir = {state:?}\nclock = \"trust\"\n");
    fs::write(&config, head + &text(&imported.stdout)).unwrap();
    let checked = Command::new(PROGRAM).args(["check", "--config"]).arg(&config).output().unwrap();
    assert!(checked.status.success(), "{}\n{}", text(&checked.stderr), text(&imported.stdout));

    let mut gateway = Process::start("gateway", PROGRAM, &["run".as_ref(), "--config".as_ref(), config.as_os_str()]);
    wait_until(PATIENCE, "the gateway is ready", || match gateway.status() {
        Some(status) => panic!("it does not start: {status}: {}", gateway.transcript()),
        None if gateway.stderr().iter().any(|line| line.contains("The gateway is ready")) => Ok(()),
        None => Err(gateway.transcript()),
    });
    let after = site.live();
    assert_eq!(before.0, after.0, "what publishers are told");
    for (client, heard) in &before.1 {
        assert!(heard.len() >= 2 || client == "nobody", "{client} hears something in this test: {heard:?}");
        let sorted = |list: &[String]| {
            let mut list = list.to_vec();
            list.sort();
            list
        };
        assert_eq!(sorted(heard), sorted(&after.1[client]), "what {client} hears");
    }
    gateway.signal(rustix::process::Signal::TERM);
    gateway.wait(PATIENCE);
}

#[test]
fn each_line_that_is_not_carried_is_named_with_its_number_and_no_secret_is_shown() {
    let folder = folder();
    let site = Site::new(folder.path());
    let imported = site.import(&[]);
    let (config, said) = (text(&imported.stdout), text(&imported.stderr));
    let place = |file: &str| folder.path().join(file).display().to_string();
    for (file, line, expected) in [
        ("mosquitto.conf", 2, "user root: needs nothing here"),
        ("mosquitto.conf", 3, "persistence false: needs nothing here: sessions and retained messages are always kept"),
        ("conf.d/bridge.conf", 6, "remote_password …: put the password into a file"),
        ("conf.d/bridge.conf", 7, "notifications false: "),
    ] {
        let expected = format!("{}:{line}: {expected}", place(file));
        assert!(said.contains(&expected), "{expected}\nis not in\n{said}");
        assert!(config.contains(&format!("#   {expected}")), "{config}");
    }
    // With certificates as names, whoever the ACL names can log in by one.
    assert!(config.contains("[broker.user.former]\ncertificate = \"CN=former\""), "{config}");
    assert!(config.contains("topic = \"factory7/{topic}\"\nqos = 1"), "{config}");
    assert!(config.contains("filter = \"factory7/commands/#\"\ntopic = \"commands/{rest}\"\nqos = 1"), "{config}");
    assert!(!config.contains("s3same") && !said.contains("s3same"));

    let odd = folder.path().join("odd.conf");
    let text_of = "listener 1883\nlistener 1884 nas\nlistener 0 /run/m.sock\nprotocol websockets\nmax_connections 5\n\
                   allow_anonymous true\nauth_plugin /usr/lib/x.so\nconnection a/b\naddress h\nconnection c\naddress h:1 i\n\
                   topic a/# out\ntopic a/b out 1\ntopic a/+ out 2 x/ y/\ntopic q sideways\nbridge_insecure true\n";
    fs::write(&odd, text_of).unwrap();
    let output = Command::new(PROGRAM).args(["import", "mosquitto"]).arg(&odd).output().unwrap();
    let (config, said) = (text(&output.stdout), text(&output.stderr));
    for (line, expected) in [
        (1, "there is no user who could log in"),
        (2, "write the address of \"nas\" in numbers"),
        (5, "[broker.limits] connections"),
        (7, "plug-ins are not loaded"),
        (8, "cannot be the name of an uplink"),
        (13, "takes all of these topics"),
        (15, "\"sideways\" is no direction"),
        (16, "is always checked"),
    ] {
        let found = said.lines().find(|said| said.contains(&format!("odd.conf:{line}: "))).unwrap_or_default();
        assert!(found.contains(expected), "{line}: {expected}\n{said}");
    }
    fs::write(folder.path().join("odd.toml"), format!("[gateway]\nid = \"g\"\n{config}")).unwrap();
    let checked =
        Command::new(PROGRAM).args(["check", "--config"]).arg(folder.path().join("odd.toml")).output().unwrap();
    assert!(checked.status.success(), "{}\n{config}", text(&checked.stderr));
    // What is denied and cannot be said must not be allowed by that.
    fs::write(folder.path().join("braces"), "user plc01\ntopic #\ntopic deny a/{b}\n").unwrap();
    let more = format!("password_file {}\nacl_file {}\n", place("passwords"), place("braces"));
    fs::write(&odd, more).unwrap();
    let output = Command::new(PROGRAM).args(["import", "mosquitto"]).arg(&odd).output().unwrap();
    let config = text(&output.stdout);
    let user = config.split("[broker.user.plc01]").nth(1).unwrap().split("[broker").next().unwrap().to_owned();
    assert!(user.contains("deny = [\"#\"]") && !user.contains("publish"), "{config}");
    assert!(text(&output.stderr).contains("braces:3: topic deny a/{b}: "), "{}", text(&output.stderr));
    fs::write(
        &odd,
        "allow_anonymous true\nlistener 1884 127.0.0.1\ncafile ca.pem\ncertfile s.pem\nkeyfile s.key\n\
         crlfile gone.pem\nrequire_certificate true\n",
    )
    .unwrap();
    let output = Command::new(PROGRAM).args(["import", "mosquitto"]).arg(&odd).output().unwrap();
    let (config, said) = (text(&output.stdout), text(&output.stderr));
    let lists = format!("client_ca = \"{}\", client_crl = \"{}\"", place("ca.pem"), place("gone.pem"));
    assert!(config.contains(&lists) && !said.contains("crlfile"), "{config}\n{said}");
    let absent = Command::new(PROGRAM).args(["import", "mosquitto", "/nowhere.conf"]).output().unwrap();
    assert_eq!(absent.status.code(), Some(64));
}

#[test]
fn retained_messages_are_taken_over_and_outlive_a_kill() {
    let _turn = turn();
    let folder = folder();
    let mosquitto = Mosquitto::started(folder.path());
    let there = mosquitto.port.to_string();
    for number in 0..200 {
        let (topic, payload) = (format!("plant/{number}/state"), number.to_string());
        let mut arguments = vec!["-p", &there, "-q", "1", "-r", "-t", &topic, "-m", &payload];
        if number == 7 {
            arguments.extend(["-V", "mqttv5", "-D", "publish", "content-type", "text/plain"]);
        }
        assert!(Command::new("mosquitto_pub").args(arguments).status().unwrap().success());
    }
    let mut gateway = Gateway::started(folder.path(), "");
    let url = format!("mqtt://127.0.0.1:{there}");
    let import = |more: &[&str]| {
        let output = Command::new(PROGRAM)
            .args(["import", "retained", &url, "--config"])
            .arg(gateway.config_path())
            .args(more)
            .output()
            .unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, said, fault) = import(&[]);
    assert_eq!((code, fault.as_str()), (Some(0), ""), "{said}");
    assert!(said.starts_with("200 retained messages were taken over"), "{said}");
    assert!(import(&["--filter", "plant/7/#"]).1.starts_with("1 retained messages"));
    assert_eq!(import(&["--filter", "plant/#/7"]).0, Some(64));
    assert_eq!(import(&["--broker", "127.0.0.1:9"]).0, Some(75));
    gateway.kill();
    gateway.start();
    let port = gateway.port.to_string();
    let output = Command::new("mosquitto_sub")
        .args(["-p", &port, "-V", "mqttv5", "-q", "1", "-t", "#", "-C", "200", "-W", "30", "-F", "%r %t %p %C"])
        .output()
        .unwrap();
    let mut got: Vec<String> = text(&output.stdout).lines().map(|line| line.trim().to_owned()).collect();
    got.sort();
    let mut expected: Vec<String> = (0..200).map(|number| format!("1 plant/{number}/state {number}")).collect();
    expected[7].push_str(" text/plain");
    expected.sort();
    assert_eq!(got, expected);
    gateway.stop();
}

#[test]
fn a_broker_that_never_falls_silent_does_not_keep_the_import_from_its_end() {
    let _turn = turn();
    let folder = folder();
    let mosquitto = Mosquitto::started(folder.path());
    let there = mosquitto.port.to_string();
    let publish = ["-p", &there, "-r", "-t", "plant/state", "-m", "on"];
    assert!(Command::new("mosquitto_pub").args(publish).status().unwrap().success());
    let gateway = Gateway::started(folder.path(), "");
    let live = ["-p", &there, "-t", "plant/live", "-m", "1", "--repeat", "1000000", "--repeat-delay", "0.02"];
    let _plant = Process::start("mosquitto_pub", "mosquitto_pub", &live);
    let (url, config) = (format!("mqtt://127.0.0.1:{there}"), gateway.config_path().display().to_string());
    let mut import = Process::start("import", PROGRAM, &["import", "retained", &url, "--config", &config]);
    assert!(import.wait(PATIENCE).success(), "{}", import.transcript());
    assert!(import.transcript().contains("1 retained messages were taken over"), "{}", import.transcript());
}
