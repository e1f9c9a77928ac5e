//! Two clients that have nothing to do with what goes on: one speaks, the other listens, all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::Instant;

use crate::common::PATIENCE;
use crate::common::raw::{Heard, RawClient, Version, packet};

/// Between two messages.
const PAUSE: Duration = Duration::from_millis(10);

/// They exchange messages at QoS 1 until they are asked how it was; any that is late or lost is a failure.
pub struct Bystander {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Duration>>,
}

impl Bystander {
    pub fn started(port: u16) -> Bystander {
        let mut listener = RawClient::connected(port, Version::V311, "calm-listener");
        listener.subscribe("calm/#", 1);
        let mut speaker = RawClient::connected(port, Version::V5, "calm-speaker");
        let is_over = Arc::new(AtomicBool::new(false));
        let told = is_over.clone();
        let thread = std::thread::spawn(move || {
            let mut waits = Vec::new();
            while !told.load(Ordering::Relaxed) {
                let number = u16::try_from(waits.len() % 65_535 + 1).unwrap();
                let text = waits.len().to_string();
                let sent = Instant::now();
                speaker.publish(b"calm/x", 1, number, text.as_bytes());
                // Version 5 says with 0x10 that nobody listens; here somebody does.
                assert_eq!(
                    speaker.hear(PATIENCE),
                    Heard::Packet(0x40, number.to_be_bytes().to_vec()),
                    "message {text}"
                );
                waits.push(sent.elapsed());
                let Heard::Packet(first, body) = listener.hear(PATIENCE) else { panic!("message {text} is not heard") };
                assert_eq!((first, &body[..8]), (0x32, &b"\0\x06calm/x"[..]));
                assert_eq!(&body[10..], text.as_bytes(), "each once, and in order");
                listener.send(&packet(0x40, &body[8..10]));
                std::thread::sleep(PAUSE);
            }
            waits
        });
        Bystander { is_over, thread }
    }

    /// Ends it; every message was acknowledged and heard. Says how long acknowledgements took.
    pub fn was_well(self, during: &str) {
        self.is_over.store(true, Ordering::Relaxed);
        let mut waits = self.thread.join().unwrap_or_else(|_| panic!("the bystanders were disturbed by {during}"));
        assert!(waits.len() > 10, "{} messages are no proof", waits.len());
        waits.sort_unstable();
        let at = |share: usize| waits[(waits.len() - 1) * share / 100];
        // A figure and no assertion: on a busy machine it says more of the machine than of the gateway.
        println!(
            "{during}: {} bystander messages, acknowledged within {:?} (p50), {:?} (p99), {:?} (all)",
            waits.len(),
            at(50),
            at(99),
            at(100)
        );
    }
}
