//! Do TLS listeners let in whom they should, and go on while certificates change and clients are silent?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use common::certificates::Certificates;
use common::gateway::{Gateway, PROGRAM, folder};
use common::peers::{Publisher, Subscriber, mosquitto_sub};
use common::process::Process;
use common::{PATIENCE, port, turn, wait_for, wait_until};
use rustix::process::Signal;

/// A listener `plant` with the server certificate of `pki`, and `more` in its `tls`.
fn listener(port: u16, pki: &Certificates, more: &str) -> String {
    let (cert, key) = (pki.server_cert.display(), pki.server_key.display());
    format!(
        "[broker.listener.plant]\nbind = \"127.0.0.1:{port}\"\ntls = {{ cert = \"{cert}\", key = \"{key}\"{more} }}\n"
    )
}

fn wants_certificates(pki: &Certificates, auth: &str) -> String {
    format!(", client_ca = \"{}\", client_auth = \"{auth}\"", pki.ca.display())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// mosquitto_pub over TLS, with `more`.
fn publish(port: u16, ca: &Path, more: &[&str]) -> Output {
    Command::new("mosquitto_pub")
        .args(["-h", "localhost", "-p", &port.to_string(), "--cafile", &text(ca), "-q", "1"])
        .args(more)
        .output()
        .unwrap()
}

#[track_caller]
fn expect_published(output: &Output) {
    assert!(output.status.success(), "mosquitto_pub: {}", String::from_utf8_lossy(&output.stderr));
}

/// mosquitto_sub over TLS at QoS 2, once it hears what is said on `probe`.
fn listening(gateway: &Gateway, port: u16, ca: &Path, more: &[&str]) -> Process {
    let (port, ca) = (port.to_string(), text(ca));
    let mut arguments = vec!["-h", "localhost", "-p", &port, "--cafile", &ca, "-q", "2", "-F", "%t %p"];
    arguments.extend(more);
    mosquitto_sub(gateway.port, &arguments)
}

#[track_caller]
fn expect_heard(listener: &mut Process, line: &str) {
    listener.wait_for_line(PATIENCE, &format!("{line:?}"), |said| said == line);
}

fn refusals(gateway: &Gateway) -> u64 {
    gateway.status().unwrap()["sessions"]["refused"].as_u64().unwrap()
}

#[test]
fn mosquittos_clients_and_paho_speak_over_tls_1_2_and_1_3() {
    let _turn = turn();
    let folder = folder();
    let pki = Certificates::make(&folder.path().join("pki"), "plc7");
    let plant = port::free();
    let gateway = Gateway::started(folder.path(), &listener(plant, &pki, ""));
    let long = folder.path().join("long");
    fs::write(&long, "x".repeat(200_000)).unwrap();
    for tls in ["tlsv1.2", "tlsv1.3"] {
        for version in ["311", "5"] {
            let topic = format!("plant/{tls}/{version}");
            let mut heard = listening(&gateway, plant, &pki.ca, &["--tls-version", tls, "-V", version, "-t", &topic]);
            let common = ["--tls-version", tls, "-V", version, "-t", &topic];
            expect_published(&publish(plant, &pki.ca, &[&common[..], &["-m", "short"]].concat()));
            expect_heard(&mut heard, &format!("{topic} short"));
            expect_published(&publish(plant, &pki.ca, &[&common[..], &["-q", "2", "-f", &text(&long)]].concat()));
            let line = format!("{topic} {}", "x".repeat(200_000));
            heard.wait_for_line(PATIENCE, "the long message", |said| said == line);
        }
    }
    let ca = text(&pki.ca);
    let mut subscriber = Subscriber::started_with(plant, "dashboard", &["numbers/#"], &["--cafile", &ca]);
    let more = ["--cafile", &ca, "--qos", "2", "--size", "3000"];
    Publisher::started(plant, "machine", "numbers/a", 500, &more).wait_until_done();
    subscriber.wait_for_count("numbers/a", 500);
    assert_eq!(subscriber.numbers_on("numbers/a"), (0..500).collect::<Vec<_>>());
    assert_eq!(refusals(&gateway), 0);
}

#[test]
fn a_client_certificate_is_required_or_optional_as_the_listener_says_and_a_strangers_is_never_good() {
    let _turn = turn();
    let folder = folder();
    let pki = Certificates::make(&folder.path().join("pki"), "plc7");
    let stranger = Certificates::make(&folder.path().join("stranger"), "plc7");
    let (required, optional) = (port::free(), port::free());
    let tables = listener(required, &pki, &wants_certificates(&pki, "required"))
        + &listener(optional, &pki, &wants_certificates(&pki, "optional")).replace("plant", "office");
    let gateway = Gateway::started(folder.path(), &tables);
    let (cert, key) = (text(&pki.client_cert), text(&pki.client_key));
    let (strange_cert, strange_key) = (text(&stranger.client_cert), text(&stranger.client_key));
    let ours = ["--cert", &cert, "--key", &key, "-t", "a", "-m", "x"];
    let nobodys = ["-t", "a", "-m", "x"];
    let strangers = ["--cert", &strange_cert, "--key", &strange_key, "-t", "a", "-m", "x"];
    for port in [required, optional] {
        expect_published(&publish(port, &pki.ca, &ours));
        assert!(!publish(port, &pki.ca, &strangers).status.success());
    }
    expect_published(&publish(optional, &pki.ca, &nobodys));
    assert!(!publish(required, &pki.ca, &nobodys).status.success());
    // A server's certificate is none for a client (RFC 5280, 4.2.1.12).
    let (cert, key) = (text(&pki.server_cert), text(&pki.server_key));
    assert!(!publish(required, &pki.ca, &["--cert", &cert, "--key", &key, "-t", "a", "-m", "x"]).status.success());
    // A client of plain MQTT, and one that asks for another port's protocol.
    let port = required.to_string();
    let plain = Command::new("mosquitto_pub").args(["-h", "127.0.0.1", "-p", &port, "-t", "a", "-m", "x"]).output();
    assert!(!plain.unwrap().status.success());
    for _ in 0..10 {
        assert!(!publish(required, &pki.ca, &nobodys).status.success());
    }
    // With TLS 1.3 a client may be gone before it has heard of the refusal; the gateway knows it all the same.
    gateway.wait_for_status("15 were not let in", |status| (status["sessions"]["refused"] == 15).then_some(()));
    for (reason, times) in [
        ("shows no certificate", 1),
        ("not signed by the listener's `client_ca`", 1),
        ("its certificate is not good", 1),
        ("does not speak TLS", 1),
    ] {
        let told = || gateway.log().iter().filter(|line| line.contains(reason)).count();
        wait_for(PATIENCE, &format!("the log tells {reason:?}"), || told() >= times);
        assert_eq!(told(), times, "{reason}: once a minute\n{}", gateway.log().join("\n"));
    }
}

#[test]
fn a_reload_shows_the_new_certificate_to_the_next_client_and_disturbs_nobody() {
    let _turn = turn();
    let folder = folder();
    let old = Certificates::make(&folder.path().join("old"), "plc7");
    let new = Certificates::make(&folder.path().join("new"), "plc7");
    let plant = port::free();
    let mut gateway = Gateway::started(folder.path(), &listener(plant, &old, &wants_certificates(&old, "optional")));
    let mut heard = listening(&gateway, plant, &old.ca, &["-t", "plant/#"]);
    let exchange = |from: &Path, to: &Path| {
        fs::copy(from, to).unwrap();
        fs::set_permissions(to, fs::Permissions::from_mode(0o600)).unwrap();
    };

    // Only half of it has been copied yet: what was in force stays, and the place is told.
    exchange(&new.server_cert, &old.server_cert);
    reload(&gateway, "the torn pair is told", "the key does not belong to the certificate");
    expect_published(&publish(plant, &old.ca, &["-t", "plant/a", "-m", "1"]));
    expect_heard(&mut heard, "plant/a 1");

    // The other half: whoever comes now needs the new authority; who is there stays.
    exchange(&new.server_key, &old.server_key);
    reload(&gateway, "the new pair is in force", "The configuration was read again and is in force");
    expect_published(&publish(plant, &new.ca, &["-t", "plant/a", "-m", "2"]));
    expect_heard(&mut heard, "plant/a 2");
    assert!(!publish(plant, &old.ca, &["-t", "plant/a", "-m", "lost"]).status.success());

    // Other files, and another authority of the clients, need no restart either.
    let (cert, key) = (text(&new.client_cert), text(&new.client_key));
    let with_new = ["--cert", &cert, "--key", &key, "-t", "plant/a", "-m", "3"];
    assert!(!publish(plant, &new.ca, &with_new).status.success());
    let config = fs::read_to_string(gateway.config_path()).unwrap();
    let changed = config.replace(&text(&old.ca), &text(&new.ca)).replace("\"optional\"", "\"required\"");
    assert_ne!(config, changed);
    fs::write(gateway.config_path(), changed).unwrap();
    reload(&gateway, "the other files are in force", "The configuration was read again and is in force");
    expect_published(&publish(plant, &new.ca, &with_new));
    expect_heard(&mut heard, "plant/a 3");
    assert!(!publish(plant, &new.ca, &["-t", "plant/a", "-m", "lost"]).status.success());
    gateway.wait_for_status("the first subscriber was never disturbed", |status| {
        (status["sessions"]["connected"] == 1).then_some(())
    });
    gateway.stop();
}

/// An authority of openssl's own: what it makes, and what it revokes.
struct Authority {
    folder: std::path::PathBuf,
}

impl Authority {
    fn made(folder: &Path) -> Authority {
        fs::create_dir_all(folder).unwrap();
        let authority = Authority { folder: folder.to_owned() };
        fs::write(
            folder.join("ca.cnf"),
            "[ca]\ndefault_ca = plant\n[plant]\ndir = .\ndatabase = index\nserial = serial\ncrlnumber = crlnumber\n\
             new_certs_dir = .\ncertificate = ca.pem\nprivate_key = ca.key\ndefault_md = sha256\npolicy = any\n\
             default_days = 30\nunique_subject = no\n[any]\ncommonName = supplied\n\
             [client]\nextendedKeyUsage = clientAuth\n",
        )
        .unwrap();
        for (name, text) in [("index", ""), ("serial", "1000\n"), ("crlnumber", "01\n")] {
            fs::write(folder.join(name), text).unwrap();
        }
        let name = folder.file_name().unwrap().display();
        authority.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN={name} -keyout ca.key -out ca.pem"
        ));
        authority
    }

    /// openssl in its folder.
    fn openssl(&self, arguments: &str) {
        let output =
            Command::new("openssl").args(arguments.split_whitespace()).current_dir(&self.folder).output().unwrap();
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn client(&self, name: &str) {
        self.openssl(&format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ));
        self.openssl(&format!("ca -batch -config ca.cnf -extensions client -in {name}.csr -out {name}.pem -notext"));
    }

    /// The list as of now, for so long.
    fn list(&self, days: &str) {
        self.openssl(&format!("ca -gencrl -config ca.cnf {days} -out revoked.pem"));
    }

    fn path(&self, name: &str) -> String {
        text(&self.folder.join(name))
    }

    /// mosquitto_pub as one of its clients.
    fn publish(&self, port: u16, ca: &Path, name: &str, more: &[&str]) -> Output {
        let (cert, key) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        publish(port, ca, &[&["--cert", &cert, "--key", &key, "-t", "plant/a", "-m", name][..], more].concat())
    }
}

