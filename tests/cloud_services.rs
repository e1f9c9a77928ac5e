//! Do twin, shadow and jobs keep in step with the cloud, whatever comes between, and cost the messages nothing?
//!
//! The other side plays the services by the clouds' documents (`peers/cloud_services.py` beside Debian's Mosquitto); what is on
//! the wire is held against the libraries of Azure and AWS. Injected: lines that are cut, kills, refusals, throttling, silence,
//! and policies that lack a service. Survivable, because a state is asked for again after each connection, and a job and its
//! answer are in the queue. The tests take no turns: nearly all of each is waiting.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod aws_support;
mod common;
mod services_support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use common::certificates::Certificates;
use common::gateway::{Gateway, ID, PROGRAM, folder};
use common::peers::{Subscriber, mosquitto_sub, script_in, start_script_in};
use common::process::Process;
use common::{PATIENCE, wait_until};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use services_support::{Gate, Manner, Services, publish};
use tempfile::TempDir;
use tidegate::config::clouds::aws_policy::allows;

const KEY: &str = "c2VjcmV0IG9mIHRoZSBkZXZpY2U=";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Twin,
    Classic,
    Named,
}

impl Kind {
    /// As the peer calls it.
    fn service(self) -> &'static str {
        match self {
            Kind::Twin => "twin",
            Kind::Classic => "shadow",
            Kind::Named => "shadow/gateway",
        }
    }

    fn table(self) -> &'static str {
        match self {
            Kind::Twin | Kind::Classic => "twin = {}\n",
            // The thing is called otherwise than the client.
            Kind::Named => "client_id = \"another\"\nthing = \"{gateway}\"\ntwin = { shadow = \"gateway\" }\n",
        }
    }
}

/// A cloud with its services, and the gate before it.
struct Cloud {
    services: Services,
    gate: Gate,
    certificates: Certificates,
    folder: TempDir,
}

impl Cloud {
    /// The gate is shut.
    fn started(is_azure: bool) -> Cloud {
        let folder = folder();
        let certificates = Certificates::make(&folder.path().join("cloud"), ID);
        let services = Services::started(folder.path());
        let acceptor = aws_support::acceptor(&certificates, if is_azure { &["mqtt"] } else { &[] });
        let gate = Gate::started(acceptor, services.mosquitto.port, true);
        Cloud { services, gate, certificates, folder }
    }

    /// The uplink `cloud` to it.
    fn uplink(&self, is_azure: bool, more: &str) -> String {
        let Certificates { ca, client_cert, client_key, .. } = &self.certificates;
        let login = match is_azure {
            true => format!("profile = \"azure-iot-hub\"\nsas = {{ key = \"{}\" }}", key(self.folder.path())),
            false => format!(
                "profile = \"aws-iot\"\ncert = \"{}\"\nkey = \"{}\"",
                client_cert.display(),
                client_key.display()
            ),
        };
        format!(
            "[uplink.cloud]\nurl = \"mqtts://localhost:{}\"\nca = \"{}\"\n{login}\nown_topic = \"\"\n\
             reconnect = {{ first = \"200ms\", max = \"1s\" }}\n{more}\n[[uplink.cloud.forward]]\nfilter = \"plant/#\"\n",
            self.gate.port,
            ca.display()
        )
    }

