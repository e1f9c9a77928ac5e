//! The file `clock` in the state directory: a time that has certainly passed, for boards that boot in the past.
//!
//! Written whole or not at all; one that is damaged says nothing, and then less is known, nothing wrong.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use super::reckoning::{Reference, passed_ms};

const NAME: &str = "clock";

/// Longer files were not written by us.
const FILE_BYTES_MAX: u64 = 1024;

/// What one boot knew when it was last heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Which boot.
    pub boot_id: String,
    /// It did not begin before this.
    pub boot_ms_min: i64,
    /// Milliseconds since its beginning when this was written.
    pub mono_ms: u64,
    /// The last moment that was known.
    pub known: Option<Reference>,
}

impl Kept {
    /// A time that has certainly passed.
    pub fn passed_ms(&self) -> i64 {
        match self.known {
            Some(known) => known.wall_at(self.mono_ms).saturating_sub(i64::from(known.error_at(self.mono_ms))),
            None => passed_ms(self.boot_ms_min, self.mono_ms),
        }
    }

    /// What the file in `dir` says; `None` where it is not there or damaged.
    pub fn read(dir: &Path) -> Option<Kept> {
        let path = dir.join(NAME);
        let metadata = fs::metadata(&path).ok()?;
        if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
            return None;
        }
        parse(&fs::read_to_string(path).ok()?)
    }

    /// Replaces the file in `dir`.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join("clock.new");
        let mut file = File::create(&new)?;
        file.write_all(self.print().as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, dir.join(NAME))?;
        File::open(dir)?.sync_all()
    }

    fn print(&self) -> String {
        let Kept { boot_id, boot_ms_min, mono_ms, known } = self;
        let mut body = format!("tidegate clock 1\nboot {boot_id}\nnot-before {boot_ms_min}\nup {mono_ms}\n");
        if let Some(Reference { wall_ms, mono_ms, error_ms }) = known {
            body.push_str(&format!("known {wall_ms} {mono_ms} {error_ms}\n"));
        }
        format!("{body}sum {:08x}\n", crc32c::crc32c(body.as_bytes()))
    }
}

fn parse(text: &str) -> Option<Kept> {
    let mut lines = text.lines().peekable();
    let mut next = |prefix: &str| lines.next_if(|line| line.starts_with(prefix))?.strip_prefix(prefix);
    next("tidegate clock 1")?;
    let (boot_id, boot_ms_min) = (next("boot ")?.to_owned(), next("not-before ")?.parse().ok()?);
    let mono_ms = next("up ")?.parse().ok()?;
    let known = match next("known ") {
        None => None,
        Some(known) => {
            let mut numbers = known.split(' ');
            let mut number = || numbers.next();
            let (wall_ms, mono_ms) = (number()?.parse().ok()?, number()?.parse().ok()?);
            Some(Reference { wall_ms, mono_ms, error_ms: number()?.parse().ok()? })
        }
    };
    let kept = Kept { boot_id, boot_ms_min, mono_ms, known };
    // Printing is the only way to write one, so reading is printing and comparing.
    (kept.print() == text).then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(known: Option<Reference>) -> Kept {
        Kept { boot_id: "b-1".to_owned(), boot_ms_min: 1_735_689_600_000, mono_ms: 5_000_000, known }
    }

    #[test]
    fn it_reads_back_and_a_damaged_one_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Kept::read(dir.path()), None);
        let known = Reference { wall_ms: 1_795_425_600_000, mono_ms: 4_000_000, error_ms: 3 };
        for kept in [kept(None), kept(Some(known))] {
            kept.write(dir.path()).unwrap();
            assert_eq!(Kept::read(dir.path()), Some(kept));
        }
        let path = dir.path().join(NAME);
        let good = fs::read(&path).unwrap();
        for cut in 0..good.len() {
            fs::write(&path, &good[..cut]).unwrap();
            assert_eq!(Kept::read(dir.path()), None, "cut at {cut}");
            let mut bad = good.clone();
            bad[cut] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert_eq!(Kept::read(dir.path()), None, "flipped at {cut}");
        }
    }

    #[test]
    fn what_has_passed_is_the_known_time_else_the_time_that_the_board_was_on() {
        assert_eq!(kept(None).passed_ms(), 1_735_694_600_000 - 500);
        let known = Reference { wall_ms: 1_795_425_600_000, mono_ms: 4_000_000, error_ms: 3 };
        assert_eq!(kept(Some(known)).passed_ms(), 1_795_425_600_000 + 1_000_000 - 103);
    }
}
