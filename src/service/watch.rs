//! The watchdog, and the line that the service manager shows.
//!
//! Promises: the watchdog is fed only after the queue's thread has answered a question that was put since the last time,
//! and by a task of the runtime, so that it starves when either hangs. What the disk, the cloud or a device says makes no
//! difference: a store that fails answers that it fails. The router ends the process by itself when it hangs.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use log::{info, warn};
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{alive, status, status_line, watchdog_limit};
use crate::clock::Clock;
use crate::health::{Alarm, Health};
use crate::queue::Inlet;

/// An answer that takes longer is an alarm: a card that stalls so long is about to die.
pub const STALL: Duration = Duration::from_secs(10);
/// How often the queue is asked where no watchdog is set.
const UNWATCHED_EVERY: Duration = Duration::from_secs(30);
/// How often the line is looked at; it is sent when it has changed.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// What is watched, and how it is told.
#[derive(Debug, Clone)]
pub struct Watch {
    /// The queue's thread answers here.
    pub inlet: Inlet,
    /// Of the alarm and the line.
    pub health: Health,
    /// When an alarm was raised.
    pub clock: Clock,
}

impl Watch {
    /// Feeds the watchdog until `stop`.
    pub async fn feed(self, stop: CancellationToken) -> Result<(), Infallible> {
        let every = watchdog_limit().map_or(UNWATCHED_EVERY, |limit| limit / 4);
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.turns(every, STALL, alive) => {}
        }
        Ok(())
    }

    async fn turns(&self, every: Duration, stall: Duration, mut feed: impl FnMut()) {
        loop {
            self.progress(stall).await;
            feed();
            sleep(every).await;
        }
    }

    /// Comes back when the queue's thread has answered, however long that takes.
    async fn progress(&self, stall: Duration) {
        let asked = Instant::now();
        let answer = self.inlet.ping();
        tokio::pin!(answer);
        if timeout(stall, &mut answer).await.is_ok() {
            return;
        }
        let text = format!("the store has not answered for {} s: its disk stalls", stall.as_secs());
        if self.health.raise(Alarm::StoreStalls, self.clock.now().wall_ms, &text) {
            warn!(seconds = stall.as_secs(); "The store does not answer: its disk stalls");
        }
        answer.await;
        if self.health.clear(Alarm::StoreStalls) {
            info!(seconds = asked.elapsed().as_secs(); "The store answers again");
        }
    }

    /// Tells the line as it is now. Whoever waits for the end of a reload looks at it right after.
    pub fn tell_now(&self, note: Option<String>) {
        status(&self.line(note));
    }

    fn line(&self, note: Option<String>) -> String {
        let line = status_line(&self.health.snapshot(self.clock.now()));
        match note {
            Some(note) => format!("{note}; {line}"),
            None => line,
        }
    }

    /// Keeps the line right until `stop`; `note` says what else it should tell.
    pub async fn tell(self, stop: CancellationToken, note: impl Fn() -> Option<String>) -> Result<(), Infallible> {
        let mut every = interval(LINE_EVERY);
        let mut told = String::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = every.tick() => {}
            }
            let line = self.line(note());
            if line != told {
                status(&line);
                told = line;
            }
        }
    }
}

/// Does `work` and says in between that it goes on, at most for `limit`: a service manager that waits for a start must
/// not take a store that is looked through for one that hangs.
pub async fn with_patience<T>(work: impl Future<Output = T>, limit: Duration, mut say: impl FnMut()) -> T {
    let began = Instant::now();
    tokio::pin!(work);
    loop {
        match timeout(LINE_EVERY, &mut work).await {
            Ok(done) => return done,
            Err(_) if began.elapsed() < limit => say(),
            Err(_) => return work.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::clock::ClockSource;
    use crate::queue::{self, Opened, QueueSettings};

    #[tokio::test]
    async fn a_queue_whose_thread_does_not_run_starves_the_watchdog_and_raises_an_alarm() {
        let dir = tempfile::tempdir().unwrap();
        let health = Health::default();
        let clock = Clock::new(ClockSource::Trusted);
        let settings = QueueSettings {
            set_topics: queue::SetTopics::default(),
            dir: dir.path().to_owned(),
            gateway: std::sync::Arc::from("g"),
            bytes_max: std::num::NonZeroU64::new(16 << 20).unwrap(),
            age_max: None,
            keep: None,
            when_full: crate::config::WhenFull::DropOldest,
            hold: None,
            streams: Vec::new(),
            clock: clock.clone(),
            health: health.clone(),
        };
        let Opened { inlet, worker, .. } = queue::open(settings).unwrap();
        let watch = Watch { inlet: inlet.clone(), health: health.clone(), clock };
        let fed = AtomicU64::new(0);
        let feed = || {
            fed.fetch_add(1, Ordering::SeqCst);
        };
        let turns = watch.turns(Duration::from_millis(1), Duration::from_millis(1), feed);
        tokio::pin!(turns);
        // The question waits in the channel: nobody answers.
        while !health.is_raised(Alarm::StoreStalls) {
            assert!(timeout(Duration::from_millis(5), &mut turns).await.is_err());
        }
        assert_eq!(fed.load(Ordering::SeqCst), 0);
        // The thread runs: it is fed, again and again.
        let thread = std::thread::spawn(move || worker.run());
        while fed.load(Ordering::SeqCst) < 3 {
            assert!(timeout(Duration::from_millis(5), &mut turns).await.is_err());
        }
        assert!(!health.is_raised(Alarm::StoreStalls));
        inlet.stop().await;
        thread.join().unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_that_takes_long_says_so_but_not_for_ever() {
        let said = AtomicU64::new(0);
        let work = sleep(Duration::from_secs(100));
        let say = || {
            said.fetch_add(1, Ordering::SeqCst);
        };
        with_patience(work, Duration::from_secs(50), say).await;
        assert!((8..=10).contains(&said.load(Ordering::SeqCst)), "{said:?}");
    }
}
