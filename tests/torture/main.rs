//! Does the promise hold for as long as anyone cares to try?
//!
//! Each module asks one question and has a short form, which `./test.sh` runs among all tests, and a long form, which
//! `./test.sh --torture [minutes]` runs: the same code with more cases (`budget.rs`). Faults are drawn from seeds; a
//! failure prints the seed that repeats it. Every harness has a control that must fail, so that "0 lost" is known to
//! mean something.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../uplink_model/mod.rs"]
mod uplink_model;
#[path = "../uplink_support/mod.rs"]
mod uplink_support;

mod balance;
mod budget;
mod call_faults;
mod clock;
mod disks;
mod full_queue;
mod kills;
mod ledger;
mod line;
mod listener;
mod log_disk;
mod models;
mod mounts;
mod network;
mod numbers;
mod power_cuts;
mod publisher;
mod random;
mod soak;
mod stand_in;
mod stores;
mod subject;
mod trace;