fn reload(gateway: &Gateway, what: &str, said: &str) {
    let before = gateway.log().len();
    common::process::signal_to(gateway.id(), Signal::HUP);
    wait_until(PATIENCE, what, || {
        let log = gateway.log().split_off(before);
        if log.iter().any(|line| line.contains(said)) { Ok(()) } else { Err(log.join("\n")) }
    });
}

const IN_FORCE: &str = "The configuration was read again and is in force";

#[test]
fn whoever_is_on_the_list_of_revoked_certificates_is_shut_out_at_his_next_connection() {
    let _turn = turn();
    let folder = folder();
    let pki = Certificates::make(&folder.path().join("pki"), "plc7");
    let authority = Authority::made(&folder.path().join("authority"));
    for name in ["stays", "leaves"] {
        authority.client(name);
    }
    authority.list("-crldays 30");
    let (ca, list) = (authority.path("ca.pem"), authority.path("revoked.pem"));
    let plant = port::free();
    let tls = format!(", client_ca = \"{ca}\", client_crl = \"{list}\"");
    let mut gateway = Gateway::started(folder.path(), &listener(plant, &pki, &tls));
    let (cert, key) = (authority.path("leaves.pem"), authority.path("leaves.key"));
    let mut heard = listening(&gateway, plant, &pki.ca, &["--cert", &cert, "--key", &key, "-t", "plant/#"]);
    for tls in ["tlsv1.2", "tlsv1.3"] {
        for name in ["stays", "leaves"] {
            expect_published(&authority.publish(plant, &pki.ca, name, &["--tls-version", tls]));
            expect_heard(&mut heard, &format!("plant/a {name}"));
        }
    }

    authority.openssl("ca -config ca.cnf -revoke leaves.pem");
    authority.list("-crldays 30");
    expect_published(&authority.publish(plant, &pki.ca, "leaves", &[]));
    reload(&gateway, "the new list is in force", IN_FORCE);
    for tls in ["tlsv1.2", "tlsv1.3"] {
        expect_published(&authority.publish(plant, &pki.ca, "stays", &["--tls-version", tls]));
        expect_heard(&mut heard, "plant/a stays");
        assert!(!authority.publish(plant, &pki.ca, "leaves", &["--tls-version", tls]).status.success(), "{tls}");
    }
    let told = || gateway.log().iter().any(|line| line.contains("its certificate has been revoked"));
    wait_for(PATIENCE, "the log says why", told);

    // The list of another authority says nothing of these clients, and a file that is none changes nothing.
    let other = Authority::made(&folder.path().join("other"));
    other.list("-crldays 30");
    let good = fs::read(&list).unwrap();
    fs::write(&list, "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n").unwrap();
    reload(&gateway, "the broken list is told", "is no list of revoked certificates");
    expect_published(&authority.publish(plant, &pki.ca, "stays", &[]));
    fs::copy(other.path("revoked.pem"), &list).unwrap();
    reload(&gateway, "the strange list is in force", IN_FORCE);
    assert!(
        !authority.publish(plant, &pki.ca, "stays", &[]).status.success(),
        "of him nobody says that he is not revoked"
    );

    // Both in one file; and one that has ended, which goes on to shut out those that are on it, and nobody else.
    authority.openssl(
        "ca -gencrl -config ca.cnf -crl_lastupdate 20200101000000Z -crl_nextupdate 20200102000000Z \
                       -out revoked.pem",
    );
    let ended = fs::read(&list).unwrap();
    assert_ne!(good, ended);
    fs::write(&list, [fs::read(other.path("revoked.pem")).unwrap(), ended].concat()).unwrap();
    reload(&gateway, "the ended list is told", "A list of revoked certificates has ended");
    wait_for(PATIENCE, "it is in force", || gateway.log().last().is_some_and(|line| line.contains(IN_FORCE)));
    expect_published(&authority.publish(plant, &pki.ca, "stays", &[]));
    assert!(!authority.publish(plant, &pki.ca, "leaves", &[]).status.success());
    gateway.stop();
}

