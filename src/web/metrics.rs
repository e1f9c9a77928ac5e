//! The state of the gateway as OpenMetrics (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
//!
//! Labels are names out of the configuration and words of ours: what clients call themselves or a device says makes no
//! series.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::health::Alarm;
use crate::health::status::Status;

/// The content type.
pub const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of one moment.
pub fn text(status: &Status) -> Result<String, Error> {
    let mut registry = Registry::with_prefix("tidegate");
    registry.register_collector(Box::new(Moment(status.clone())));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Moment(Status);

type Labels<'l> = Vec<(&'static str, &'l str)>;

/// Writes one family.
struct Family<'f, 'e> {
    encoder: &'f mut DescriptorEncoder<'e>,
}

impl Family<'_, '_> {
    fn gauges<'l, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'l>, V)>,
    ) -> Result<(), Error> {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            let gauge = ConstGauge::new(value);
            match labels.is_empty() {
                true => gauge.encode(family.encode_family(&NO_LABELS)?)?,
                false => gauge.encode(family.encode_family(&labels.as_slice())?)?,
            }
        }
        Ok(())
    }

    fn counters<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> Result<(), Error> {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            let counter = ConstCounter::new(value);
            match labels.is_empty() {
                true => counter.encode(family.encode_family(&NO_LABELS)?)?,
                false => counter.encode(family.encode_family(&labels.as_slice())?)?,
            }
        }
        Ok(())
    }
}

const NO_LABELS: [(&str, &str); 0] = [];