    /// From now on the cloud goes by the policy that `check` prints for this gateway.
    fn go_by_the_policy_of(&self, gateway: &Gateway) {
        let words = ["check", "--aws-policy", "--config"];
        let output = Command::new(PROGRAM).args(words).arg(gateway.config_path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        self.gate.state().policy = Some(serde_json::from_slice(&output.stdout).unwrap());
    }

    /// Nothing happened that the services would not take, or the policy.
    #[track_caller]
    fn assert_served(&mut self) {
        assert_eq!(self.services.violations(), Vec::<String>::new());
        assert_eq!(self.gate.state().not_allowed, []);
    }
}

/// The device's key in a file.
fn key(folder: &Path) -> String {
    let path = folder.join("device.key");
    fs::write(&path, format!("{KEY}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

/// What a local client says of itself; an empty text takes it back.
#[track_caller]
fn retain(gateway: &Gateway, name: &str, text: &str) {
    publish(gateway.port, &["-r", "-t", &format!("twin/cloud/{name}"), "-m", text]);
}

#[track_caller]
fn wait_for_log(gateway: &Gateway, said: &[&str]) {
    wait_until(PATIENCE, &format!("the journal says {said:?}"), || {
        let log = gateway.log();
        let is_said = log.iter().any(|line| said.iter().all(|word| line.contains(word)));
        if is_said { Ok(()) } else { Err(log.join("\n")) }
    });
}

fn count_in_log(gateway: &Gateway, said: &str) -> usize {
    gateway.log().iter().filter(|line| line.contains(said)).count()
}

/// All that was desired, as the local subscriber got it.
fn desired(witness: &mut Subscriber) -> Vec<Value> {
    witness.received().iter().map(|message| message.json()["desired"].clone()).collect()
}

#[track_caller]
fn wait_for_desired(witness: &mut Subscriber, expected: &Value) {
    let what = format!("{expected}");
    witness.wait(&what, |received| received.last().is_some_and(|message| message.json()["desired"] == *expected));
}

fn keeps_in_step(kind: Kind) {
    let is_azure = kind == Kind::Twin;
    let service = kind.service();
    let mut cloud = Cloud::started(is_azure);
    let desire = |cloud: &mut Cloud, patch: Value| {
        cloud.services.order(&json!({"order": "desire", "service": service, "desired": patch}));
    };
    desire(&mut cloud, json!({"rate": 5}));
    let mut gateway = Gateway::started(cloud.folder.path(), &cloud.uplink(is_azure, kind.table()));
    if !is_azure {
        cloud.go_by_the_policy_of(&gateway);
    }
    let mut witness = Subscriber::started(gateway.port, "witness", &[&format!("tidegate/{ID}/twin/cloud")]);
    retain(&gateway, "line", r#"{"speed": 3, "none": null, "nothing": {}}"#);
    retain(&gateway, "note", "as it is");
    cloud.gate.open();
    cloud.services.wait_for_reported(service, &json!({"line": {"speed": 3}, "note": "as it is"}));
    wait_for_desired(&mut witness, &json!({"rate": 5}));

    // A fault of a local client holds up nothing.
    match kind {
        Kind::Twin => retain(&gateway, "a.b", "1"),
        Kind::Classic => {
            let file = cloud.folder.path().join("binary");
            fs::write(&file, [0xff, 0xfe]).unwrap();
            publish(gateway.port, &["-r", "-t", "twin/cloud/binary", "-f", file.to_str().unwrap()]);
        }
        Kind::Named => publish(gateway.port, &["-t", "twin/cloud/passing", "-m", "1"]),
    }
    wait_for_log(
        &gateway,
        match kind {
            Kind::Twin => &["twin/cloud/a.b", "its name is not of letters"],
            Kind::Classic => &["twin/cloud/binary", "neither JSON nor text"],
            Kind::Named => &["twin/cloud/passing", "was not retained"],
        },
    );
    retain(&gateway, "line", r#"{"speed": 4, "mode": "a"}"#);
    retain(&gateway, "note", "");
    cloud.services.wait_for_reported(service, &json!({"line": {"speed": 4, "mode": "a"}}));
    // Only what is different goes up.
    let update = if is_azure { "PATCH" } else { "update" };
    let last = cloud.services.requests(service, update).pop().unwrap();
    assert!(!last["payload"].as_str().unwrap().contains("version"), "{last}");

    // Desired while it is there, while the line is down, and while the gateway is dead.
    desire(&mut cloud, json!({"mode": {"night": true, "level": 2}}));
    wait_for_desired(&mut witness, &json!({"rate": 5, "mode": {"night": true, "level": 2}}));
    desire(&mut cloud, json!({"mode": {"night": null}}));
    wait_for_desired(&mut witness, &json!({"rate": 5, "mode": {"level": 2}}));
    cloud.gate.shut();
    desire(&mut cloud, json!({"rate": 6}));
    // Taken back while nobody can be told, and by a process that dies before it could.
    retain(&gateway, "line", "");
    cloud.gate.open();
    wait_for_desired(&mut witness, &json!({"rate": 6, "mode": {"level": 2}}));
    retain(&gateway, "other", "1");
    cloud.services.wait_for_reported(service, &json!({"other": 1}));
    cloud.gate.shut();
    retain(&gateway, "other", "");
    gateway.kill();
    match is_azure {
        true => cloud.services.order(&json!({"order": "replace", "service": service, "desired": {"rate": 7}})),
        false => desire(&mut cloud, json!({"rate": 7, "mode": null})),
    }
    cloud.gate.open();
    gateway.start();
    wait_for_desired(&mut witness, &json!({"rate": 7}));
    cloud.services.wait_for_reported(service, &json!({}));

    // Where nothing has changed, nothing is published again: the next word is the next change.
    let get = if is_azure { "GET" } else { "get" };
    let before = cloud.services.requests(service, get).len();
    gateway.stop();
    gateway.start();
    wait_until(PATIENCE, "it has asked again", || {
        let asked = cloud.services.requests(service, get).len();
        if asked > before { Ok(()) } else { Err(format!("{asked}")) }
    });
    desire(&mut cloud, json!({"rate": 8}));
    wait_for_desired(&mut witness, &json!({"rate": 8}));
    let modes = [json!({"night": true, "level": 2}), json!({"level": 2})];
    let expected = [
        json!({"rate": 5}),
        json!({"rate": 5, "mode": modes[0]}),
        json!({"rate": 5, "mode": modes[1]}),
        json!({"rate": 6, "mode": modes[1]}),
        json!({"rate": 7}),
        json!({"rate": 8}),
    ];
    assert_eq!(desired(&mut witness), expected, "each once");
    if is_azure {
        // All of them at once: what is no more is told as null.
        cloud.services.order(&json!({"order": "replace", "service": service, "desired": {"other": 1}}));
        wait_for_desired(&mut witness, &json!({"other": 1}));
    } else {
        cloud.services.order(&json!({"order": "delete", "service": service}));
        wait_for_desired(&mut witness, &json!({}));
        retain(&gateway, "after", "1");
        cloud.services.wait_for_reported(service, &json!({"after": 1}));
    }
    cloud.assert_served();
    gateway.stop();
}

#[test]
fn twin_and_shadows_keep_in_step_over_cuts_and_kills_and_nothing_is_published_twice() {
    at_once(&[Kind::Twin, Kind::Classic, Kind::Named], |kind| keeps_in_step(*kind));
}

/// Each case with a cloud of its own, beside the others: nearly all of it is waiting.
fn at_once<T: Sync>(cases: &[T], check: impl Fn(&T) + Sync) {
    std::thread::scope(|scope| {
        let check = &check;
        cases.iter().for_each(|case| drop(scope.spawn(move || check(case))));
    });
}

/// Messages that the cloud has got.
fn application(cloud: &Cloud) -> Subscriber {
    Subscriber::started(cloud.services.mosquitto.port, "application", &["plant/#", "devices/#"])
}

#[track_caller]
fn deliver(gateway: &Gateway, application: &mut Subscriber, text: &str) {
    publish(gateway.port, &["-t", "plant/press", "-m", text]);
    application.wait(text, |received| received.iter().any(|message| message.payload == text));
}

#[test]
fn what_the_cloud_refuses_is_named_and_neither_throttling_nor_silence_holds_up_messages_and_the_state_gets_there() {
    // A hub that has too much to do, and then says nothing; beside it a shadow that does not take one property.
    let (mut hub, mut aws) = (Cloud::started(true), Cloud::started(false));
    hub.services.order(&json!({"order": "refuse", "service": "twin", "tail": "GET/", "code": 429, "count": 1}));
    aws.services
        .order(&json!({"order": "refuse", "service": "shadow", "tail": "update", "code": 400, "names": ["bad"]}));
    let hub_gateway = Gateway::named("hub", hub.folder.path(), &hub.uplink(true, Kind::Twin.table()));
    let aws_gateway = Gateway::named("aws", aws.folder.path(), &aws.uplink(false, Kind::Classic.table()));
    let [mut hub_gateway, mut aws_gateway] = [hub_gateway, aws_gateway];
    hub_gateway.start();
    aws_gateway.start();
    for (gateway, cloud) in [(&hub_gateway, &hub), (&aws_gateway, &aws)] {
        retain(gateway, "good", "1");
        retain(gateway, "bad", "{\"x\": 1}");
        cloud.gate.open();
    }
    let mut application = application(&hub);
    wait_until(PATIENCE, "the hub has refused once", || {
        let asked = hub.services.requests("twin", "GET").len();
        if asked > 0 { Ok(()) } else { Err("it was not asked".to_owned()) }
    });
    deliver(&hub_gateway, &mut application, "while it is throttled");

    wait_for_log(&aws_gateway, &[r#"the property \"bad\" is not taken: 400"#]);
    aws.services.wait_for_reported("shadow", &json!({"good": 1}));
    // Another value is another matter.
    aws.services.order(&json!({"order": "allow"}));
    retain(&aws_gateway, "bad", "2");
    aws.services.wait_for_reported("shadow", &json!({"good": 1, "bad": 2}));
    assert_eq!(count_in_log(&aws_gateway, "is not taken"), 1);
    aws.assert_served();

    hub.services.wait_for_reported("twin", &json!({"good": 1, "bad": {"x": 1}}));
    hub.services.order(&json!({"order": "silence", "service": "twin"}));
    retain(&hub_gateway, "good", "2");
    wait_until(PATIENCE, "it is told, and says nothing", || {
        let said = hub.services.requests("twin", "PATCH").pop().unwrap();
        if said["answers"] == json!([]) { Ok(()) } else { Err(said.to_string()) }
    });
    deliver(&hub_gateway, &mut application, "while it is silent");
    // The next connection does not wait for the last one's answer.
    hub.services.order(&json!({"order": "speak", "service": "twin"}));
    hub.gate.shut();
    hub.gate.open();
    hub.services.wait_for_reported("twin", &json!({"good": 2, "bad": {"x": 1}}));
    assert_eq!(count_in_log(&hub_gateway, "The cloud does not do what"), 0, "no person is needed");
    hub.assert_served();
}

#[test]
fn a_service_that_the_cloud_does_not_allow_costs_itself_and_neither_messages_nor_the_other_service() {
    let cases = [
        ("/shadow/get/accepted", Manner::Refuses, "twin"),
        ("/jobs/notify-next", Manner::Closes, "jobs"),
        ("/shadow/get", Manner::Closes, "twin"),
        ("/shadow/update", Manner::Closes, "twin"),
    ];
    at_once(&cases, |(part, manner, service)| costs_itself(part, *manner, service));
}

fn costs_itself(part: &'static str, manner: Manner, service: &str) {
    let mut cloud = Cloud::started(false);
    cloud.gate.state().forbidden = Some((part, manner));
    let mut gateway = Gateway::started(cloud.folder.path(), &cloud.uplink(false, "twin = {}\njobs = true\n"));
    let local = format!("tidegate/{ID}/job/cloud");
    let mut runner = Subscriber::started(gateway.port, "runner", &[&local]);
    retain(&gateway, "line", "1");
    cloud.services.queue("a-1", &json!({"operation": "x"}));
    cloud.gate.open();
    let mut application = application(&cloud);
    deliver(&gateway, &mut application, "first");
    wait_for_log(&gateway, &["one of its services", &format!("service={service} ")]);
    match service {
        "jobs" => cloud.services.wait_for_reported("shadow", &json!({"line": 1})),
        _ => runner.wait_for_count(&local, 1),
    }
    deliver(&gateway, &mut application, "on the connection that lasts");
    let connects = cloud.gate.state().connects;
    assert!(connects <= 5, "{part}: {connects} connections");
    deliver(&gateway, &mut application, "last");
    assert_eq!(cloud.gate.state().connects, connects, "{part}: no more than these");
    assert_eq!(count_in_log(&gateway, "one of its services"), 1, "{part}");
    gateway.stop();
}

/// Whoever carries jobs out, by Mosquitto's own client with a session that is kept. It says topic, response topic and job.
/// At QoS 2 a job comes once; at QoS 1 it may come again after a kill.
fn runner(gateway: &Gateway, id: &str, qos: &str, more: &[&str]) -> Process {
    let (port, topic) = (gateway.port.to_string(), format!("tidegate/{ID}/job/cloud"));
    let words = ["-p", port.as_str(), "-c", "-q", qos, "-i", id, "-t", topic.as_str(), "-F", "%t %R|%p"];
    mosquitto_sub(gateway.port, &[&words[..], more].concat())
}

/// The jobs that a runner got, as they came, each with its response topic.
fn taken(runner: &Process) -> Vec<(String, Value)> {
    let lines = runner.stdout();
    let jobs = lines.iter().filter_map(|line| line.strip_prefix("tidegate/")?.split_once(' ')?.1.split_once('|'));
    jobs.map(|(place, job)| (place.to_owned(), serde_json::from_str(job).unwrap())).collect()
}

#[track_caller]
fn wait_for_taken(runner: &Process, ids: &[&str]) -> Value {
    wait_until(PATIENCE, &format!("the runner has {ids:?}"), || {
        let taken = taken(runner);
        let found: Vec<&str> = taken.iter().filter_map(|(_, job)| job["id"].as_str()).collect();
        if found == ids { Ok(taken.last().unwrap().1.clone()) } else { Err(format!("{found:?}")) }
    })
}

#[track_caller]
fn answer(gateway: &Gateway, job: &Value, said: &Value) {
    publish(gateway.port, &["-t", job["answer"].as_str().unwrap(), "-m", &said.to_string()]);
}

#[test]
fn each_job_comes_once_to_a_local_client_and_its_answer_gets_there_also_over_kills() {
    let mut cloud = Cloud::started(false);
    let mut gateway = Gateway::started(cloud.folder.path(), &cloud.uplink(false, "twin = {}\njobs = true\n"));
    cloud.go_by_the_policy_of(&gateway);
    let old = runner(&gateway, "runner", "2", &[]);
    let new = runner(&gateway, "modern", "1", &["-V", "5", "-x", "3600"]);
    // The answer that there is no job is late: what is queued meanwhile is told of before it.
    cloud.services.order(&json!({"order": "hold", "service": "jobs"}));
    cloud.gate.open();
    wait_until(PATIENCE, "a job is asked for", || {
        let asked = cloud.services.requests("jobs", "start-next").len();
        if asked == 1 { Ok(()) } else { Err(format!("{asked}")) }
    });
    cloud.services.queue("one", &json!({"operation": "blink", "times": 3}));
    cloud.services.queue("two", &json!({"operation": "blink"}));
    cloud.services.order(&json!({"order": "release", "service": "jobs"}));
    let job = wait_for_taken(&old, &["one"]);
    assert_eq!((&job["execution"], &job["document"]["times"]), (&json!(1), &json!(3)));
    answer(&gateway, &job, &json!({"status": "IN_PROGRESS", "statusDetails": {"step": "1"}}));
    cloud.services.wait("jobs", "a step is told", |state| {
        (state["jobs"][0]["statusDetails"] == json!({"step": "1"})).then_some(())
    });
    answer(&gateway, &job, &json!({"status": "SUCCEEDED", "statusDetails": {"took": "3 s"}}));
    let done = cloud.services.wait_for_job("one", "SUCCEEDED");
    assert_eq!(done["statusDetails"], json!({"took": "3 s"}));

    // The next one follows, and whoever speaks MQTT 5 finds in it where its answer goes.
    wait_for_taken(&old, &["one", "two"]);
    wait_for_taken(&new, &["one", "two"]);
    let place = &taken(&new)[1].0;
    let said = r#"{"status": "FAILED", "statusDetails": {"why": "dark"}}"#;
    publish(gateway.port, &["-V", "5", "-t", place, "-m", said]);
    let failed = cloud.services.wait_for_job("two", "FAILED");
    assert_eq!(failed["statusDetails"], json!({"why": "dark"}));

    // Killed between a job and its answer: it is asked for again, and known.
    cloud.services.queue("three", &json!({}));
    let job = wait_for_taken(&old, &["one", "two", "three"]);
    gateway.kill();
    gateway.start();
    cloud.services.wait("jobs", "it is given out again", |state| (state["jobs"][2]["starts"] == 2).then_some(()));
    // Killed between the answer and its delivery.
    cloud.gate.shut();
    answer(&gateway, &job, &json!({"status": "SUCCEEDED"}));
    gateway.kill();
    cloud.services.queue("four", &json!({}));
    gateway.start();
    cloud.gate.open();
    cloud.services.wait_for_job("three", "SUCCEEDED");
    let job = wait_for_taken(&old, &["one", "two", "three", "four"]);

    // It ended otherwise meanwhile: whoever answers cannot know, and it is told.
    cloud.services.order(&json!({"order": "cancel", "service": "jobs", "id": "four"}));
    answer(&gateway, &job, &json!({"status": "SUCCEEDED"}));
    wait_for_log(&gateway, &["service=jobs", r#"the job \"four\" is not taken: InvalidStateTransition"#]);
    // Nobody but the gateway says what a job is. The same job once more is another execution.
    let forged = format!("tidegate/{ID}/job/cloud");
    let words = ["-p", &gateway.port.to_string(), "-V", "5", "-q", "1", "-t", &forged, "-m", r#"{"id": "forged"}"#];
    let said = Command::new("mosquitto_pub").args(words).output().unwrap();
    assert!(String::from_utf8_lossy(&said.stderr).contains("failed"), "{said:?}");
    cloud.services.queue("four", &json!({"again": true}));
    let job = wait_for_taken(&old, &["one", "two", "three", "four", "four"]);
    assert_eq!(job["execution"], 2);
    answer(&gateway, &job, &json!({"status": "REJECTED"}));
    cloud.services.wait_for_job("four", "REJECTED");
    wait_until(PATIENCE, "the other runner has them too, repeats left out", || {
        let mut jobs: Vec<Value> = taken(&new).into_iter().map(|(_, job)| job).collect();
        jobs.dedup();
        if jobs.len() == 5 { Ok(()) } else { Err(format!("{jobs:?}")) }
    });
    cloud.assert_served();
    only_what_is_used(&cloud);
    gateway.stop();
}

/// Each right at the services that the policy gives was used.
#[track_caller]
fn only_what_is_used(cloud: &Cloud) {
    let state = cloud.gate.state();
    let policy = state.policy.as_ref().unwrap();
    let mut looked = 0;
    for statement in policy["Statement"].as_array().unwrap() {
        // What comes in is not seen by the gate.
        if statement["Action"] == "iot:Receive" {
            continue;
        }
        let resources = statement["Resource"].as_array().unwrap().iter().filter_map(Value::as_str);
        for resource in resources.filter(|resource| resource.contains("$aws/")) {
            looked += 1;
            let alone =
                json!({"Statement": [{"Effect": "Allow", "Action": statement["Action"], "Resource": [resource]}]});
            let is_used = |(action, used): &(String, String)| {
                allows(&alone, action, &format!("arn:aws:iot:REGION:ACCOUNT:{used}"))
            };
            assert!(state.used.iter().any(is_used), "{} {resource} is not used", statement["Action"]);
        }
    }
    assert!(looked >= 13, "{looked}");
}

/// Requests without what differs from one to the next: the number of a request, the token of a client.
fn without_tokens(requests: &[Value]) -> Vec<(String, Value, Value)> {
    let plain = requests.iter().map(|request| {
        let tail = request["request"].as_str().unwrap();
        let tail = tail.split_once("$rid=").map_or(tail.to_owned(), |(tail, _)| format!("{tail}$rid="));
        // The library of Azure says a blank where nothing is said.
        let text = request["payload"].as_str().unwrap().trim();
        let mut payload: Value = serde_json::from_str(text).unwrap_or(Value::Null);
        if let Some(token) = payload.get_mut("clientToken") {
            *token = Value::Null;
        }
        (tail, payload, request["qos"].clone())
    });
    plain.collect()
}

/// What a client has subscribed to at the services.
fn subscribed(cloud: &Cloud, client_id: &str) -> BTreeMap<String, u8> {
    let state = cloud.gate.state();
    let ours = state.subscribed.iter().filter(|(id, _)| id == client_id);
    ours.flat_map(|(_, filters)| filters.clone()).filter(|(filter, _)| filter.starts_with('$')).collect()
}

#[test]
fn what_is_said_of_a_twin_is_what_the_library_of_azure_says() {
    let mut cloud = Cloud::started(true);
    let mut gateway = Gateway::started(cloud.folder.path(), &cloud.uplink(true, Kind::Twin.table()));
    retain(&gateway, "line", r#"{"speed": 3, "mode": ["a", 1.5, true]}"#);
    cloud.gate.open();
    cloud.services.wait_for_reported("twin", &json!({"line": {"speed": 3, "mode": ["a", 1.5, true]}}));
    gateway.stop();
    let reported = cloud.services.requests("twin", "PATCH").pop().unwrap();
    let asked = cloud.services.requests("twin", "GET").pop().unwrap();
    let ours = without_tokens(&[asked, reported.clone()]);
    let filters = subscribed(&cloud, ID);
    let before = cloud.services.requests("twin", "").len();

    cloud.gate.state().subscribed.clear();
    let (port, ca) = (cloud.gate.port.to_string(), cloud.certificates.ca.display().to_string());
    let words = [port.as_str(), &ca, ID, KEY, reported["payload"].as_str().unwrap()];
    let mut library = start_script_in("venv-azure", "azure_twin", &words);
    library.wait_for_line(PATIENCE, "that it has reported", |line| line == "reported");
    assert_eq!(without_tokens(&cloud.services.requests("twin", "")[before..]), ours);
    assert_eq!(subscribed(&cloud, ID), filters);
    // The library understands this hub, so that it may be one.
    assert!(library.stdout()[0].contains("\"desired\""), "{:?}", library.stdout());
    cloud.services.order(&json!({"order": "desire", "service": "twin", "desired": {"rate": 5}}));
    library.wait_for_line(PATIENCE, "what is desired", |line| line.contains("\"rate\": 5"));
    library.tell("");
    assert!(library.wait(PATIENCE).success());
    cloud.assert_served();
}

#[test]
fn what_is_said_of_shadows_and_jobs_is_what_the_library_of_aws_says() {
    at_once(&[Kind::Classic, Kind::Named], |kind| {
        let service = kind.service();
        let mut cloud = Cloud::started(false);
        let more = format!("{}jobs = true\n", kind.table());
        let mut gateway = Gateway::started(cloud.folder.path(), &cloud.uplink(false, &more));
        let runner = runner(&gateway, "runner", "1", &[]);
        cloud.services.order(&json!({"order": "desire", "service": service, "desired": {"rate": 5}}));
        cloud.services.queue("a-1", &json!({"operation": "blink"}));
        cloud.services.queue("a-2", &json!({"operation": "blink"}));
        retain(&gateway, "line", r#"{"speed": 3}"#);
        cloud.gate.open();
        cloud.services.wait_for_reported(service, &json!({"line": {"speed": 3}}));
        let update = json!({"status": "SUCCEEDED", "statusDetails": {"took": "3 s"}});
        answer(&gateway, &wait_for_taken(&runner, &["a-1"]), &update);
        cloud.services.wait_for_job("a-1", "SUCCEEDED");
        gateway.kill();
        let reported = cloud.services.requests(service, "update").pop().unwrap();
        let said = serde_json::from_str::<Value>(reported["payload"].as_str().unwrap()).unwrap();
        let asked = cloud.services.requests(service, "get").pop().unwrap();
        let ours = [
            without_tokens(&[asked, reported]),
            without_tokens(&cloud.services.requests("jobs", "start-next")[..1]),
            without_tokens(&cloud.services.requests("jobs", "a-1")),
        ]
        .concat();
        let filters = subscribed(&cloud, if kind == &Kind::Named { "another" } else { ID });
        let before = ["jobs", service].map(|service| cloud.services.requests(service, "").len());

        let Certificates { ca, client_cert, client_key, .. } = &cloud.certificates;
        let files = [ca, client_cert, client_key].map(|path| path.to_str().unwrap());
        let shadow = service.strip_prefix("shadow/").unwrap_or_default();
        let (port, reported) = (cloud.gate.port.to_string(), said["state"]["reported"].to_string());
        let update = update.to_string();
        let more = ["library", ID, shadow, reported.as_str(), "a-2", update.as_str()];
        let words = [&[port.as_str()][..], &files, &more].concat();
        let told = script_in("venv-aws", "aws_services", &words);
        let both = r#"["ShadowUpdatedEvent", "UpdateShadowResponse"]"#;
        assert_eq!(told, [r#"{"rate": 5}"#, both, r#"["a-2", 1, {"operation": "blink"}]"#, "done"]);
        cloud.services.wait_for_job("a-2", "SUCCEEDED");
        let [jobs, shadows] = ["jobs", service].map(|service| cloud.services.requests(service, ""));
        let theirs = [&shadows[before[1]..], &jobs[before[0]..]].concat();
        let mut theirs = without_tokens(&theirs);
        theirs.last_mut().unwrap().0 = "a-1/update".to_owned();
        assert_eq!(theirs, ours);
        assert_eq!(subscribed(&cloud, "library"), filters);
        cloud.assert_served();
    });
}

/// The script of the page, in a place of its own, whose programs are at hand.
struct PageRunner {
    process: Process,
}

impl PageRunner {
    fn started(gateway: &Gateway, place: &Path) -> PageRunner {
        let page = include_str!("../docs/clouds-aws.md");
        let script =
            page.split_once("## Jobs").unwrap().1.split_once("```sh\n").unwrap().1.split_once("```").unwrap().0;
        let place = place.display();
        let replaced = ["tidegate/press-hall-3/job/aws", "/var/lib/job-runner", "/run/lamp"];
        assert!(replaced.iter().all(|part| script.contains(part)), "{script}");
        let script = script
            .replace(replaced[0], &format!("tidegate/{ID}/job/cloud"))
            .replace(replaced[1], &place.to_string())
            .replace(replaced[2], &place.to_string());
        fs::write(format!("{place}/runner"), script).unwrap();
        let port = gateway.port;
        for (name, text) in [
            // The gateway's port is not the usual one. Each job comes twice, as one may after a kill.
            ("mosquitto_sub", format!("/usr/bin/mosquitto_sub -p {port} \"$@\" | sed -u p")),
            ("mosquitto_pub", format!("exec /usr/bin/mosquitto_pub -p {port} \"$@\"")),
            // It takes until the test lets it end, but not for ever.
            (
                "systemctl",
                format!(
                    "echo \"$@\" >> {place}/called\n\
                     for n in $(seq 600); do [ -e {place}/go ] && break; sleep 0.1; done\nprintf 'well\\nrestarted\\n'"
                ),
            ),
        ] {
            let path = format!("{place}/bin/{name}");
            fs::create_dir_all(format!("{place}/bin")).unwrap();
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let path = format!("{place}/bin:{}", std::env::var("PATH").unwrap());
        let words = ["sh".to_owned(), format!("{place}/runner")];
        // The leader of a group of its own, which a service manager would end as a whole.
        PageRunner { process: Process::start_with("runner", "setsid", &words, &[("PATH", &path)]) }
    }
}

impl Drop for PageRunner {
    fn drop(&mut self) {
        let id = i32::try_from(self.process.id()).unwrap();
        kill_process_group(Pid::from_raw(id).unwrap(), Signal::KILL).ok();
    }
}

#[test]
fn the_runner_of_the_page_carries_out_what_stands_in_its_list_and_without_it_no_job_is_begun() {
    let mut cloud = Cloud::started(false);
    let place = cloud.folder.path().join("runner");
    fs::create_dir_all(&place).unwrap();
    let gateway = Gateway::started(cloud.folder.path(), &cloud.uplink(false, "twin = {}\njobs = true\n"));
    cloud.gate.open();
    cloud.services.wait_for_reported("shadow", &json!({}));
    wait_until(PATIENCE, "jobs are listened for", || {
        let filters = subscribed(&cloud, ID);
        if filters.keys().any(|filter| filter.ends_with("notify-next")) { Ok(()) } else { Err(format!("{filters:?}")) }
    });
    // Nobody is there: not begun, and not lost.
    cloud.services.queue("lamp-1", &json!({"operation": "lamp", "level": 3}));
    cloud.services.queue("lamp-2", &json!({"operation": "lamp", "level": "$(touch it)"}));
    wait_for_log(&gateway, &["service=jobs", "nobody here has subscribed"]);
    retain(&gateway, "line", "1");
    cloud.services.wait_for_reported("shadow", &json!({"line": 1}));
    assert_eq!(cloud.services.requests("jobs", "start-next"), Vec::<Value>::new());

    let runner = PageRunner::started(&gateway, &place);
    let done = cloud.services.wait_for_job("lamp-1", "SUCCEEDED");
    assert_eq!(done["statusDetails"], json!({"said": "level 3"}));
    assert_eq!(fs::read_to_string(place.join("level")).unwrap(), "3\n");
    assert_eq!(cloud.services.wait_for_job("lamp-2", "FAILED")["statusDetails"], json!({}));
    cloud.services.queue("else", &json!({"operation": "restart-panel; reboot"}));
    let done = cloud.services.wait_for_job("else", "FAILED");
    assert_eq!(done["statusDetails"], json!({"said": "this operation is not in the list"}));

    // Killed in the middle: it is said, and not done twice. What came meanwhile is done afterwards.
    cloud.services.queue("panel", &json!({"operation": "restart-panel"}));
    cloud.services.queue("panel-2", &json!({"operation": "restart-panel"}));
    let called = || fs::read_to_string(place.join("called")).unwrap_or_default();
    wait_until(PATIENCE, "the operation has begun", || if called().is_empty() { Err(String::new()) } else { Ok(()) });
    drop(runner);
    let _runner = PageRunner::started(&gateway, &place);
    let done = cloud.services.wait_for_job("panel", "FAILED");
    assert_eq!(done["statusDetails"], json!({"said": "interrupted"}));
    fs::write(place.join("go"), "").unwrap();
    let done = cloud.services.wait_for_job("panel-2", "SUCCEEDED");
    assert_eq!(done["statusDetails"], json!({"said": "well restarted"}));
    assert_eq!(called(), "restart panel\nrestart panel\n", "each once");
    assert_eq!(count_in_log(&gateway, "is not taken"), 0, "none is answered twice");
    cloud.assert_served();
}
