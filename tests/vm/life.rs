//! One life under systemd: installation, start, sandbox, clock, reload, watchdog, upgrade.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::common::account::lost;
use super::common::gateway::FORWARD_PLANT;
use super::common::peers::Publisher;
use super::common::wait_until;
use super::{HOST, Site, ok};

/// A step of systemd or the program, in a machine that is emulated.
const PATIENCE: Duration = Duration::from_secs(300);
/// What is published where it is counted.
const MESSAGES: u64 = 100;

/// The first block of this language in the chapter that the README has for this package.
fn readme(language: &str) -> String {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let (_, chapter) = text.split_once("\n## Raspberry Pi and Debian\n").expect("README.md has the chapter");
    let (_, block) = chapter.split_once(&format!("```{language}\n")).expect("the chapter has the block");
    block.split_once("```").expect("the block ends").0.to_owned()
}

pub fn installed_as_the_readme_says(site: &mut Site, package: &Path) {
    // The addresses of this plant, and the two rules that the test counts by.
    let mut configuration = readme("toml")
        .replace("192.168.1.5:1883", &format!("{HOST}:{}", site.cloud.port))
        .replace("192.168.1.10:502", &format!("{HOST}:{}", site.device.port));
    assert!(!configuration.contains("192.168."), "{configuration}");
    write!(configuration, "\n{FORWARD_PLANT}\n[[uplink.cloud.forward]]\nfilter = \"field/#\"\n").unwrap();
    write_file(site, "/root/press-hall.toml", &configuration);
    for command in readme("sh").lines().filter(|line| !line.starts_with("mosquitto_sub")) {
        let name = package.file_name().unwrap().to_string_lossy();
        let command = command.replace("./tidegate_0.1.0-1_arm64.deb", &format!("./debs/{name}"));
        println!("$ {command}");
        let command = command.replace("--wait healthy", "--wait healthy --timeout 240s");
        site.machine.must(&command);
    }
    ok("the service is active", site.machine.must("systemctl is-active tidegate") == "active", ());
    ok("it starts with the machine", site.machine.must("systemctl is-enabled tidegate") == "enabled", ());
    let status = site.property("StatusText");
    ok("systemd shows a line that a person understands", status.contains("cloud"), status);
    println!("figure: ready {} ms after its start", site.start_ms());
    let reading = site.application.wait_for_message("field/chiller/supply_temperature", |_| true).json();
    ok("a reading of the device is at the cloud", reading["value"] == 6.5 && reading["quality"] == "good", reading);
    let ports = site.machine.must("ss -Hltnp | grep tidegate");
    ok("no port is open off loopback", ports.lines().all(|line| line.contains(" 127.0.0.1:")), ports);
}

pub fn the_sandbox_holds(site: &mut Site) {
    let pid = site.number("MainPID");
    let machine = &mut site.machine;
    let standing = machine.must(&format!("grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/{pid}/status"));
    let has = |key: &str, value: &str| {
        standing
            .lines()
            .any(|line| line.strip_prefix(key).is_some_and(|rest| rest.split_whitespace().next() == Some(value)))
    };
    ok("it has no capability", has("CapEff:", "0000000000000000") && has("CapBnd:", "0000000000000000"), &standing);
    ok("it cannot gain a privilege", has("NoNewPrivs:", "1"), &standing);
    ok("its system calls are filtered", has("Seccomp:", "2"), &standing);
    ok("it runs as the user of the package", has("Uid:", &machine.must("id -u tidegate")), &standing);

    // Even root, put where the service is, sees and writes no more.
    let inside = format!("nsenter --target {pid} --mount --");
    machine.must("grep -q 'nobody else' /home/owner/secret");
    let (status, seen) = machine.run(PATIENCE, &format!("{inside} ls -A /home/owner"));
    ok("it sees nothing of /home", status != 0 || seen.is_empty(), seen);
    for place in ["/etc", "/etc/tidegate", "/usr/bin", "/var/lib", "/var/log", "/root", "/boot", "/sys", "/proc/sys/vm"]
    {
        let (status, said) = machine.run(PATIENCE, &format!("{inside} touch {place}/test"));
        ok(&format!("it cannot write to {place}"), status != 0, said);
    }
    let script = format!(
        "{inside} setpriv --reuid tidegate --regid tidegate --clear-groups \
         sh -c 'touch /var/lib/tidegate/test && rm /var/lib/tidegate/test'"
    );
    machine.must(&script);
    println!("ok: it can write to its state directory");
    let (status, said) = machine
        .run(PATIENCE, &format!("{inside} setpriv --reuid tidegate --regid tidegate --init-groups touch /run/test"));
    ok("its user cannot write to /run", status != 0, said);
    machine.must(&format!("touch /tmp/of-others && ! {inside} test -e /tmp/of-others"));
    println!("ok: its /tmp is its own");
    let others = machine.must("stat -c %a /var/lib/tidegate");
    ok("nobody else looks into its state directory", others == "700", others);
}

