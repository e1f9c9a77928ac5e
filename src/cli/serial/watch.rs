//! `tidegate serial watch`: what a device says, frame by frame, and the table to write for it.
//!
//! The command line is put together into the very table that is printed at the end, and read by what reads
//! configurations: what is tried out here means the same there, and a mistake is shown in the same way.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::super::{block_on, parse_duration};
use super::Exit;
use super::guess::{SAMPLE_BYTES_MAX, SAMPLES_MAX, guess};
use super::recording::{self, Chunk, hex};
use crate::clock::{Clock, ClockSource, rfc3339};
use crate::config::{self, Ending, FrameConfig, SerialConfig, SerialMode, toml_text};
use crate::field::PortError;
use crate::field::serial::frame::{Cut, Framer};
use crate::field::serial::parse::{Parsed, Reader};
use crate::field::serial::watch::{Heard, Listener};
use crate::health::chain;

/// What stands under the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  tidegate serial watch /dev/ttyUSB0 --baud 9600 --mode 7E1
  tidegate serial watch /dev/ttyUSB0 --send 'SI\\r\\n' --every 1s --parse '(?<weight>[0-9.]+) kg'
  tidegate serial watch /dev/ttyUSB0 --frame '{ start = 0x02, length = 12, checksum = { kind = \"crc16-modbus\" } }' \\
      --parse '{ bytes = true }' --point 'speed = { at = 3, type = \"i16\" }' --record press.txt
  tidegate serial watch --replay press.txt --frame '\\r\\n'

--frame, --parse and --point are what the configuration has under [serial.<name>]; without braces --frame is a delimiter \
and --parse a regular expression. Ctrl-C ends it and prints the table to write. A recording stands still at 64 MiB.";

/// A recording grows no longer than this: what was forgotten must not fill the disk.
const RECORD_BYTES_MAX: u64 = 64 << 20;
/// A recording that is played back is no longer than this.
const REPLAY_BYTES_MAX: u64 = 256 << 20;
/// Bytes of a frame that are shown.
const SHOWN_BYTES_MAX: usize = 256;
/// Where no frame is given, bytes that come together are shown together.
const BURST: &str = "{ idle = \"50ms\" }";
/// How long a question may take to be sent.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// `tidegate serial watch`
#[derive(Debug, clap::Args)]
pub(super) struct WatchArguments {
    /// The port, as `tidegate serial list` names it
    #[arg(required_unless_present = "replay", conflicts_with = "replay")]
    port: Option<PathBuf>,
    /// Bits a second
    #[arg(long, default_value = "9600")]
    baud: NonZeroU32,
    /// Data bits, parity, stop bits
    #[arg(long, default_value = "8N1", value_parser = parse_mode)]
    mode: String,
    /// Who holds the sender back: none, rtscts, xonxoff
    #[arg(long, value_name = "FLOW", default_value = "none")]
    flow: String,
    /// Level of DTR from the opening on
    #[arg(long, value_name = "TRUE|FALSE")]
    dtr: Option<bool>,
    /// Level of RTS from the opening on
    #[arg(long, value_name = "TRUE|FALSE")]
    rts: Option<bool>,
    /// Let the kernel switch an RS-485 transceiver
    #[arg(long)]
    rs485: bool,
    /// Send this: text with \r, \n and \u0002, or [0x02, 0x30]
    #[arg(long, value_name = "BYTES", conflicts_with = "replay")]
    send: Option<String>,
    /// Send it this often; without it, once
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "send")]
    every: Option<Duration>,
    /// Where frames begin and end: a delimiter, or { … }
    #[arg(long, value_name = "FRAME")]
    frame: Option<String>,
    /// How a frame is taken apart: a regular expression with named groups, or { … }
    #[arg(long, value_name = "PARSE")]
    parse: Option<String>,
    /// A point of JSON or binary frames: name = { … }
    #[arg(long = "point", value_name = "POINT", requires = "parse")]
    points: Vec<String>,
    /// Keep what comes in, with its times
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    record: Option<PathBuf>,
    /// Play back what was kept
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// End after so many frames
    #[arg(long, value_name = "COUNT")]
    count: Option<u64>,
    /// End after this time
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration, conflicts_with = "replay")]
    span: Option<Duration>,
}

fn parse_mode(text: &str) -> Result<String, String> {
    let SerialMode { .. } = config::parse_serial_mode(text)?;
    Ok(text.to_owned())
}

/// Why it ends before it is told to.
#[derive(Debug)]
enum End {
    /// So many frames were seen, or the time is over, or somebody interrupted it.
    Enough,
    /// Nobody reads what is printed.
    Unread,
    /// With this message and status.
    Failed(String, Exit),
}

