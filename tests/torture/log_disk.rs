//! The disk that remembers (`peers/log_disk.py`), and what a power cut leaves of it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::common::PATIENCE;
use super::common::peers;
use super::common::process::Process;
use super::mounts::{Mount, make_ext4};
use super::random::Random;

/// What a disk writes whole.
const SECTOR: usize = 512;

/// A disk under an ext4 file system, which puts every write, every flush and every event into one order.
pub struct LogDisk {
    process: Process,
    folder: PathBuf,
    image: PathBuf,
    disk: Mount,
    files: Mount,
}

impl LogDisk {
    /// A disk of so many bytes, its file system mounted at `at`.
    pub fn mounted(folder: &Path, bytes: u64, at: &Path) -> LogDisk {
        let folder = folder.join("log-disk");
        fs::create_dir_all(folder.join("fuse")).unwrap();
        assert!(Path::new("/dev/fuse").exists(), "/dev/fuse is missing: the power-cut rig needs FUSE in the kernel");
        let image = folder.join("image");
        make_ext4(&image, bytes);
        let fuse = folder.join("fuse");
        let mut process =
            peers::script("log_disk", &["--image".as_ref(), image.as_os_str(), "--at".as_ref(), fuse.as_os_str()]);
        process.wait_for_line(PATIENCE, "that it is ready", |line| line == "ready");
        let disk = Mount::adopted(&fuse);
        let files = Mount::ext4(&fuse.join("disk"), at);
        LogDisk { process, folder, image, disk, files }
    }

    /// Where events are written.
    pub fn events(&self) -> EventLog {
        EventLog(File::options().write(true).open(self.folder.join("fuse/events")).unwrap())
    }

    /// Fails so many of the next writes that have `text` in them.
    pub fn fail(&mut self, count: u64, text: &str) {
        self.process.tell(&format!("fail {count} {text}"));
        self.process.wait_for_line(PATIENCE, "that writes will fail", |line| line == "failing");
    }

    /// Ends the record, unmounts everything and gives the record back.
    pub fn finish(mut self) -> Log {
        let file = self.folder.join("log");
        self.process.tell(&format!("dump {}", file.display()));
        self.process.wait_for_line(PATIENCE, "that the log is written", |line| line == "dumped");
        self.files.unmount();
        self.disk.unmount();
        self.process.close_stdin();
        let status = self.process.wait(PATIENCE);
        assert!(status.success(), "the log disk ended with {status}");
        Log { base: fs::read(self.image).unwrap(), records: read_log(&fs::read(file).unwrap()) }
    }
}

/// One end of the order: an event that is noted has its place before this returns.
pub struct EventLog(File);

impl EventLog {
    /// Notes an event.
    pub fn note(&self, event: &str) {
        (&self.0).write_all(event.as_bytes()).unwrap();
    }
}

/// What happened at the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Bytes were written at an offset.
    Write(usize, Vec<u8>),
    /// A flush has ended: the records before this one are on the disk.
    Flush(usize),
    /// Something was said.
    Event(String),
}

/// All of it, in order.
pub struct Log {
    /// The disk at first.
    pub base: Vec<u8>,
    /// What happened then.
    pub records: Vec<Record>,
}

impl Log {
    /// What was said before the cut.
    pub fn events(&self, cut: usize) -> impl Iterator<Item = &str> {
        self.records[..cut].iter().filter_map(|record| match record {
            Record::Event(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// How many writes and flushes there are, and how many bytes were written.
    pub fn figures(&self) -> (usize, usize, usize) {
        self.records.iter().fold((0, 0, 0), |(writes, flushes, bytes), record| match record {
            Record::Write(_, data) => (writes + 1, flushes, bytes + data.len()),
            Record::Flush(_) => (writes, flushes + 1, bytes),
            Record::Event(_) => (writes, flushes, bytes),
        })
    }

    /// The disk as it may be found when the power goes before the record `cut`: what the last flush covers is there, of
    /// everything later any sectors, as chance has it.
    pub fn disk_after(&self, cut: usize, random: &mut Random) -> Vec<u8> {
        let covered = self.records[..cut].iter().rev().find_map(|record| match record {
            Record::Flush(covered) => Some(*covered),
            _ => None,
        });
        let covered = covered.unwrap_or(0);
        // A disk may have written nothing yet, all of it, any writes whole, or any sectors.
        let (keeps_write, keeps_sector) =
            *random.pick(&[(0, 0), (100, 100), (50, 100), (100, 50), (100, 90), (70, 70)]);
        let mut disk = self.base.clone();
        for (place, record) in self.records[..cut].iter().enumerate() {
            let Record::Write(offset, data) = record else { continue };
            let is_safe = place < covered;
            if !is_safe && !random.happens(keeps_write) {
                continue;
            }
            for (number, sector) in data.chunks(SECTOR).enumerate() {
                if is_safe || random.happens(keeps_sector) {
                    let at = offset + number * SECTOR;
                    disk[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        disk
    }

    /// Where to cut: anywhere, and often right after something was acknowledged.
    pub fn choose_cut(&self, first: usize, random: &mut Random) -> usize {
        let acknowledged: Vec<usize> = (first..self.records.len())
            .filter(|place| matches!(&self.records[*place], Record::Event(text) if text.starts_with("acknowledged")))
            .collect();
        if !acknowledged.is_empty() && random.happens(40) {
            let after = 1 + usize::try_from(random.within(0..3)).unwrap();
            return (random.pick(&acknowledged) + after).min(self.records.len());
        }
        usize::try_from(random.within(first as u64..self.records.len() as u64 + 1)).unwrap()
    }

    /// The place behind the first event that begins so.
    pub fn first(&self, event: &str) -> usize {
        let is_it = |record: &Record| matches!(record, Record::Event(text) if text.starts_with(event));
        self.records.iter().position(is_it).unwrap_or_else(|| panic!("there is no event {event}")) + 1
    }
}

fn read_log(bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    let mut rest = bytes;
    while let Some((&kind, after)) = rest.split_first() {
        let number = usize::try_from(u64::from_le_bytes(after[..8].try_into().unwrap())).unwrap();
        let length = u32::from_le_bytes(after[8..12].try_into().unwrap()) as usize;
        let data = &after[12..12 + length];
        records.push(match kind {
            b'w' => Record::Write(number, data.to_vec()),
            b'f' => Record::Flush(number),
            b'e' => Record::Event(String::from_utf8(data.to_vec()).unwrap()),
            other => panic!("a record of the kind {other}"),
        });
        rest = &after[12 + length..];
    }
    records
}

#[test]
fn a_cut_keeps_what_a_flush_covers_and_any_sectors_of_the_rest() {
    let write = |number: u8| Record::Write(usize::from(number) * 1024, vec![number; 1024]);
    // The second write came while the flush ran, so that the flush says nothing about it.
    let records = vec![write(1), write(2), Record::Flush(1), Record::Event("acknowledged 1".to_owned()), write(3)];
    let log = Log { base: vec![0; 4096], records };
    let mut seen = BTreeSet::new();
    for seed in 0..400 {
        let disk = log.disk_after(5, &mut Random::from_seed(seed));
        assert_eq!(disk[1024..2048], [1; 1024], "what was flushed is there");
        seen.insert([disk[2048], disk[2560], disk[3072], disk[3584]]);
        let earlier = log.disk_after(2, &mut Random::from_seed(seed));
        assert_eq!(earlier[3072..], [0; 1024], "what comes after the cut never was");
    }
    assert_eq!(seen.len(), 16, "each of the four later sectors is there or not, whatever the others are: {seen:?}");
}