pub fn the_clock_is_believed_when_timesyncd_says_so(site: &mut Site) {
    let clock = site.status()["clock"].clone();
    ok("without a time server the clock is not believed", clock["state"] != "synced", &clock);
    site.machine.must("systemctl start time-server && systemctl restart systemd-timesyncd");
    let mark = "test -e /run/systemd/timesync/synchronized && echo there";
    site.machine.wait(PATIENCE, "timesyncd has synchronised", mark, |said| said == "there");
    let pid = site.number("MainPID");
    site.machine.must(&format!("nsenter --target {pid} --mount -- test -e /run/systemd/timesync/synchronized"));
    println!("ok: timesyncd's mark is seen inside the sandbox");
    let is_synced = |said: &str| said.contains("\"state\":\"synced\"");
    site.machine.wait(PATIENCE, "the clock is believed", "tidegate status --json | tr -d ' \\n'", is_synced);
    let clock = site.status()["clock"].clone();
    ok("the clock is synced for the program", clock["state"] == "synced", clock);
}

pub fn reloads(site: &mut Site) {
    let (pid, restarts) = (site.number("MainPID"), site.number("NRestarts"));
    site.machine.must("sed -i 's,factory7/,factory8/,' /etc/tidegate/tidegate.toml && systemctl reload tidegate");
    let arguments = ["--qos", "1", "--pause", "0.2"];
    let mut publisher = Publisher::started(site.machine.port, "reloader", "plant/reload", MESSAGES, &arguments);
    publisher.wait_until_done();
    site.application.wait("a message under the new rule", |received| {
        received.iter().any(|message| message.topic == "factory8/plant/reload")
    });
    ok("a reload brings a new rule into force", true, ());
    site.machine.must("sed -i 's,factory8/,factory7/,' /etc/tidegate/tidegate.toml && systemctl reload tidegate");
    ok("and is no restart", (site.number("MainPID"), site.number("NRestarts")) == (pid, restarts), ());
}

/// Nothing here waits: what is asked right after `systemctl reload` must be so already.
pub fn a_reload_is_waited_for(site: &mut Site) {
    let drop_in = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/drop-ins/notify-reload.conf"));
    let folder = "/etc/systemd/system/tidegate.service.d";
    site.machine.must(&format!("install -d {folder}"));
    write_file(site, &format!("{folder}/notify-reload.conf"), fs::read_to_string(drop_in).unwrap().trim_end());
    site.machine.must("systemctl daemon-reload && systemctl restart tidegate");
    let version = site.machine.must("systemctl --version | head -1");
    ok("systemd takes the drop-in", site.property("Type") == "notify-reload", &version);
    println!("figure: {version}");
    let pid = site.number("MainPID");
    site.machine.must("sed -i 's,factory7/,factory8/,' /etc/tidegate/tidegate.toml && systemctl reload tidegate");
    let arguments = ["--qos", "1"];
    let mut publisher = Publisher::started(site.machine.port, "reloader", "plant/reload", MESSAGES, &arguments);
    publisher.wait_until_done();
    let acknowledged = publisher.acknowledged();
    expect_all(site, "factory8/plant/reload", &acknowledged);
    let by_the_old = site.application.numbers_on("factory7/plant/reload");
    ok("after `systemctl reload` nothing goes by the old rules", by_the_old.is_empty(), by_the_old);
    site.machine
        .must("cp /etc/tidegate/tidegate.toml /root/good.toml && echo 'nonsense = 1' >>/etc/tidegate/tidegate.toml");
    let (status, said) = site.machine.run(PATIENCE, "systemctl reload tidegate");
    let line = site.property("StatusText");
    ok("a wrong configuration is told as soon as it returns", line.contains("nonsense"), (status, said, line));
    site.machine.must("cp /root/good.toml /etc/tidegate/tidegate.toml && systemctl reload tidegate");
    let line = site.property("StatusText");
    ok("and gone as soon as the right one is loaded", !line.contains("nonsense"), line);
    ok("all by one process", (site.number("MainPID"), site.number("NRestarts")) == (pid, 0), ());
}

