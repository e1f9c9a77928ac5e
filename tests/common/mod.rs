//! What the tests with real counterparts share: the gateway as a process, Mosquitto, Python peers, certificates.
//!
//! Promises: every process is ours (its port is looked up in /proc), dies with the test, and prints what it said when
//! the test fails. Nothing here sleeps to wait for something: it asks for a state until a deadline.

#![allow(dead_code, reason = "each test file uses its own part of this")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking"
)]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub mod account;
pub mod certificates;
pub mod cloud;
pub mod enhanced;
pub mod faketime;
pub mod frames;
pub mod gateway;

pub mod named;
pub mod namespace;
pub mod order;
pub mod peers;
pub mod port;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod relay;

/// How long a state may take to come about on a slow and busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

static TURN: Mutex<()> = Mutex::new(());

/// One test of a file after the other: each starts several processes, and the machine may have two cores.
pub fn turn() -> MutexGuard<'static, ()> {
    // A failed test poisons the lock; the next one is not to blame.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks until `look` gives a value; its `Err` says what was seen instead, and stands in the failure's message.
#[track_caller]
pub fn wait_until<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if started.elapsed() >= patience => {
                panic!("waited {} s in vain until {what}; at last: {seen}", patience.as_secs())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// `wait_until` for a question of yes or no.
#[track_caller]
pub fn wait_for(patience: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    wait_until(patience, what, || if is_so() { Ok(()) } else { Err("it is not so".to_owned()) });
}
