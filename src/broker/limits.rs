//! Every bound of the network edge, in one struct. Pure.

use std::time::Duration;

use crate::config::{BrokerConfig, Pace};

/// What a session may keep for its client in any case, in bytes.
const AWAY_BYTES_MIN: usize = 32 * 1024;
/// What a client may have waiting, or on its way to the disk, in any case.
const SHARE_BYTES_MIN: usize = 32 * 1024;

/// Connections that are let in although all sessions are taken: to be told so.
const SPARE_CONNECTIONS: usize = 10;

/// Bounds of the broker. The defaults suit a board with 512 MiB of memory.
#[derive(Debug, Clone)]
pub struct BrokerLimits {
    /// Sockets at once, of all listeners.
    pub connections: usize,
    /// Sockets at once from one address that is not a loopback one.
    pub connections_per_address: usize,
    /// Sessions at once, with a socket or without.
    pub sessions: usize,
    /// Sockets at once that have not sent their CONNECT yet, of all listeners; the oldest give way.
    pub handshakes: usize,
    /// From the accepted socket to the end of what stands before MQTT: TLS, WebSocket.
    pub handshake_timeout: Duration,
    /// From there to a whole CONNECT.
    pub connect_timeout: Duration,
    /// Longest CONNECT, in bytes.
    pub connect_bytes: usize,
    /// Longest packet after that, in bytes.
    pub packet_bytes: usize,
    /// Longest client id, in bytes.
    pub client_id_bytes: usize,
    /// From the first byte of a packet to its last.
    pub packet_timeout: Duration,
    /// Without any progress of a write.
    pub write_timeout: Duration,
    /// For the last words on a connection.
    pub farewell: Duration,
    /// Bytes that wait for a socket before nothing more is taken for it, or from it.
    pub output_bytes: usize,
    /// Messages of a client that are not acknowledged yet; announced as Receive Maximum in version 5.
    pub inbound: u16,
    /// What a client gets away with: paho sends its whole backlog when it is back, whatever Receive Maximum says, and
    /// would do so for ever if it were thrown out for it. Version 3.1.1 knows no such bound but its packet ids.
    pub inbound_tolerated: u16,
    /// Messages that are taken from such a client before the first of them is on disk: a large window shares a commit.
    pub inbound_line: usize,
    /// Their bytes; of longer messages twice `inbound` are taken, within eight times that.
    pub inbound_bytes: usize,
    /// Topic aliases that a client may set, and that are set towards one that allows as many.
    pub topic_aliases: u16,
    /// Messages to a client that it has not acknowledged, if it does not ask for fewer.
    pub outbound: u16,
    /// Messages that wait for a client that is there.
    pub waiting_messages: usize,
    /// Their bytes, and those of what it has not acknowledged.
    pub waiting_bytes: usize,
    /// What lies with the router for live subscribers; and once more, shared by all clients, what waits for them and what
    /// has come from them and is not on disk yet.
    pub live_bytes: usize,
    /// Messages that wait in the store for one session; the oldest give way, counted.
    pub kept_messages: u64,
    /// Their bytes, each counted as often as it is to be delivered.
    pub kept_bytes: u64,
    /// Those of all sessions together may take the store divided by this.
    pub kept_share: u64,
    /// Messages that wait in memory for a client that is away: those of shared subscriptions. The oldest give way, counted.
    pub away_messages: usize,
    /// Their bytes.
    pub away_bytes: usize,
    /// The bytes of all sessions without a client, as long as each has less than its share of them: with many
    /// sessions a session may keep no more than that.
    pub away_bytes_total: usize,
    /// Filters of one session.
    pub subscriptions: usize,
    /// Longest topic or filter of a client, in bytes.
    pub topic_bytes: usize,
    /// Most levels of one.
    pub topic_levels: usize,
    /// PUBLISH packets that are taken from one client; what is more waits in its socket.
    pub rate: Pace,
    /// Those of them that it shares with others: of these none can be left out where many want one message.
    pub shared_subscriptions: usize,
    /// Retained messages that one subscription brings.
    pub retained_messages: usize,
    /// Their bytes.
    pub retained_bytes: usize,
    /// How long a session without a socket is kept at most, in seconds.
    pub session_expiry_s: u32,
    /// How long a 3.1.1 client's message waits for space in the store before the connection is closed.
    pub full_patience: Duration,
    /// Between two attempts of that message.
    pub full_retry: Duration,
    /// For sessions to finish what they have begun, when the gateway stops.
    pub stop_patience: Duration,
}