pub(super) fn main(arguments: &WatchArguments) -> Exit {
    let text = arguments.table(BURST, None, &[]);
    let device = match config::serial_device(Path::new("(the command line)"), &text) {
        Ok(device) => device,
        Err(problems) => {
            eprint!("{}", config::render(&problems, &[]));
            return Exit::Usage;
        }
    };
    let mut screen = Screen::new(arguments, &device);
    let end = match &arguments.replay {
        Some(file) => replay(file, &mut screen, &device.frame),
        None => block_on_end(listen(arguments, &device, &mut screen)),
    };
    let exit = match end {
        End::Enough => Exit::Done,
        End::Unread => return Exit::Done,
        End::Failed(message, exit) => {
            eprintln!("tidegate: {message}");
            if exit == Exit::Usage || !screen.has_heard {
                return exit;
            }
            exit
        }
    };
    let _unread = screen.sum_up(arguments);
    exit
}

fn block_on_end(work: impl Future<Output = End>) -> End {
    let mut end = End::Failed("cannot start".to_owned(), Exit::Failed);
    let slot = &mut end;
    let exit = block_on(async {
        *slot = work.await;
        Exit::Done
    });
    if exit == Exit::Done { end } else { End::Enough }
}

impl WatchArguments {
    /// The table for the configuration: as given, and where nothing was given as proposed.
    fn table(&self, frame: &str, parse: Option<&str>, points: &[String]) -> String {
        let port = self.port.clone().unwrap_or_else(|| PathBuf::from("/dev/serial/by-id/…"));
        let mut text = format!(
            "[serial.device]\nport = {}\nbaud = {}\nmode = {}\n",
            toml_text(&port.to_string_lossy()),
            self.baud,
            toml_text(&self.mode)
        );
        if self.flow != "none" {
            text += &format!("flow = {}\n", toml_text(&self.flow));
        }
        for (key, level) in [("dtr", self.dtr), ("rts", self.rts), ("rs485", self.rs485.then_some(true))] {
            text += &level.map(|level| format!("{key} = {level}\n")).unwrap_or_default();
        }
        if let (Some(send), Some(every)) = (&self.send, &self.every) {
            let timeout = (*every / 2).clamp(Duration::from_millis(10), Duration::from_millis(500)).as_millis();
            let every = every.as_millis();
            text += &format!("ask = {{ send = {}, every = \"{every}ms\", timeout = \"{timeout}ms\" }}\n", bytes(send));
        }
        let frame = match self.frame.as_deref().map(str::trim) {
            Some(frame) if frame.starts_with('{') => frame.to_owned(),
            Some(delimiter) => format!("{{ delimiter = {} }}", bytes(delimiter)),
            None => frame.to_owned(),
        };
        text += &format!("frame = {frame}\n");
        // What is never used, where nothing is to be taken apart yet.
        let unknown = "{ regex = '(?<value>.*)' }";
        let parse = match self.parse.as_deref().map(str::trim) {
            Some(parse) if parse.starts_with('{') => parse.to_owned(),
            Some(regex) => format!("{{ regex = {} }}", literal(regex)),
            None => parse.unwrap_or(unknown).to_owned(),
        };
        text += &format!("parse = {parse}\n");
        let points = if self.points.is_empty() { points } else { &self.points };
        // JSON names its values itself, as long as a person looks on.
        let is_bare_json = self.parse.is_some() && points.is_empty() && parse.contains("json");
        if is_bare_json {
            text += "[serial.device.point]\nvalue = {}\n";
        } else if !points.is_empty() {
            text += &format!("[serial.device.point]\n{}\n", points.join("\n"));
        }
        text
    }
}

/// Bytes as TOML: a list as it is, else a text in which \r and \n are what they are in TOML.
fn bytes(text: &str) -> String {
    let is_list = text.starts_with('[') && text.ends_with(']');
    let is_number = text.strip_prefix("0x").is_some_and(|digits| digits.len() <= 2 && !digits.is_empty());
    if is_list || is_number { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\\\"")) }
}

/// A text in which a backslash is a backslash.
fn literal(text: &str) -> String {
    if text.contains('\'') || text.contains('\n') { toml_text(text) } else { format!("'{text}'") }
}

