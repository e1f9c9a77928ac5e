//! The service manager and the journal: READY, RELOADING, STATUS, STOPPING, WATCHDOG, and where log lines go.
//!
//! Outside systemd every call here is quietly nothing. Logs go to the journal when standard error is connected to
//! it, else to standard error as lines that a person can read.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};

use log::kv::{self, Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
use sd_notify::NotifyState;
use systemd_journal_logger::{JournalLog, connected_to_journal};
use thiserror::Error;

use crate::clock::{Clock, ClockSource, rfc3339};

mod line;
mod watch;

pub use line::status_line;
pub use watch::{STALL, Watch, with_patience};

/// What `systemctl status` shows has one line; a longer one is cut.
const STATUS_CHARACTERS_MAX: usize = 400;

/// Why logs cannot be written.
#[derive(Debug, Error)]
pub enum LogError {
    /// The journal's socket.
    #[error("cannot open the journal")]
    Journal(#[source] std::io::Error),
    /// `log` takes one logger a process.
    #[error("a logger is installed already")]
    Installed(#[source] log::SetLoggerError),
}

/// Sends log lines to the journal or to standard error. Lines of other crates come through from WARN up only.
pub fn install_log(level: LevelFilter) -> Result<(), LogError> {
    if connected_to_journal() {
        let journal = JournalLog::new().map_err(LogError::Journal)?;
        install(OwnAndLoud { inner: journal, level }, level)
    } else {
        let clock = Clock::new(ClockSource::Trusted);
        let colour = std::io::stderr().is_terminal();
        install(OwnAndLoud { inner: ReadableLog { clock, colour }, level }, level)
    }
}

fn install(logger: impl Log + 'static, level: LevelFilter) -> Result<(), LogError> {
    log::set_boxed_logger(Box::new(logger)).map_err(LogError::Installed)?;
    log::set_max_level(level);
    Ok(())
}

/// Our own lines at `level`, and those of libraries when something is wrong. Nothing of rumqttd: it opens a span for
/// every packet, and each span would come here as a line at ERROR. What becomes of the router is watched by `router`.
/// Nothing of TLS either: it warns of each alert, and a stranger may send as many as he likes. What comes of them is told
/// by whoever has the connection.
struct OwnAndLoud<L> {
    inner: L,
    level: LevelFilter,
}

impl<L: Log> Log for OwnAndLoud<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let room = metadata.target().split("::").next().unwrap_or_default();
        if matches!(room, "rumqttd" | "tracing" | "rustls") {
            return false;
        }
        let own = room == "tidegate";
        metadata.level() <= if own { self.level } else { LevelFilter::Warn.min(self.level) }
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.inner.log(record);
        }
    }

    fn flush(&self) {
        self.inner.flush();
    }
}

struct ReadableLog {
    clock: Clock,
    colour: bool,
}

impl Log for ReadableLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = readable_line(&rfc3339(self.clock.now().wall_ms), record, self.colour);
        // Where standard error is closed there is nobody to tell.
        let _closed = std::io::stderr().lock().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

fn readable_line(time: &str, record: &Record<'_>, colour: bool) -> String {
    let (start, end) = match record.level() {
        Level::Error if colour => ("\x1b[31m", "\x1b[0m"),
        Level::Warn if colour => ("\x1b[33m", "\x1b[0m"),
        _ => ("", ""),
    };
    let level = record.level();
    let mut line = format!("{time} {start}{level:5}{end} ");
    push_escaped(&mut line, &record.args().to_string());
    // The visitor never fails.
    let _visited = record.key_values().visit(&mut Fields(&mut line));
    line.push('\n');
    line
}

struct Fields<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        self.0.push(' ');
        self.0.push_str(key.as_str());
        self.0.push('=');
        let text = value.to_string();
        let quote = text.is_empty() || text.contains([' ', '"', '=', '\\']);
        if quote {
            self.0.push('"');
        }
        // The backslash first, so that none of theirs eats one of ours.
        push_escaped(self.0, &text.replace('\\', "\\\\").replace('"', "\\\""));
        if quote {
            self.0.push('"');
        }
        Ok(())
    }
}

/// A client id or a topic may hold line breaks, terminal commands, and marks that turn the direction of what follows:
/// they must not write our log.
fn push_escaped(line: &mut String, text: &str) {
    let is_mark =
        |character| matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    for character in text.chars() {
        if character.is_control() || is_mark(character) {
            // Writing to a String cannot fail.
            let _written = write!(line, "{}", character.escape_default());
        } else {
            line.push(character);
        }
    }
}

/// The store is open and the listeners are bound, or the configuration is in force that `reloading` announced.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// The ordered stop has begun.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// The configuration is being read again; `ready` follows. The time is what `Type=notify-reload` tells one reload from
/// another by.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(time) => send(&[NotifyState::Reloading, time]),
        Err(error) => log::debug!(error:% = error; "The service manager could not be told"),
    }
}

/// One line that a person understands, for `systemctl status`.
pub fn status(line: &str) {
    send(&[NotifyState::Status(&one_line(line))]);
}

/// Starting takes longer than usual, and goes on: wait so much longer from now on.
pub fn extend(time: std::time::Duration) {
    send(&[NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))]);
}

/// Tells the watchdog that the stages make progress.
pub fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// Within what time `alive` must be called again, where a watchdog is set.
pub fn watchdog_limit() -> Option<std::time::Duration> {
    sd_notify::watchdog_enabled()
}

/// What a cloud or a file says may stand in it, and each further line would be an order to the service manager.
fn one_line(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) || text.chars().count() > STATUS_CHARACTERS_MAX {
        let kept = text.chars().take(STATUS_CHARACTERS_MAX);
        Cow::Owned(kept.map(|character| if character.is_control() { ' ' } else { character }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::debug!(error:% = error; "The service manager could not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_line_whatever_it_tells_of() {
        assert_eq!(one_line("cloud: connected"), "cloud: connected");
        assert_eq!(one_line("refused: go away\nMAINPID=1"), "refused: go away MAINPID=1");
        assert_eq!(one_line(&"ä".repeat(1000)).chars().count(), STATUS_CHARACTERS_MAX);
    }

    #[test]
    fn a_line_cannot_be_broken_by_what_a_client_sent() {
        let fields = [("client", "evil\n2026 ERROR all is lost\x1b[2J")];
        let record =
            Record::builder().args(format_args!("A client connected")).level(Level::Info).key_values(&fields).build();
        let line = readable_line("T", &record, false);
        assert_eq!(line.matches('\n').count(), 1);
        assert!(!line.contains('\x1b'));
        assert!(line.starts_with("T INFO  A client connected client=\"evil\\n2026"));
        for (sent, shown) in [
            ("a\" b=\"c", r#"client="a\" b=\"c""#),
            ("a\\\" b=1", r#"client="a\\\" b=1""#),
            ("back\\", r#"client="back\\""#),
            ("\u{202e}gnp.exe\u{2028}", r"client=\u{202e}gnp.exe\u{2028}"),
            ("温度/1", "client=温度/1"),
        ] {
            let fields = [("client", sent)];
            let record = Record::builder().args(format_args!("x")).level(Level::Info).key_values(&fields).build();
            assert_eq!(readable_line("T", &record, false), format!("T INFO  x {shown}\n"));
        }
    }
}
