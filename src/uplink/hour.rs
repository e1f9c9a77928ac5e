//! What a clock that nobody has set is to an uplink whose tokens are signed by it. Pure.
//!
//! Promises: where the clock is certainly wrong no such token is made, since a cloud that counts refusals would count it;
//! where it is only unconfirmed it is tried, because a time that was kept may do; and once the time is known nothing waits for
//! a pause that the wrong one has caused.

use std::time::Duration;

use thiserror::Error;

use crate::clock::was_never_set;
use crate::config::UplinkConfig;
use crate::message::{ClockState, Stamp};

/// How often it is looked whether somebody has set the clock.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why no token is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "this board's clock was never set, and a token that is signed by it would be refused: waiting for the time service"
)]
pub struct NeverSet;

/// Whether a token can be signed now, where the uplink signs its own.
///
/// # Errors
/// When none can be good.
pub fn may_sign(config: &UplinkConfig, now: Stamp) -> Result<(), NeverSet> {
    match is_signing(config) && was_never_set(now) {
        true => Err(NeverSet),
        false => Ok(()),
    }
}

/// What is to be added where a cloud refuses who comes.
pub fn doubt(config: &UplinkConfig, clock: ClockState) -> &'static str {
    match is_signing(config) && clock == ClockState::Unset {
        true => "; the token was signed by this board's clock, which no time service has confirmed",
        false => "",
    }
}

fn is_signing(config: &UplinkConfig) -> bool {
    config.sas.is_some() || config.jwt.is_some()
}