/// Listens until it is told to stop.
async fn listen(arguments: &WatchArguments, device: &SerialConfig, screen: &mut Screen) -> End {
    let mut listener = match Listener::open(&device.port, device.frame.clone()) {
        Ok(listener) => listener,
        Err(error) => {
            let exit = match error {
                PortError::Missing { .. } | PortError::Busy { .. } => Exit::TryAgain,
                PortError::Denied { .. } | PortError::Unable { .. } | PortError::Other { .. } => Exit::Failed,
            };
            return End::Failed(chain(&error), exit);
        }
    };
    let mut record = match arguments.record.as_deref().map(Record::start).transpose() {
        Ok(record) => record,
        Err(message) => return End::Failed(message, Exit::Usage),
    };
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return End::Failed("cannot hear signals".to_owned(), Exit::Failed);
    };
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    let clock = Clock::new(ClockSource::Trusted);
    let send = sent(arguments, device);
    let began = Instant::now();
    let end = arguments.span.map(|span| began + span);
    let mut due = send.as_ref().map(|_| began);
    loop {
        let now = Instant::now();
        if end.is_some_and(|end| now >= end) {
            return End::Enough;
        }
        if let (Some(bytes), Some(at)) = (&send, due)
            && now >= at
        {
            if let Err(error) = listener.send(bytes, now + SEND_TIMEOUT).await {
                return End::Failed(format!("cannot send: {error}"), Exit::TryAgain);
            }
            if screen.sent(clock.now().wall_ms, bytes).is_err() {
                return End::Unread;
            }
            due = arguments.every.map(|every| (at + every).max(now));
        }
        let wake = [due, end].into_iter().flatten().min().unwrap_or(now + Duration::from_secs(3600));
        let heard = tokio::select! {
            _ = &mut interrupt => return End::Enough,
            _ = terminate.recv() => return End::Enough,
            heard = listener.next(wake) => heard,
        };
        let wall_ms = clock.now().wall_ms;
        let cuts = match heard {
            Ok(Heard::Nothing) => continue,
            Ok(Heard::Silence(cuts)) => cuts,
            Ok(Heard::Bytes(bytes, cuts)) => {
                screen.heard(&bytes);
                if let Some(Err(message)) = record.as_mut().map(|record| record.keep(wall_ms, &bytes)) {
                    return End::Failed(message, Exit::Failed);
                }
                cuts
            }
            Err(error) => return End::Failed(format!("the port is gone: {error}"), Exit::TryAgain),
        };
        for cut in cuts {
            match screen.show(wall_ms, &cut) {
                Err(_) => return End::Unread,
                Ok(()) if screen.has_enough() => return End::Enough,
                Ok(()) => {}
            }
        }
    }
}

/// What is to be sent, as the configuration reads it.
fn sent(arguments: &WatchArguments, device: &SerialConfig) -> Option<Vec<u8>> {
    if let Some(ask) = &device.ask {
        return Some(ask.send.clone());
    }
    let text = format!(
        "[serial.x]\nport = \"/x\"\nparse = {{ csv = [\"x\"] }}\nask = {{ send = {} }}\n",
        bytes(arguments.send.as_ref()?)
    );
    config::serial_device(Path::new("(the command line)"), &text).ok()?.ask.map(|ask| ask.send)
}

/// Plays a recording back, as fast as it can be read: silences are those of its times.
fn replay(file: &Path, screen: &mut Screen, frame: &FrameConfig) -> End {
    let shown = file.display();
    let fault = |what: String| End::Failed(format!("cannot play {shown} back: {what}"), Exit::Usage);
    let length = std::fs::metadata(file).map(|metadata| metadata.len());
    let text = match length {
        Ok(length) if length > REPLAY_BYTES_MAX => return fault("it is larger than 256 MiB".to_owned()),
        Ok(_) => std::fs::read_to_string(file),
        Err(error) => Err(error),
    };
    let chunks = match text.map_err(|error| error.to_string()).and_then(|text| recording::read(&text)) {
        Ok(chunks) => chunks,
        Err(message) => return fault(message),
    };
    let mut framer = Framer::new(frame.clone());
    framer.reset(true);
    let mut last_ms: Option<i64> = None;
    for Chunk { wall_ms, bytes } in &chunks {
        screen.heard(bytes);
        let before_ms = last_ms.replace(*wall_ms).unwrap_or(*wall_ms);
        let gap_ms = u64::try_from(wall_ms.saturating_sub(before_ms)).unwrap_or(0);
        let is_over = framer.patience().is_some_and(|patience| Duration::from_millis(gap_ms) > patience);
        let by_silence = if is_over { framer.silence() } else { Vec::new() };
        let cuts = by_silence.iter().map(|cut| (before_ms, cut));
        let by_bytes = framer.push(bytes);
        for (at_ms, cut) in cuts.chain(by_bytes.iter().map(|cut| (*wall_ms, cut))) {
            match screen.show(at_ms, cut) {
                Err(_) => return End::Unread,
                Ok(()) if screen.has_enough() => return End::Enough,
                Ok(()) => {}
            }
        }
    }
    // After the last byte it was silent.
    for cut in framer.patience().map(|_| framer.silence()).unwrap_or_default() {
        if screen.show(last_ms.unwrap_or(0), &cut).is_err() {
            return End::Unread;
        }
    }
    End::Enough
}

