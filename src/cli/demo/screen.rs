//! The live screen: drawn ten times a second on a terminal, plain lines on anything else.
//!
//! It only looks: the drills go on at their own pace whether anybody can see them or not. A terminal is left as it
//! was found, on every way out.

use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use rustix::termios::tcgetwinsize;

use super::cloud::Cloud;
use super::line::Line;
use super::plant::{DEAD_UNIT, NEIGHBOURS, POLL_MS};
use super::scene::{Drill, Outcome, Progress, Scene, View};
use super::table::COUNTED_BY;
use crate::cli::publisher::Publisher;
use crate::cli::tally::{Count, DeviceCount};
use crate::cli::words::grouped;

/// Ten times a second.
pub(super) const REDRAW: Duration = Duration::from_millis(100);

/// Alternate screen, no cursor, no wrapping; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// What everybody's terminal has at least.
const COLUMNS: usize = 80;
const ROWS: usize = 24;

/// What the screen looks at.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    /// What goes on.
    pub(super) scene: Scene,
    /// The judge.
    pub(super) cloud: Cloud,
    /// The line.
    pub(super) line: Line,
    /// The sender.
    pub(super) publisher: Publisher,
}

/// The terminal, or what stands in for one.
#[derive(Debug)]
pub(super) struct Screen {
    is_live: bool,
    has_colour: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tone {
    Plain,
    Strong,
    Faint,
    Good,
    Bad,
}

/// One row, in pieces of one tone each.
type Row = Vec<(Tone, String)>;

impl Screen {
    /// Takes the terminal, when there is one.
    pub(super) fn open() -> Screen {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let is_live = std::io::stdout().is_terminal() && !dumb;
        let has_colour = is_live && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        if is_live {
            print(ENTER);
            // The words of a panic would go down with the alternate screen.
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                print(LEAVE);
                before(panic);
            }));
        }
        Screen { is_live, has_colour }
    }

    /// Shows what there is to be seen at this moment.
    pub(super) fn draw(&self, watched: &Watched) {
        let unsaid = watched.scene.take_unsaid();
        if !self.is_live {
            for (when, sentence) in unsaid {
                print(&format!("{:>5.1} s  {sentence}\n", when.as_secs_f64()));
            }
            return;
        }
        let size = tcgetwinsize(std::io::stdout()).ok();
        let rows = size.map_or(ROWS, |size| usize::from(size.ws_row)).max(1);
        let mut text = String::from("\x1b[H");
        for (place, row) in frame(watched).iter().take(rows).enumerate() {
            if place > 0 {
                text.push_str("\r\n");
            }
            for (tone, piece) in row {
                text.push_str(&self.toned(*tone, piece));
            }
            text.push_str("\x1b[K");
        }
        text.push_str("\x1b[J");
        print(&text);
    }

    fn toned(&self, tone: Tone, piece: &str) -> String {
        let code = match tone {
            Tone::Plain => return piece.to_owned(),
            Tone::Strong => "1",
            Tone::Faint => "2",
            Tone::Good => "32",
            Tone::Bad => "1;31",
        };
        if self.has_colour { format!("\x1b[{code}m{piece}\x1b[0m") } else { piece.to_owned() }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.is_live {
            print(LEAVE);
        }
    }
}

/// Writes to standard output at once; a reader that left (`| head`) is no fault of ours.
pub(super) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _closed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// What a drill came to, in one line.
pub(super) fn result(outcome: &Outcome) -> String {
    let time = outcome.catch_up.map_or_else(String::new, |time| format!(", after {:.1} s", time.as_secs_f64()));
    let Count { acknowledged, received, repeated, .. } = outcome.count;
    format!(
        "acknowledged {}, received {}, lost {}, repeated {}{time}",
        grouped(acknowledged),
        grouped(received),
        grouped(outcome.count.lost()),
        grouped(repeated),
    )
}

fn frame(watched: &Watched) -> Vec<Row> {
    let view = watched.scene.snapshot();
    let mut rows = vec![heading(&view), Vec::new()];
    rows.extend(picture(watched, &view));
    for (drill, progress) in Drill::ALL.into_iter().zip(&view.drills) {
        rows.push(Vec::new());
        rows.extend(drill_rows(watched, &view, drill, progress));
    }
    if view.has_field {
        rows.push(Vec::new());
        rows.extend(field_rows(&watched.cloud.tally(|tally| tally.devices())));
    }
    rows.push(Vec::new());
    rows.push(vec![(Tone::Strong, format!("  {}", view.now))]);
    rows.push(Vec::new());
    rows.push(vec![(Tone::Faint, format!("  {COUNTED_BY}  Ctrl-C ends it."))]);
    rows
}