pub fn a_key_of_systemd_is_read(site: &mut Site) {
    let machine = &mut site.machine;
    let copy = |from: &Path, to: &str| {
        format!("cat >{to} <<'END_OF_FILE'\n{}\nEND_OF_FILE", fs::read_to_string(from).unwrap().trim_end())
    };
    // The service's user can read neither the key nor its folder.
    machine.must("install -d -m 700 /etc/tidegate/tls && install -d /etc/systemd/system/tidegate.service.d");
    machine.must(&copy(&site.certificates.client_key, "/etc/tidegate/tls/cloud.key"));
    machine.must("chmod 600 /etc/tidegate/tls/cloud.key");
    machine.must(&copy(&site.certificates.ca, "/etc/tidegate/ca.pem"));
    machine.must(&copy(&site.certificates.client_cert, "/etc/tidegate/cloud.pem"));
    let drop_in = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/drop-ins/credentials.conf"));
    machine.must(&copy(drop_in, "/etc/systemd/system/tidegate.service.d/credentials.conf"));
    machine.must(&format!("echo '{HOST} cloud.example' >>/etc/hosts"));
    let url = format!(
        "url = \"mqtts://cloud.example:{}\"\\nca = \"ca.pem\"\\ncert = \"cloud.pem\"\\n\
         key = \"${{CREDENTIALS_DIRECTORY}}/cloud.key\"",
        site.cloud.tls_port.unwrap()
    );
    machine.must(&format!("sed -i 's,^url = .*,{url},' /etc/tidegate/tidegate.toml"));
    machine.must(
        "systemctl daemon-reload && systemctl restart tidegate && \
         tidegate status --wait healthy --timeout 240s",
    );
    let denied = "setpriv --reuid tidegate --regid tidegate --init-groups cat /etc/tidegate/tls/cloud.key";
    let (status, said) = machine.run(PATIENCE, denied);
    ok("a key that only root can read", status != 0 && said.contains("Permission denied"), said);
    let log = site.cloud.log();
    ok("lets the service into the cloud, handed over by systemd", log.contains("u'press-hall-3'"), log);
}

pub fn an_absent_cloud_is_no_reason_to_restart(site: &mut Site) {
    let limit = Duration::from_micros(watchdog_us(site));
    let (pid, restarts) = (site.number("MainPID"), site.number("NRestarts"));
    site.cloud.stop();
    let gone = Instant::now();
    site.machine.wait(PATIENCE, "the cloud is missed", "tidegate status --json", |said| {
        !said.contains("\"state\":\"connected\"")
    });
    // The limit is a time, so here a time is waited for.
    while gone.elapsed() < limit + limit / 4 {
        std::thread::sleep(Duration::from_secs(5));
        assert_eq!(site.number("NRestarts"), restarts, "the watchdog fired because the cloud is away");
    }
    let what = format!("the cloud is away for {} s and the watchdog does not fire", gone.elapsed().as_secs());
    ok(&what, site.number("MainPID") == pid, ());
}

