//! Does the package live in a cabinet as it should: under systemd, in its sandbox, through power cuts?
//!
//! A Debian 12 (and once a newer one) in a virtual machine, with systemd as PID 1; the cloud, a Modbus device and the publishers are on the
//! host. Not among the plain tests: a boot takes minutes without KVM. `./test.sh --vm [cuts]` builds package and machine,
//! and runs this file. Each thing that is found true is a line that begins with `ok:`, each figure one with `figure:`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "../torture/balance.rs"]
mod balance;
#[path = "../common/mod.rs"]
mod common;
#[path = "../torture/ledger.rs"]
#[allow(dead_code, reason = "who has doubled what is asked by the torture only")]
mod ledger;
#[path = "../torture/publisher.rs"]
#[allow(dead_code, reason = "refusals are asked about by the torture only")]
mod publisher;
#[path = "../torture/random.rs"]
mod random;

mod cuts;
mod life;
mod machine;

use std::fs;
use std::path::{Path, PathBuf};

use common::certificates::Certificates;
use common::cloud::{Access, Mosquitto};
use common::peers::{ModbusServer, Subscriber};
use machine::Machine;
use serde_json::{Value, json};

/// The host, as the machine sees it.
const HOST: &str = "10.0.2.2";

/// What is around the cabinet, and the cabinet.
struct Site {
    machine: Machine,
    /// Its port with TLS asks for a certificate.
    cloud: Mosquitto,
    certificates: Certificates,
    application: Subscriber,
    device: ModbusServer,
}

impl Site {
    /// Nothing is installed yet, and the machine is off.
    fn prepared(made: &Path, folder: &Path, packages: &[PathBuf]) -> Site {
        fs::remove_dir_all(folder).ok();
        fs::create_dir_all(folder).unwrap();
        let certificates = Certificates::make(&folder.join("certificates"), "press-hall-3");
        let access = Access::Tls { certificates: certificates.clone(), asks_for_client: true };
        let mut cloud = Mosquitto::prepared(folder, access);
        cloud.start();
        let application = Subscriber::started(cloud.port, "application", &["factory7/#", "factory8/#", "field/#"]);
        let temperature = json!({"table": "holding", "address": 100, "type": "f32", "value": 6.5});
        let device = ModbusServer::on_tcp(&json!({"1": {"cells": [temperature]}}));
        let machine = Machine::prepared(made, folder, packages);
        Site { machine, cloud, certificates, application, device }
    }

    fn status(&mut self) -> Value {
        let said = self.machine.must("tidegate status --json");
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error} in {said}"))
    }

    /// A property of the service as systemd knows it.
    fn property(&mut self, name: &str) -> String {
        self.machine.must(&format!("systemctl show --value --property {name} tidegate"))
    }

    fn number(&mut self, name: &str) -> u64 {
        let said = self.property(name);
        said.parse().unwrap_or_else(|_| panic!("{name} is {said:?}"))
    }

    /// From the program's start to READY=1, by the machine's own clock; in ms.
    fn start_ms(&mut self) -> u64 {
        (self.number("ActiveEnterTimestampMonotonic") - self.number("ExecMainStartTimestampMonotonic")) / 1000
    }
}

fn given(variable: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| panic!("{variable} is not set: ./test.sh --vm does"), PathBuf::from)
}

#[track_caller]
fn ok(what: &str, is_so: bool, seen: impl std::fmt::Debug) {
    assert!(is_so, "FAILED: {what}: {seen:?}");
    println!("ok: {what}");
}

/// A machine of the root file system in `made` that is up, with the package as the README says.
fn installed(made: &Path, name: &str) -> Site {
    let packages = ["TIDEGATE_VM_PACKAGE", "TIDEGATE_VM_HOOKED", "TIDEGATE_VM_NEXT"].map(given);
    let mut site = Site::prepared(made, &made.join(name), &packages);
    println!("figure: the machine is up {:.0} s after it is switched on", site.machine.boot().as_secs_f64());
    life::installed_as_the_readme_says(&mut site, &packages[0]);
    site
}

// One story, because each boot and each installation takes minutes.
#[test]
fn the_package_lives_under_systemd_in_its_sandbox_through_reload_watchdog_and_upgrade() {
    let mut site = installed(&given("TIDEGATE_VM"), "life");
    life::the_sandbox_holds(&mut site);
    life::the_clock_is_believed_when_timesyncd_says_so(&mut site);
    life::reloads(&mut site);
    life::a_key_of_systemd_is_read(&mut site);
    life::an_absent_cloud_is_no_reason_to_restart(&mut site);
    life::a_queue_that_hangs_is(&mut site, &given("TIDEGATE_VM_HOOKED"));
    life::an_upgrade_keeps_the_queue(&mut site, &given("TIDEGATE_VM_NEXT"));
}

#[test]
fn a_newer_systemd_knows_when_a_reload_is_done() {
    let newer = given("TIDEGATE_VM_NEWER");
    if newer.join("root.img").exists() {
        life::a_reload_is_waited_for(&mut installed(&newer, "reload"));
    } else {
        println!("NOT TRIED: a newer systemd, because Debian's packages of a newer release could not be had");
    }
}

#[test]
fn no_power_cut_loses_what_was_acknowledged_or_keeps_the_service_from_being_ready() {
    let cuts = std::env::var("TIDEGATE_VM_CUTS").ok().and_then(|cuts| cuts.parse().ok()).unwrap_or(3);
    let mut site = installed(&given("TIDEGATE_VM"), "cuts");
    cuts::nothing_acknowledged_is_lost(&mut site, cuts);
}