#[test]
fn a_list_of_revoked_certificates_that_is_missing_or_none_or_has_ended_is_told_at_its_place() {
    let folder = folder();
    let pki = Certificates::make(&folder.path().join("pki"), "plc7");
    let authority = Authority::made(&folder.path().join("authority"));
    authority.list("-crldays 30");
    let (ca, list) = (authority.path("ca.pem"), authority.path("revoked.pem"));
    let config = folder.path().join("check.toml");
    let check = |keys: &str| {
        let tables = listener(8883, &pki, keys);
        fs::write(&config, format!("[gateway]\nid = \"hall-3\"\n{tables}")).unwrap();
        let output = Command::new(PROGRAM).args(["check", "--config", &text(&config)]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let both = |file: &str| format!(", client_ca = \"{ca}\", client_crl = [\"{list}\", \"{file}\"]");
    assert_eq!(check(&format!(", client_ca = \"{ca}\", client_crl = \"{list}\"")), (Some(0), String::new()));
    authority.openssl(
        "ca -gencrl -config ca.cnf -crl_lastupdate 20200101000000Z -crl_nextupdate 20200102000000Z -out ended.pem",
    );
    authority.openssl("crl -in revoked.pem -outform DER -out revoked.der");
    for (keys, status, said) in [
        (format!(", client_crl = \"{list}\""), 78, "`client_crl` needs `client_ca`"),
        (both(&authority.path("gone.pem")), 78, "gone.pem: it does not exist"),
        (both(&ca), 78, "ca.pem holds no list of revoked certificates"),
        (both(&authority.path("revoked.der")), 78, "revoked.der holds no list of revoked certificates"),
        (both(&authority.path("ended.pem")), 0, "ended.pem has ended at 2020-01-02T00:00:00Z"),
    ] {
        let (code, stderr) = check(&keys);
        assert_eq!(code, Some(status), "{stderr}");
        assert!(stderr.contains(said) && stderr.contains("check.toml:5:") && stderr.contains("help: "), "{stderr}");
    }
}

#[test]
fn silent_sockets_give_way_and_hold_up_nobody() {
    let _turn = turn();
    let folder = folder();
    let pki = Certificates::make(&folder.path().join("pki"), "plc7");
    let plant = port::free();
    let limits = "[broker.limits]\nhandshakes = 50\nhandshake_time = \"300s\"\nconnect_time = \"300s\"\n";
    let gateway = Gateway::started(folder.path(), &(listener(plant, &pki, "") + limits));
    // Far more than may be in their handshake, and none of them would end by itself.
    let silent = || {
        let mut stream = TcpStream::connect(("127.0.0.1", plant)).unwrap();
        // The head of a ClientHello, and nothing more.
        stream.write_all(b"\x16\x03\x01\x02\0\x01\0").unwrap();
        stream
    };
    let streams: Vec<TcpStream> = (0..300).map(|_| silent()).collect();
    gateway.wait_for_status("the oldest have given way", |status| {
        (status["sessions"]["refused"].as_u64()? == 250).then_some(())
    });
    let mut heard = listening(&gateway, plant, &pki.ca, &["-t", "plant/#"]);
    expect_published(&publish(plant, &pki.ca, &["-t", "plant/a", "-m", "x"]));
    expect_heard(&mut heard, "plant/a x");
    let told = || gateway.log().iter().filter(|line| line.contains("have not sent their CONNECT")).count();
    wait_for(PATIENCE, "the log tells of them", || told() > 0);
    assert_eq!(told(), 1);
    drop(streams);
}

#[test]
fn a_key_that_others_can_read_keeps_the_gateway_from_starting_at_its_place() {
    let folder = folder();
    let pki = Certificates::make(&folder.path().join("pki"), "plc7");
    fs::set_permissions(&pki.server_key, fs::Permissions::from_mode(0o644)).unwrap();
    let config = folder.path().join("tidegate.toml");
    fs::write(&config, "[gateway]\nid = \"g\"\n".to_owned() + &listener(8883, &pki, "")).unwrap();
    let output = Command::new(PROGRAM).args(["check", "--config", &text(&config)]).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8(output.stderr).unwrap();
    let line = listener(8883, &pki, "");
    let column = line.lines().last().unwrap().find("key = ").unwrap() + "key = ".len() + 1;
    assert!(said.contains(&format!("tidegate.toml:5:{column}: `key`: others can read or change")), "{said}");
    assert!(said.contains("help: chmod u=rw,g=r,o= "), "{said}");
}