/// `hooked` is the same program but for the hook. A debugger that held the thread instead would hold the killed process
/// as well, and with it the lock of the state directory.
pub fn a_queue_that_hangs_is(site: &mut Site, hooked: &Path) {
    let limit = Duration::from_micros(watchdog_us(site));
    install(site, hooked);
    let arguments = ["--qos", "1", "--pause", "0.05"];
    let mut publisher = Publisher::started(site.machine.port, "before", "plant/before", MESSAGES, &arguments);
    publisher.wait_until_done();
    let acknowledged = publisher.acknowledged();
    let restarts = site.number("NRestarts");

    site.machine.must("touch /var/lib/tidegate/test-hook-hang-queue");
    let hanging = Instant::now();
    let mut meanwhile = Publisher::started(site.machine.port, "meanwhile", "plant/meanwhile", MESSAGES, &arguments);
    let restarted = "systemctl show --value --property NRestarts tidegate";
    let wanted = (restarts + 1).to_string();
    // What the thread was about when the hook was set may still come; after that nothing more, for as long as it hangs.
    let (mut early, mut late) = (None, None);
    site.machine.wait(limit * 2 + PATIENCE, "systemd has started it again", restarted, |said| {
        if hanging.elapsed() > limit / 4 {
            early.get_or_insert(meanwhile.acknowledged().len());
        }
        if hanging.elapsed() > limit / 2 {
            late.get_or_insert(meanwhile.acknowledged().len());
        }
        said == wanted
    });
    println!("figure: restarted {} s after the queue's thread hung", hanging.elapsed().as_secs());
    let is_silent = early.is_some() && early == late && early < Some(MESSAGES as usize / 4);
    ok("nothing is acknowledged by a queue that hangs", is_silent, (early, late));
    site.machine.must("rm /var/lib/tidegate/test-hook-hang-queue");
    site.machine.wait(PATIENCE, "it is active again", "systemctl is-active tidegate", |said| said == "active");
    println!("figure: ready {} ms after that start", site.start_ms());
    let journal = site.machine.must("journalctl -u tidegate -b --no-pager | grep -i watchdog");
    ok("the watchdog fires when the queue's thread hangs", journal.contains("Watchdog timeout"), journal);
    ok("once", site.number("NRestarts") == restarts + 1, ());
    meanwhile.wait_until_done();
    site.cloud.start();
    expect_all(site, "factory7/plant/before", &acknowledged);
    ok("nothing acknowledged is lost by that", true, ());
    expect_all(site, "factory7/plant/meanwhile", &meanwhile.acknowledged());
    ok("what was published meanwhile is taken by the next life", true, ());
}

/// Waits until all that were published are with the application; some may be there twice.
#[track_caller]
fn expect_all(site: &mut Site, topic: &str, acknowledged: &[u64]) {
    assert_eq!(acknowledged.len() as u64, MESSAGES, "acknowledged on {topic}");
    wait_until(PATIENCE, &format!("nothing acknowledged on {topic} is missing"), || {
        let missing = lost(&site.application.numbers_on(topic), acknowledged);
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?} are")) }
    });
}

fn install(site: &mut Site, package: &Path) {
    let name = package.file_name().unwrap().to_string_lossy();
    site.machine.must(&format!("apt-get install -y ./debs/{name}"));
    site.machine.wait(PATIENCE, "it is active", "systemctl is-active tidegate", |said| said == "active");
}

pub fn an_upgrade_keeps_the_queue(site: &mut Site, next: &Path) {
    site.cloud.stop();
    let arguments = ["--qos", "1", "--pause", "0.05"];
    let mut publisher = Publisher::started(site.machine.port, "upgrade", "plant/upgrade", MESSAGES, &arguments);
    publisher.wait_until_done();
    let acknowledged = publisher.acknowledged();
    let (pid, before) = (site.number("MainPID"), starts(site));
    let configuration = site.machine.must("sha256sum /etc/tidegate/tidegate.toml");
    install(site, next);
    let version = site.machine.must("dpkg-query -Wf '${Version}' tidegate");
    ok("the package is the next one", version.starts_with("99."), version);
    ok("the service is restarted by it", site.number("MainPID") != pid && site.number("NRestarts") == 0, ());
    ok("once", starts(site) == before + 1, before);
    let kept = site.machine.must("sha256sum /etc/tidegate/tidegate.toml");
    ok("the configuration is kept", kept == configuration, kept);
    site.cloud.start();
    expect_all(site, "factory7/plant/upgrade", &acknowledged);
    ok("what waited is delivered by the next one", true, ());
}

/// How often the service has become ready since the boot.
fn starts(site: &mut Site) -> u64 {
    let said = site.machine.must("journalctl -u tidegate -b -o cat --no-pager | grep -c '^Started tidegate'");
    said.parse().unwrap_or_else(|_| panic!("{said:?} is no number"))
}

fn watchdog_us(site: &mut Site) -> u64 {
    // Shown as a time span ("2min"): the file says the number.
    let said = site.machine.must("systemctl cat tidegate | sed -n 's/^WatchdogSec=//p'");
    said.parse::<u64>().unwrap_or_else(|_| panic!("WatchdogSec is {said:?}")) * 1_000_000
}

fn write_file(site: &mut Site, path: &str, text: &str) {
    site.machine.must(&format!("cat >{path} <<'END_OF_FILE'\n{text}\nEND_OF_FILE"));
}
