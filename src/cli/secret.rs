//! Secrets as people give them: typed without being seen, piped, or in files.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal as _, Write as _};
use std::path::Path;

use bytes::Bytes;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// No password is longer (MQTT 5.0, 1.5.6).
const BYTES_MAX: u64 = 65_535;

/// The first line of a file.
pub(super) fn from_file(path: &Path) -> io::Result<Bytes> {
    line(BufReader::new(File::open(path)?)).map(Bytes::from)
}

/// Asks at the terminal without showing what is typed; where standard input is no terminal, its next line is it.
pub(super) fn ask(question: &str) -> io::Result<String> {
    let stdin = io::stdin();
    let shown = match stdin.is_terminal() {
        true => Some(Unseen::begin(question)?),
        false => None,
    };
    let read = line(stdin.lock());
    drop(shown);
    String::from_utf8(read?).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

/// Whether somebody can be asked twice.
pub(super) fn is_typed() -> bool {
    io::stdin().is_terminal()
}

fn line(from: impl BufRead) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(BYTES_MAX + 2).read_until(b'\n', &mut bytes)?;
    for end in [b'\n', b'\r'] {
        if bytes.last() == Some(&end) {
            bytes.pop();
        }
    }
    if bytes.len() as u64 > BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than 65535 bytes"));
    }
    Ok(bytes)
}

/// A terminal that does not show what is typed; shows it again when dropped.
struct Unseen(Termios);

impl Unseen {
    fn begin(question: &str) -> io::Result<Unseen> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        quiet.local_modes.insert(LocalModes::ECHONL);
        // First, so that nothing is seen that was typed as soon as the question stood there; and nothing typed before is taken.
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
        eprint!("{question}");
        io::stderr().flush()?;
        Ok(Unseen(before))
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        // A terminal that is gone shows nothing anyway.
        let _gone = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