fn heading(view: &View) -> Row {
    let title = format!("  tidegate demo: the {} loses its line and its life", view.subject);
    let time = view.began.elapsed().as_secs();
    let clock = format!("{}:{:02}", time / 60, time % 60);
    let space = (COLUMNS - 2).saturating_sub(title.len() + clock.len());
    vec![(Tone::Strong, title), (Tone::Plain, " ".repeat(space)), (Tone::Plain, clock)]
}

/// The way of a message, with the state of each part under it.
fn picture(watched: &Watched, view: &View) -> [Row; 2] {
    let is_up = watched.line.is_up();
    let (process_tone, process) = match view.process {
        Some(id) => (Tone::Good, format!("pid {id}")),
        None => (Tone::Bad, "dead".to_owned()),
    };
    let (line_tone, drawn, state) = if is_up {
        (Tone::Good, "====================>", "the line is up")
    } else {
        (Tone::Bad, "=========   /  ======", "the line is cut")
    };
    let (acknowledged, is_connected) =
        watched.publisher.record(|record| (record.acknowledged(), record.is_connected()));
    let sender = if is_connected { format!("{} acked", grouped(acknowledged)) } else { "waits".to_owned() };
    let received = watched.cloud.tally(|tally| tally.received());
    [
        vec![
            (Tone::Plain, format!("  {:20}", "local sender  --->")),
            (process_tone, format!("{:17}", view.subject)),
            (line_tone, format!("{drawn:23}")),
            (Tone::Plain, "cloud".to_owned()),
        ],
        vec![
            (Tone::Faint, format!("  {sender:20}")),
            (process_tone, format!("{process:17}")),
            (line_tone, format!("{state:23}")),
            (Tone::Faint, format!("{} received", grouped(received))),
        ],
    ]
}

fn drill_rows(watched: &Watched, view: &View, drill: Drill, progress: &Progress) -> [Row; 2] {
    let place = Drill::ALL.iter().position(|one| *one == drill).unwrap_or(0) + 1;
    let tone = if *progress == Progress::Ahead { Tone::Faint } else { Tone::Plain };
    let title = vec![(tone, format!("  {place}  {}", drill.sentence(view.subject)))];
    let below = match progress {
        Progress::Ahead => vec![],
        Progress::Running(numbers) => {
            let end = numbers.end.min(watched.publisher.record(|record| record.next()));
            let numbers = numbers.start..end;
            let count = watched.publisher.record(|record| watched.cloud.tally(|tally| tally.count(numbers, record)));
            vec![(
                Tone::Strong,
                format!(
                    "     acknowledged {:>7}   received {:>7}   waiting {:>7}",
                    grouped(count.acknowledged),
                    grouped(count.received),
                    grouped(count.lost()),
                ),
            )]
        }
        Progress::Done(outcome) => {
            let tone = if outcome.count.lost() == 0 { Tone::Good } else { Tone::Bad };
            vec![(tone, format!("     {}", result(outcome)))]
        }
    };
    [title, below]
}

fn field_rows(devices: &[DeviceCount]) -> [Row; 2] {
    let asked = f64::from(POLL_MS) / 1000.0;
    let title = format!("  4  {DEAD_UNIT} is dead; its neighbours on the same line keep their interval.");
    let mut below = String::from("    ");
    for name in NEIGHBOURS {
        let found = devices.iter().find(|device| device.name == name);
        let interval = found.and_then(|device| device.interval_ms);
        let interval = interval.map_or_else(|| "-".to_owned(), |ms| format!("{:.2} s", f64::from(ms) / 1000.0));
        below.push_str(&format!(" {name} every {interval},"));
    }
    let received: u64 = devices.iter().map(|device| device.received).sum();
    below.push_str(&format!(" asked {asked:.2} s; {} readings", grouped(received)));
    [vec![(Tone::Plain, title)], vec![(Tone::Plain, below)]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test]
    async fn the_screen_fits_80_by_24() {
        let scene = Scene::new("gateway", true, Instant::now());
        scene.set_process(Some(4_194_304));
        let count = Count { acknowledged: 12_345, received: 12_345, repeated: 1_234, sent_again: 0 };
        let outcome = Outcome { drill: Drill::Cut, count, catch_up: Some(Duration::from_millis(12_345)) };
        scene.set(Drill::Cut, Progress::Done(outcome));
        scene.set(Drill::KillInOutage, Progress::Running(0..u64::MAX));
        scene.say("The line is cut; the sender goes on and is acknowledged all the same.");
        let watched = Watched { scene, cloud: Cloud::default(), line: Line::new(), publisher: Publisher::default() };
        for is_up in [true, false] {
            if !is_up {
                watched.line.cut();
            }
            let rows = frame(&watched);
            assert!(rows.len() <= ROWS, "{} rows", rows.len());
            for row in rows {
                let text: String = row.into_iter().map(|(_, piece)| piece).collect();
                assert!(text.chars().count() <= COLUMNS, "{text}");
            }
        }
    }
}
