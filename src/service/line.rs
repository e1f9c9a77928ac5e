//! The one line about the gateway that `systemctl status` shows. Pure.
//!
//! What needs a person comes first: the line may be cut.

use std::fmt::Write as _;

use crate::health::{DeviceState, Snapshot, UplinkState};

/// Devices that are named; of more only the number is told.
const NAMED_MAX: usize = 3;

/// How the gateway is, for a person.
pub fn status_line(snapshot: &Snapshot) -> String {
    let mut parts: Vec<String> = snapshot.alarms.values().map(|alarm| format!("ALARM: {}", alarm.text)).collect();
    if let Some(salvage) = &snapshot.salvage {
        parts.push(format!("a damaged store is salvaged, {} messages so far", salvage.salvaged));
    }
    parts.extend(devices(snapshot));
    for (name, uplink) in &snapshot.uplinks {
        let mut part = match uplink.state {
            UplinkState::Connected => format!("{name}: connected"),
            _ => format!("{name}: not connected since {}", uplink.since),
        };
        if let Some(reason) = uplink.reason.as_ref().filter(|_| uplink.state != UplinkState::Connected) {
            // Writing to a String cannot fail.
            let _written = write!(part, " ({reason})");
        }
        parts.push(part);
    }
    if snapshot.uplinks.is_empty() {
        parts.push("no uplink is configured".to_owned());
    }
    parts.push(match snapshot.queue.messages {
        0 => "nothing waits".to_owned(),
        1 => "1 message waits".to_owned(),
        count => format!("{count} messages wait"),
    });
    parts.join("; ")
}

fn devices(snapshot: &Snapshot) -> Option<String> {
    let all = snapshot.devices.len();
    let silent: Vec<&str> = snapshot
        .devices
        .iter()
        .filter(|(_, device)| device.state == DeviceState::Dead)
        .map(|(name, _)| name.as_str())
        .collect();
    match silent.len() {
        _ if all == 0 => None,
        0 if all == 1 => Some("1 device is read".to_owned()),
        0 => Some(format!("{all} devices are read")),
        1..=NAMED_MAX => Some(format!("{} of {all} devices do not answer: {}", silent.len(), silent.join(", "))),
        count => Some(format!("{count} of {all} devices do not answer")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::{Clock, ClockSource};
    use crate::health::{Alarm, Health};

    #[test]
    fn a_person_reads_what_is_wrong_first_and_then_how_far_things_are() {
        let health = Health::default();
        let now = Clock::new(ClockSource::Trusted).now();
        assert_eq!(status_line(&health.snapshot(now)), "no uplink is configured; nothing waits");
        health.uplink(&Arc::from("cloud")).set(UplinkState::Connected, 0, None);
        health.device(&Arc::from("chiller")).set(DeviceState::Good, None);
        assert_eq!(status_line(&health.snapshot(now)), "1 device is read; cloud: connected; nothing waits");
        health.device(&Arc::from("meter")).set(DeviceState::Dead, Some("no answer".to_owned()));
        let reason = Some("connection refused".to_owned());
        health.uplink(&Arc::from("cloud")).set(UplinkState::Waiting, 0, reason);
        health.queue().messages.store(12, std::sync::atomic::Ordering::Relaxed);
        health.raise(Alarm::StoreFills, 0, "the store is filled to 83 %");
        assert_eq!(
            status_line(&health.snapshot(now)),
            "ALARM: the store is filled to 83 %; 1 of 2 devices do not answer: meter; \
             cloud: not connected since 1970-01-01T00:00:00.000Z (connection refused); 12 messages wait"
        );
    }
}