/// A file that bytes are kept in.
struct Record {
    file: File,
    shown: String,
    length: u64,
}

impl Record {
    fn start(path: &Path) -> Result<Record, String> {
        let shown = path.display().to_string();
        // Never over a recording that somebody still needs.
        let file = File::options().write(true).create_new(true).open(path);
        let mut record = match file {
            Ok(file) => Record { file, shown, length: 0 },
            Err(error) => return Err(format!("cannot record to {shown}: {error}")),
        };
        record.put(recording::HEADER)?;
        Ok(record)
    }

    fn keep(&mut self, wall_ms: i64, bytes: &[u8]) -> Result<(), String> {
        if self.length > RECORD_BYTES_MAX {
            return Ok(());
        }
        self.put(&recording::line(wall_ms, bytes))?;
        if self.length > RECORD_BYTES_MAX {
            eprintln!("tidegate: {} has 64 MiB; nothing more is recorded", self.shown);
        }
        Ok(())
    }

    fn put(&mut self, text: &str) -> Result<(), String> {
        self.length += text.len() as u64;
        self.file.write_all(text.as_bytes()).map_err(|error| format!("cannot record to {}: {error}", self.shown))
    }
}

/// What is printed, and what was seen.
struct Screen {
    reader: Option<Reader>,
    /// No frame was given: bursts are shown, and a frame is proposed.
    is_burst: bool,
    count_max: Option<u64>,
    frames: u64,
    fitting: u64,
    dropped: u64,
    samples: Vec<Vec<u8>>,
    has_heard: bool,
}

impl Screen {
    fn new(arguments: &WatchArguments, device: &SerialConfig) -> Screen {
        let reader = arguments.parse.as_ref().map(|_| {
            let mut reader = Reader::of(device);
            if arguments.points.is_empty() {
                reader.points.clear();
            }
            reader
        });
        Screen {
            reader,
            is_burst: arguments.frame.is_none() && device.frame.ending == Ending::Idle,
            count_max: arguments.count,
            frames: 0,
            fitting: 0,
            dropped: 0,
            samples: Vec::new(),
            has_heard: false,
        }
    }

    fn heard(&mut self, bytes: &[u8]) {
        self.has_heard |= !bytes.is_empty();
    }

    fn has_enough(&self) -> bool {
        self.count_max.is_some_and(|most| self.frames + self.dropped >= most)
    }

    fn sent(&self, wall_ms: i64, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{}  >  {}  {}", time(wall_ms), visible(bytes), hex(shortened(bytes)))?;
        out.flush()
    }

    fn show(&mut self, wall_ms: i64, cut: &Cut) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match cut {
            Cut::Dropped(flaw) => {
                self.dropped += 1;
                writeln!(out, "{}  !  {}", time(wall_ms), flaw.reason())?;
            }
            Cut::Frame(frame) => {
                self.frames += 1;
                if self.samples.len() < SAMPLES_MAX {
                    self.samples.push(frame.body().iter().take(SAMPLE_BYTES_MAX).copied().collect());
                }
                let whole = frame.whole.as_slice();
                let more = if whole.len() > SHOWN_BYTES_MAX { " …" } else { "" };
                writeln!(out, "{}  <  {}  {} bytes", time(wall_ms), visible(shortened(whole)), whole.len())?;
                writeln!(out, "              {}{more}", hex(shortened(whole)))?;
                match self.reader.as_ref().map(|reader| reader.read(frame.body())) {
                    Some(Some(parsed)) => {
                        self.fitting += 1;
                        writeln!(out, "           =  {}", said(&parsed))?;
                    }
                    Some(None) => writeln!(out, "           !  it does not fit --parse")?,
                    None => {}
                }
            }
        }
        out.flush()
    }

    /// Counts, and the table to write.
    fn sum_up(&self, arguments: &WatchArguments) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let what = if self.is_burst { "bursts" } else { "frames" };
        write!(out, "\n{} {what}", self.frames)?;
        if self.reader.is_some() {
            write!(out, ", {} of which fit --parse", self.fitting)?;
        }
        writeln!(out, "; {} dropped", self.dropped)?;
        if !self.has_heard {
            writeln!(
                out,
                "Nothing was heard: look at the cable (TX and RX crossed?), --baud and --mode; many devices speak only \
                 when asked (--send), or need --dtr true"
            )?;
        }
        let guess = guess(&self.samples);
        for hint in &guess.hints {
            writeln!(out, "# {hint}")?;
        }
        let frame = guess.frame.as_deref().unwrap_or("{ delimiter = \"\\r\\n\" }");
        writeln!(out, "\n# For the configuration; the name `device` is yours to choose:")?;
        out.write_all(arguments.table(frame, guess.parse.as_deref(), &guess.points).as_bytes())?;
        out.flush()
    }
}