impl BrokerLimits {
    /// The defaults, with what the owner says.
    pub fn of(config: &BrokerConfig) -> BrokerLimits {
        let (sessions, limits, usual) = (&config.sessions, &config.limits, BrokerLimits::default());
        BrokerLimits {
            kept_bytes: sessions.bytes_max,
            session_expiry_s: u32::try_from(sessions.expiry.as_secs()).unwrap_or(u32::MAX),
            connections: limits.connections,
            // Those that wait for their client are in the store and cost nothing here.
            sessions: limits.connections.saturating_sub(SPARE_CONNECTIONS).max(usual.sessions),
            connections_per_address: limits.connections_per_address,
            handshakes: limits.handshakes,
            handshake_timeout: limits.handshake_time,
            connect_timeout: limits.connect_time,
            // A CONNECT with a will is a packet like others, but nobody has vouched for its sender.
            connect_bytes: usual.connect_bytes.min(limits.packet_bytes),
            packet_bytes: limits.packet_bytes,
            topic_bytes: limits.topic_bytes,
            topic_levels: limits.topic_levels,
            subscriptions: limits.subscriptions,
            inbound: limits.receive_maximum,
            outbound: limits.in_flight,
            rate: limits.rate,
            // A message that finds no room alone would never be delivered.
            live_bytes: limits.live_bytes.max(4 * limits.packet_bytes),
            ..usual
        }
    }

    /// Whether a topic, or a filter, is short and shallow enough.
    pub(super) fn takes_topic(&self, topic: &str) -> bool {
        topic.len() <= self.topic_bytes && topic.split('/').count() <= self.topic_levels
    }

    /// What may wait for one of `connected` clients.
    pub(super) fn waiting_share(&self, connected: usize) -> usize {
        self.waiting_bytes.min((self.live_bytes / connected.max(1)).max(SHARE_BYTES_MIN))
    }

    /// What may have come from one of `connected` clients and be on its way to the disk.
    pub(super) fn inbound_share(&self, connected: usize) -> usize {
        let usual = self.inbound_bytes.saturating_mul(8);
        usual.min((self.live_bytes / connected.max(1)).max(SHARE_BYTES_MIN))
    }

    /// What one of `sessions` may keep for a client that is away, in bytes.
    pub(super) fn away_share(&self, sessions: usize) -> usize {
        self.away_bytes.min((self.away_bytes_total / sessions.max(1)).max(AWAY_BYTES_MIN))
    }
}

impl Default for BrokerLimits {
    fn default() -> BrokerLimits {
        BrokerLimits {
            connections: 1000,
            connections_per_address: 100,
            sessions: 990,
            handshakes: 200,
            handshake_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            connect_bytes: 64 * 1024,
            packet_bytes: 256 * 1024,
            client_id_bytes: 1024,
            packet_timeout: Duration::from_secs(120),
            write_timeout: Duration::from_secs(10),
            farewell: Duration::from_secs(1),
            output_bytes: 64 * 1024,
            inbound: 128,
            inbound_tolerated: 16_384,
            inbound_line: 1024,
            inbound_bytes: 256 * 1024,
            topic_aliases: 16,
            outbound: 100,
            waiting_messages: 1000,
            waiting_bytes: 1024 * 1024,
            live_bytes: 32 * 1024 * 1024,
            kept_messages: 100_000,
            kept_bytes: 16 * 1024 * 1024,
            kept_share: 4,
            away_messages: 10_000,
            away_bytes: 4 * 1024 * 1024,
            away_bytes_total: 32 * 1024 * 1024,
            subscriptions: 256,
            topic_bytes: 1024,
            topic_levels: 64,
            rate: Pace::default(),
            shared_subscriptions: 32,
            retained_messages: 1000,
            retained_bytes: 4 * 1024 * 1024,
            session_expiry_s: 7 * 24 * 3600,
            full_patience: Duration::from_secs(20),
            full_retry: Duration::from_millis(250),
            stop_patience: Duration::from_secs(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_has_written_is_the_same_in_the_configuration_and_here() {
        let usual = BrokerLimits::default();
        assert_eq!(format!("{:?}", BrokerLimits::of(&BrokerConfig::default())), format!("{usual:?}"));
    }

    #[test]
    fn a_topic_is_held_against_both_its_limits() {
        let limits = BrokerLimits { topic_bytes: 8, topic_levels: 3, ..BrokerLimits::default() };
        for (topic, expected) in
            [("a/b/c", true), ("a/b/c/d", false), ("12345678", true), ("123456789", false), ("//", true)]
        {
            assert_eq!(limits.takes_topic(topic), expected, "{topic}");
        }
    }

    #[test]
    fn many_sessions_share_what_may_wait_for_clients_that_are_away() {
        let limits = BrokerLimits::default();
        assert_eq!(limits.away_share(1), limits.away_bytes);
        assert_eq!(limits.away_share(16), limits.away_bytes_total / 16);
        assert_eq!(limits.away_share(limits.sessions), limits.away_bytes_total / limits.sessions);
        assert_eq!(limits.away_share(usize::MAX), AWAY_BYTES_MIN);
        assert_eq!(limits.waiting_share(1), limits.waiting_bytes);
        assert_eq!(limits.inbound_share(100), limits.live_bytes / 100);
        assert!(limits.waiting_share(limits.connections) * limits.connections <= limits.live_bytes + (1 << 20));
    }
}