fn one<V>(value: V) -> [(Labels<'static>, V); 1] {
    [(Vec::new(), value)]
}

impl Collector for Moment {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut family = Family { encoder: &mut encoder };
        let Status { version, gateway, uptime_s, clock, flash, stages, .. } = &self.0;
        family.gauges(
            "info",
            "The gateway and its version",
            [(vec![("gateway", gateway.as_str()), ("version", *version)], 1_u64)],
        )?;
        family.gauges("uptime_seconds", "Since the start of the program", one(*uptime_s))?;
        family.gauges(
            "clock_synced",
            "1: a time service vouches for the time of day",
            one(u64::from(clock.state == "synced")),
        )?;
        family.gauges(
            "clock_error_seconds",
            "How far off the time of day may be",
            clock.error_ms.map(|error| (Vec::new(), f64::from(error) / 1000.0)),
        )?;
        let queue = &stages.queue;
        family.gauges("queue_messages", "Messages that wait", one(queue.messages))?;
        family.gauges("queue_bytes", "Bytes of the store in use, but for what is kept", one(queue.bytes))?;
        family.gauges("queue_kept_messages", "Messages that were delivered and are kept", one(queue.kept))?;
        family.gauges("queue_kept_bytes", "Bytes of the store that they take, about", one(queue.kept_bytes))?;
        family.gauges("queue_bytes_limit", "The soft ceiling in force", one(queue.max_bytes))?;
        family.gauges(
            "queue_oldest_age_seconds",
            "Age of the oldest message that waits",
            queue.oldest_age_s.map(|age| (Vec::new(), age)),
        )?;
        family.gauges(
            "queue_full_in_seconds",
            "Until the store is full at the rate of late",
            queue.full_in_s.map(|left| (Vec::new(), left)),
        )?;
        let uplinks = || stages.uplinks.iter().map(|(name, uplink)| (vec![("uplink", name.as_str())], uplink));
        family.gauges(
            "uplink_connected",
            "1: the cloud is there",
            uplinks().map(|(labels, uplink)| (labels, u64::from(uplink.is_connected()))),
        )?;
        family.gauges(
            "uplink_waiting_messages",
            "Messages that wait for the uplink",
            uplinks().map(|(labels, uplink)| (labels, uplink.waiting)),
        )?;
        family.gauges(
            "uplink_in_flight_messages",
            "Messages that the cloud has not acknowledged",
            uplinks().map(|(labels, uplink)| (labels, uplink.in_flight)),
        )?;
        family.counters(
            "uplink_delivered",
            "Messages that the cloud has acknowledged",
            uplinks().map(|(labels, uplink)| (labels, uplink.delivered)),
        )?;
        family.counters(
            "uplink_resent",
            "Messages that were sent again",
            uplinks().map(|(labels, uplink)| (labels, uplink.resent)),
        )?;
        family.counters(
            "uplink_sessions_lost",
            "Sessions that the cloud had forgotten",
            uplinks().map(|(labels, uplink)| (labels, uplink.sessions_lost)),
        )?;
        family.counters(
            "uplink_received",
            "Messages taken in from the cloud",
            uplinks().map(|(labels, uplink)| (labels, uplink.received)),
        )?;
        family.counters(
            "uplink_throttled",
            "Messages that the cloud threw away because they were too many, and that went again",
            uplinks().map(|(labels, uplink)| (labels, uplink.throttled)),
        )?;
        let devices = || stages.devices.iter().map(|(name, device)| (vec![("device", name.as_str())], device));
        family.gauges(
            "device_up",
            "1: it answers, 0.5: in part, 0: it does not",
            devices().map(|(labels, device)| (labels, device.level())),
        )?;
        family.gauges(
            "device_interval_seconds",
            "Achieved interval of its polls",
            devices().filter_map(|(labels, device)| Some((labels, device.interval_s?))),
        )?;
        family.counters(
            "device_exchanges",
            "Exchanges with it",
            devices().map(|(labels, device)| (labels, device.exchanges)),
        )?;
        family.counters(
            "device_failures",
            "Exchanges that failed",
            devices().map(|(labels, device)| (labels, device.failures)),
        )?;
        family.counters(
            "device_faults",
            "Exchanges that failed, by kind",
            devices().flat_map(|(labels, device)| {
                device.faults.iter().map(move |(kind, count)| {
                    let mut labels = labels.clone();
                    labels.push(("kind", *kind));
                    (labels, *count)
                })
            }),
        )?;
        let writes = devices().flat_map(|(labels, device)| {
            let writes = &device.writes;
            let outcomes = [
                ("written", writes.written),
                ("refused", writes.refused.values().sum()),
                ("expired", writes.expired),
                ("failed", writes.failed.values().sum()),
                ("unknown", writes.unknown),
            ];
            outcomes.map(|(outcome, count)| {
                let mut labels = labels.clone();
                labels.push(("outcome", outcome));
                (labels, count)
            })
        });
        family.counters("device_writes", "Writes to it, by what became of them", writes)?;
        let sessions = &stages.sessions;
        family.gauges("clients_connected", "Clients of the local broker", one(sessions.connected))?;
        family.gauges("sessions_kept", "Sessions that are kept over a restart", one(sessions.kept))?;
        family.gauges("sessions_waiting_messages", "Messages that wait for them", one(sessions.waiting))?;
        family.counters("publishes_received", "PUBLISH packets from local clients", one(sessions.received))?;
        family.counters("publishes_sent", "PUBLISH packets to local clients", one(sessions.sent))?;
        family.counters("logins_refused", "Connections of nobody that is known", one(sessions.refused_logins))?;
        family.counters("connections_refused", "Connections that were not let in", one(sessions.refused))?;
        family.counters("denied", "What clients may not do", one(sessions.denied))?;
        family.counters(
            "protocol_errors",
            "Connections that ended by a broken protocol",
            one(sessions.protocol_errors),
        )?;
        let losses = stages.losses.iter().map(|(reason, count)| (vec![("reason", reason.as_str())], *count));
        family.counters("lost_messages", "Messages that were given up, since the store was made", losses)?;
        family.counters(
            "unkept_qos0_messages",
            "QoS 0 publishes that were not kept while the cloud was away",
            one(stages.unkept_qos0.values().sum()),
        )?;
        let alarms = Alarm::ALL
            .into_iter()
            .map(|alarm| (vec![("alarm", alarm.name())], u64::from(stages.alarms.contains_key(alarm.name()))));
        family.gauges("alarm", "1: raised", alarms)?;
        let kept = stages.kept_streams.iter().map(|(stream, count)| (vec![("stream", stream.as_str())], *count));
        family.gauges("kept_messages", "Messages of uplinks that are not configured any more", kept)?;
        let ends = stages.certificates.iter().map(|one| (vec![("of", one.of.as_str()), ("key", one.key)], one.until_s));
        family.gauges("certificate_end_timestamp_seconds", "When a certificate ends, in seconds since 1970", ends)?;
        family.counters(
            "disk_written_bytes",
            "Bytes that were written to the disk",
            flash.iter().map(|flash| (Vec::new(), flash.written)),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::{Clock, ClockSource};
    use crate::health::status::Told;
    use crate::health::{Health, LossReason, UplinkState};

    #[test]
    fn the_text_has_each_family_once_and_names_cannot_break_out_of_their_labels() {
        let health = Health::default();
        let name: Arc<str> = Arc::from("cl\"oud\\\n");
        health.uplink(&name).set(UplinkState::Connected, 0, None);
        health.add_losses(LossReason::Expired, 7);
        let told = Told::new("g7", Clock::new(ClockSource::Trusted), health);
        let text = text(&told.status()).unwrap();
        assert!(text.ends_with("# EOF\n"), "{text}");
        assert!(text.contains("tidegate_lost_messages_total{reason=\"expired\"} 7\n"), "{text}");
        assert!(text.contains("tidegate_uplink_connected{uplink=\"cl\\\"oud\\\\\\n\"} 1\n"), "{text}");
        assert!(text.contains("tidegate_queue_messages 0\n"), "{text}");
        let types: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let mut once = types.clone();
        once.dedup();
        assert_eq!(types, once);
    }
}