/// The time of day in UTC, to the millisecond.
fn time(wall_ms: i64) -> String {
    rfc3339(wall_ms).get(11..23).unwrap_or_default().to_owned()
}

fn shortened(bytes: &[u8]) -> &[u8] {
    bytes.get(..SHOWN_BYTES_MAX).unwrap_or(bytes)
}

/// Bytes as text, what is none as in a program.
fn visible(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

fn said(parsed: &Parsed) -> String {
    let value = |(name, value): &(String, Result<crate::message::Value, String>)| match value {
        Ok(value) => format!("{name} = {}", value_text(value)),
        Err(reason) => format!("{name} is bad: {reason}"),
    };
    let values: Vec<String> = parsed.values.iter().map(value).collect();
    values.join(", ")
}

fn value_text(value: &crate::message::Value) -> String {
    use crate::message::Value;
    match value {
        Value::Float(number) => number.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Uint(number) => number.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Text(text) => format!("{text:?}"),
        Value::Null => "null".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        watch: WatchArguments,
    }

    fn table(arguments: &[&str]) -> String {
        Line::try_parse_from([&["watch"], arguments].concat()).unwrap().watch.table(BURST, None, &[])
    }

    fn device(arguments: &[&str]) -> SerialConfig {
        let text = table(arguments);
        config::serial_device(Path::new("x"), &text)
            .unwrap_or_else(|problems| panic!("{}", config::render(&problems, &[])))
    }

    #[test]
    fn what_is_typed_is_the_table_that_is_printed() {
        let scale = device(&["/dev/ttyS1", "--mode", "7E1", "--frame", r"\r\n", "--parse", r"(?<w>-?\s*[0-9.]+) kg"]);
        assert_eq!(scale.frame, FrameConfig::delimited(b"\r\n", 1024));
        assert_eq!(scale.port.mode.data_bits, 7);
        let asked = device(&["/dev/ttyS1", "--send", r#"a"\r"#, "--every", "2s"]);
        assert_eq!(asked.ask.unwrap().send, b"a\"\r");
        let bytes = device(&["/dev/ttyS1", "--send", "[0x02, 0x30]", "--every", "2s", "--frame", "0x03"]);
        assert_eq!((bytes.ask.unwrap().send, bytes.frame.ending), (vec![2, 0x30], Ending::Mark(vec![3])));
        let points = ["--parse", "{ bytes = true }", "--point", "a = { at = 1, type = \"u16\" }"];
        assert_eq!(device(&[&["/dev/ttyS1"][..], &points].concat()).points.len(), 1);
        assert_eq!(device(&["--replay", "f", "--parse", "{ json = true }"]).points.len(), 1);
    }

    #[test]
    fn a_quote_in_a_regular_expression_stays_one() {
        for regex in ["(?<a>')", r#"(?<a>"\d)"#, r"(?<a>'\d)"] {
            let parse = device(&["/dev/ttyS1", "--parse", regex]).parse;
            let config::Parse::Regex(read) = parse else { panic!("{parse:?}") };
            assert_eq!(read.as_str(), regex);
        }
    }

    #[test]
    fn a_recording_is_cut_like_the_line_was() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("r");
        std::fs::write(&file, "0 31 32\n5 33\n1000 34\n2000 35 36\n").unwrap();
        let line = Line::try_parse_from(["watch", "--replay", "x", "--parse", "(?<n>[0-9]+)"]).unwrap().watch;
        let device = config::serial_device(Path::new("x"), &line.table(BURST, None, &[])).unwrap();
        let mut screen = Screen::new(&line, &device);
        assert!(matches!(replay(&file, &mut screen, &device.frame), End::Enough));
        // The first burst may have begun before the recording did.
        assert_eq!((screen.samples, screen.fitting), (vec![b"4".to_vec(), b"56".to_vec()], 2));
        std::fs::write(&file, "x").unwrap();
        let mut screen = Screen::new(&line, &device);
        assert!(matches!(replay(&file, &mut screen, &device.frame), End::Failed(_, Exit::Usage)));
    }
}
