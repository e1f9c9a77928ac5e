//! A bar for work that takes a while: on a terminal only, on standard error, and gone when the work is done.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use tokio::time::Instant;

use super::words::grouped;

const WIDTH: usize = 24;
/// Work that is done before this shows no bar; after it, so often.
const SHOWN_EVERY: Duration = Duration::from_millis(200);

/// How far something is.
#[derive(Debug)]
pub(super) struct Progress {
    what: &'static str,
    begun: Instant,
    shown: Instant,
    is_shown: bool,
    is_terminal: bool,
}

impl Progress {
    /// Of work that begins now.
    pub(super) fn new(what: &'static str) -> Progress {
        let now = Instant::now();
        Progress { what, begun: now, shown: now, is_shown: false, is_terminal: std::io::stderr().is_terminal() }
    }

    /// `done` of `total`, of what `unit` names.
    pub(super) fn show(&mut self, done: u64, total: u64, unit: &str) {
        if !self.is_terminal || self.shown.elapsed() < SHOWN_EVERY {
            return;
        }
        (self.shown, self.is_shown) = (Instant::now(), true);
        // Asked each time: windows change their size. What goes on in a second line stays there when the first is written over.
        let columns = rustix::termios::tcgetwinsize(std::io::stderr()).map_or(0, |size| usize::from(size.ws_col));
        let line = fitting(line(self.what, done, total, unit, self.begun.elapsed()), columns);
        let mut stderr = std::io::stderr().lock();
        // Where the terminal is gone there is nobody to tell.
        let _closed = write!(stderr, "\r{line}\x1b[K").and_then(|()| stderr.flush());
    }

    /// Takes the bar away.
    pub(super) fn end(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            let mut stderr = std::io::stderr().lock();
            let _closed = write!(stderr, "\r\x1b[K").and_then(|()| stderr.flush());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

fn line(what: &str, done: u64, total: u64, unit: &str, elapsed: Duration) -> String {
    let total = total.max(1);
    let done = done.min(total);
    let share = |whole: u128| usize::try_from(u128::from(done) * whole / u128::from(total)).unwrap_or(0);
    let full = share(WIDTH as u128);
    let bar = format!("{}{}", "#".repeat(full), ".".repeat(WIDTH - full));
    let mut line = format!("{what} [{bar}] {} %, {} of {} {unit}", share(100), grouped(done), grouped(total));
    if done > 0 && done < total {
        let left_ms = elapsed.as_millis() * u128::from(total - done) / u128::from(done);
        line += &format!(", about {} s left", left_ms.div_ceil(1000));
    }
    line
}

/// A line that is too long for so many columns is without its bar, and cut; 0: nobody knows how many there are.
fn fitting(line: String, columns: usize) -> String {
    let room = columns.saturating_sub(1);
    if room == 0 || line.chars().count() <= room {
        return line;
    }
    let bare = match (line.find('['), line.find("] ")) {
        (Some(from), Some(to)) if from < to => {
            format!("{}{}", line.get(..from).unwrap_or_default(), line.get(to + 2..).unwrap_or_default())
        }
        _ => line,
    };
    bare.chars().take(room).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_how_far_and_how_long() {
        let half = line("export", 500, 1000, "messages", Duration::from_secs(10));
        assert_eq!(half, "export [############............] 50 %, 500 of 1,000 messages, about 10 s left");
        assert_eq!(line("x", 0, 0, "rows", Duration::ZERO), "x [........................] 0 %, 0 of 1 rows");
        assert!(line("x", 9, 3, "rows", Duration::ZERO).contains("100 %, 3 of 3"));
        assert!(line("x", u64::MAX, u64::MAX, "rows", Duration::MAX).contains("100 %"));
    }

    #[test]
    fn a_bar_never_takes_a_second_line() {
        let half = line("export", 500, 1000, "messages", Duration::from_secs(10));
        assert_eq!(fitting(half.clone(), 200), half);
        assert_eq!(fitting(half.clone(), 0), half, "nobody knows");
        assert_eq!(fitting(half.clone(), 60), "export 50 %, 500 of 1,000 messages, about 10 s left");
        assert!((2..80).all(|columns| fitting(half.clone(), columns).chars().count() < columns));
    }
}
