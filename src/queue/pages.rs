//! SQLite's files, read without SQLite: what a damaged store still says. Reads only, believes nothing.
//!
//! SQLite refuses a whole database for one page. Here a page is a page: small tables are walked from their roots as far
//! as they hold together, and rows of messages are found by *carving*: at every offset of every page, also those of the
//! write-ahead log, where something lies that has the shape of a row and its checksum (row.rs), whatever the trees say.
//! The format is that of <https://www.sqlite.org/fileformat2.html>; numbers of sections below are its own.
//!
//! Nothing here writes: opening a damaged database with SQLite would recover, and so change, what is to be kept.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::store::{DATABASE, LOG, PAGE_BYTES};

pub(super) const PAGE: usize = PAGE_BYTES as usize;
const WAL_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
const FRAME: u64 = (FRAME_HEADER + PAGE) as u64;
/// A log is cut at 4000 frames; one that was not cut for long is longer.
const FRAMES_MAX: u64 = 262_144;
/// Frames of the last commit that are tried for a flipped bit.
const FLIPS_TRIED_MAX: usize = 16;
/// A table that is walked has fewer pages than this, or damage leads in circles.
const WALK_PAGES_MAX: usize = 1 << 20;
/// A step of a walk ends with the record that makes it so long.
const STEP_BYTES: usize = 64 * 1024;
/// No row is longer: a packet has 256 KiB.
const ROW_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A value in a record (2.1).
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Int(i64),
    Text(String),
    Blob(Vec<u8>),
}

impl Value {
    pub fn int(&self) -> Option<i64> {
        if let Value::Int(value) = self { Some(*value) } else { None }
    }

    pub fn unsigned(&self) -> Option<u64> {
        self.int().map(i64::cast_unsigned)
    }

    pub fn text(&self) -> Option<&str> {
        if let Value::Text(text) = self { Some(text) } else { None }
    }

    pub fn blob(&self) -> Option<&[u8]> {
        if let Value::Blob(bytes) = self { Some(bytes) } else { None }
    }
}

/// Where something that looks like a message lies: the unit (a page of the database, or a frame of the log after all of
/// those) and the offset in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    pub unit: u32,
    pub offset: u16,
}

/// A walk over a tree, as far as it has come.
#[derive(Debug)]
pub(super) struct Walk {
    /// Pages, and how many cells of each were seen.
    pending: Vec<(u32, usize)>,
    seen: HashSet<u32>,
    /// Nothing was damaged so far.
    pub is_whole: bool,
}

impl Walk {
    pub fn new(root: u32) -> Walk {
        Walk { pending: vec![(root, 0)], seen: HashSet::new(), is_whole: true }
    }
}

/// A damaged store's files.
#[derive(Debug)]
pub(super) struct Pages {
    database: Option<File>,
    log: Option<File>,
    database_pages: u32,
    /// Frames that were committed, or are of an earlier round of the log: their places in it.
    frames: Vec<u32>,
    /// Pages whose newest version is in the log, by the place of its frame.
    newest: HashMap<u32, u32>,
    /// A frame that belongs to what was committed does not match its checksum, or the log's head is lost: what is read
    /// by `page` may be older than the last commit.
    pub is_torn: bool,
    /// As `is_torn`, and it was not a power cut: a cut tears at most the commit that was being written, which nobody
    /// was promised, and it tears whole sectors. SQLite would silently leave out all that comes after.
    pub is_log_damaged: bool,
    /// The length of the log; 0: there is none.
    pub log_bytes: u64,
    /// The first half of the salt in its head, which grows by one with each round; `None`: its head is damaged.
    pub log_salt: Option<u32>,
}

/// A frame of the log's current round.
#[derive(Debug, Clone, Copy)]
struct Frame {
    page: u32,
    place: u32,
    /// What its checksum goes on from; `None` where the frame before is lost.
    seed: Option<(u32, u32)>,
    is_right: bool,
}

impl Pages {
    /// Opens what there is of a store in `dir`, with its log or without.
    pub fn open(dir: &Path, with_log: bool) -> Pages {
        let file = |name: &str| {
            let path = dir.join(name);
            path.is_file().then(|| File::open(path).ok()).flatten()
        };
        let database = file(DATABASE);
        let log = with_log.then(|| file(LOG)).flatten();
        let pages = |file: &File| file.metadata().map_or(0, |metadata| metadata.len()).div_ceil(PAGE_BYTES);
        let database_pages = database.as_ref().map_or(0, pages);
        let mut found = Pages {
            database,
            log,
            database_pages: u32::try_from(database_pages).unwrap_or(u32::MAX / 2),
            frames: Vec::new(),
            newest: HashMap::new(),
            is_torn: false,
            is_log_damaged: false,
            log_bytes: 0,
            log_salt: None,
        };
        if found.read_log().is_err() {
            // What of it could be read counts; the rest is lost to a disk that cannot be read.
            found.is_torn = true;
        }
        found
    }

    /// How many units there are to carve.
    pub fn units(&self) -> u32 {
        self.database_pages.saturating_add(u32::try_from(self.frames.len()).unwrap_or(0))
    }

    /// Learns which frames count (4.1). One that is damaged, that is, whose own checksum is wrong although it goes on
    /// from its predecessor's, is carved and not walked.
    fn read_log(&mut self) -> io::Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        self.log_bytes = log.metadata()?.len();
        let mut reader = io::BufReader::with_capacity(256 * 1024, log);
        let mut header = [0; WAL_HEADER];
        if reader.read_exact(&mut header).is_err() {
            return Ok(());
        }
        let magic = big(&header, 0);
        let is_big = magic & 1 == 1;
        let head_sum = checksum(is_big, (0, 0), header.get(..24).unwrap_or_default());
        let is_good = magic | 1 == 0x377f_0683 && head_sum == (big(&header, 24), big(&header, 28));
        self.log_salt = is_good.then(|| big(&header, 16));
        let mut salt = is_good.then(|| (big(&header, 16), big(&header, 20)));
        let mut seed = is_good.then_some(head_sum);
        let mut current: Vec<Frame> = Vec::new();
        // The ends of the last two commits.
        let (mut committed, mut committed_before) = (0, 0);
        let mut frame = vec![0; FRAME_HEADER + PAGE];
        for place in 0..FRAMES_MAX {
            if reader.read_exact(&mut frame).is_err() {
                break;
            }
            if frame.iter().all(|byte| *byte == 0) {
                // Never written, or wiped: nothing goes on from it.
                seed = None;
                continue;
            }
            let place = u32::try_from(place).unwrap_or(u32::MAX);
            let its_salt = (big(&frame, 8), big(&frame, 12));
            let own_salt = *salt.get_or_insert(its_salt);
            let strange_bits = (own_salt.0 ^ its_salt.0).count_ones() + (own_salt.1 ^ its_salt.1).count_ones();
            // Rounds differ in a random number: one bit is a flipped one.
            if strange_bits > 1 {
                self.frames.push(place);
                seed = None;
                continue;
            }
            let stored = (big(&frame, 16), big(&frame, 20));
            let is_right = strange_bits == 0 && seed.is_some_and(|seed| frame_sum(is_big, seed, &frame) == stored);
            self.is_log_damaged |= strange_bits == 1;
            current.push(Frame { page: big(&frame, 0), place, seed, is_right });
            seed = Some(stored);
            if big(&frame, 4) != 0 {
                (committed_before, committed) = (committed, current.len());
            }
        }
        // A sector is written whole, and the head is synced before what follows it: a cut never tears it.
        self.is_log_damaged |= !is_good && committed > 0;
        let tail = current.get(committed_before..).unwrap_or_default().to_vec();
        current.truncate(committed);
        let wrong = current.iter().position(|frame| !frame.is_right);
        self.is_torn = wrong.is_some();
        self.is_log_damaged |= wrong.is_some_and(|first| first < committed_before);
        if !self.is_log_damaged {
            self.is_log_damaged = self.has_flip(is_big, &tail, committed - committed_before);
        }
        self.is_torn |= self.is_log_damaged;
        // Of a commit that the power tore nothing counts, as to SQLite; it is carved all the same.
        let counted = if self.is_log_damaged || wrong.is_none() { committed } else { committed_before };
        self.newest
            .extend(current.iter().take(counted).filter(|frame| frame.is_right).map(|frame| (frame.page, frame.place)));
        self.frames.extend(current.iter().map(|frame| frame.place));
        Ok(())
    }

    /// Whether a frame of the last commit is wrong in a single bit: the power tears sectors, not bits. What comes after
    /// the last commit's end counts only if the flip has hidden that it is an end.
    fn has_flip(&self, is_big: bool, tail: &[Frame], committed: usize) -> bool {
        let wrong = tail.iter().enumerate().filter(|(_, frame)| !frame.is_right).take(FLIPS_TRIED_MAX);
        wrong.filter_map(|(index, frame)| Some((index, frame.place, frame.seed?))).any(|(index, place, seed)| {
            let offset = WAL_HEADER as u64 + u64::from(place) * FRAME;
            let bytes = self.log.as_ref().and_then(|log| read_exactly(log, offset, FRAME_HEADER + PAGE));
            let flip = bytes.and_then(|bytes| flipped(is_big, seed, &bytes));
            flip.is_some_and(|at| index < committed || at == 4)
        })
    }

    /// The newest version of a page that is whole.
    fn page(&self, number: u32) -> Option<Vec<u8>> {
        match self.newest.get(&number) {
            Some(place) => self.frame(*place),
            None => self.database_page(number),
        }
    }

    fn frame(&self, place: u32) -> Option<Vec<u8>> {
        let offset = WAL_HEADER as u64 + u64::from(place) * FRAME + FRAME_HEADER as u64;
        read_at(self.log.as_ref()?, offset)
    }

    fn database_page(&self, number: u32) -> Option<Vec<u8>> {
        let offset = u64::from(number.checked_sub(1)?) * PAGE_BYTES;
        read_at(self.database.as_ref()?, offset)
    }

    fn unit(&self, unit: u32) -> Option<Vec<u8>> {
        match unit.checked_sub(self.database_pages) {
            None => self.database_page(unit + 1),
            Some(index) => self.frame(*self.frames.get(usize::try_from(index).ok()?)?),
        }
    }

    // Carving

    /// Everything in a unit that has the shape of a message's row: its number, and where it is.
    pub fn carve(&self, unit: u32) -> Vec<(u64, Spot)> {
        let Some(page) = self.unit(unit) else { return Vec::new() };
        let shapes = (0..page.len()).filter_map(|offset| {
            let cell = Shape::at(&page, offset)?;
            Some((cell.rowid, Spot { unit, offset: u16::try_from(offset).ok()? }))
        });
        shapes.collect()
    }

    /// What lies at a spot, if `is_proven` says so. Pages that a long row goes on to are tried in their newest version,
    /// then in the database's.
    pub fn row(&self, spot: Spot, is_proven: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let page = self.unit(spot.unit)?;
        let cell = Shape::at(&page, usize::from(spot.offset))?;
        [true, false].into_iter().find_map(|is_newest| {
            let record = self.payload(&page, cell.payload, cell.length, Kind::Table, is_newest)?;
            let body = record.get(cell.head..)?.to_vec();
            is_proven(&body).then_some(body)
        })
    }

    /// A payload with what of it went to pages of its own (1.6).
    fn payload(&self, page: &[u8], at: usize, length: usize, kind: Kind, is_newest: bool) -> Option<Vec<u8>> {
        let local = kind.local(length);
        let mut payload = page.get(at..at + local)?.to_vec();
        if local == length {
            return Some(payload);
        }
        let mut next = u32::from_be_bytes(*page.get(at + local..)?.first_chunk()?);
        while payload.len() < length {
            let page = if is_newest { self.page(next) } else { self.database_page(next) }?;
            next = u32::from_be_bytes(*page.first_chunk()?);
            let rest = length - payload.len();
            payload.extend_from_slice(page.get(4..)?.get(..rest.min(PAGE - 4))?);
        }
        Some(payload)
    }

    // Walking

    /// Shows every record of the tree at `root`, with its rowid where it has one. False: not all of it could be read.
    pub fn walk(&self, root: u32, mut see: impl FnMut(Option<u64>, &[Value])) -> bool {
        let mut walk = Walk::new(root);
        while self.step(&mut walk, &mut see) {}
        walk.is_whole
    }

    /// One page of a walk, or as much of it as one job takes; says whether there is more.
    pub fn step(&self, walk: &mut Walk, mut see: impl FnMut(Option<u64>, &[Value])) -> bool {
        let Some((number, from)) = walk.pending.pop() else { return false };
        let is_new = walk.seen.insert(number) || from > 0;
        if !is_new || walk.seen.len() > WALK_PAGES_MAX {
            walk.is_whole = false;
            return walk.seen.len() <= WALK_PAGES_MAX;
        }
        walk.is_whole &= self.walk_page(number, from, &mut walk.pending, &mut see).is_some();
        true
    }

    fn walk_page(
        &self,
        number: u32,
        from: usize,
        pending: &mut Vec<(u32, usize)>,
        see: &mut impl FnMut(Option<u64>, &[Value]),
    ) -> Option<()> {
        let page = self.page(number)?;
        let node = Node::at(&page, number)?;
        let mut children = Vec::new();
        let mut is_whole = true;
        let mut bytes_seen = 0;
        for (index, cell) in node.cells(&page).enumerate().skip(from) {
            if bytes_seen >= STEP_BYTES && node.is_leaf {
                // Long records lie in pages of their own: some leaves stand for megabytes.
                pending.push((number, index));
                return is_whole.then_some(());
            }
            let mut bytes = Bytes { page: &page, at: cell? };
            if !node.is_leaf {
                children.push(u32::from_be_bytes(*bytes.take(4)?.first_chunk()?));
            }
            if !node.is_leaf && node.kind == Kind::Table {
                continue;
            }
            let length = usize::try_from(bytes.varint()?).ok().filter(|length| *length <= ROW_BYTES_MAX)?;
            let rowid = if node.kind == Kind::Table { Some(bytes.varint()?) } else { None };
            bytes_seen += length;
            let payload = self.payload(&page, bytes.at, length, node.kind, true);
            match payload.and_then(|payload| record(&payload)) {
                Some(values) => see(rowid, &values),
                None => is_whole = false,
            }
        }
        if !node.is_leaf {
            children.push(node.last_child);
        }
        // The last one is taken first: the left child goes last.
        pending.extend(children.into_iter().rev().map(|child| (child, 0)));
        is_whole.then_some(())
    }

    /// The greatest rowid of a table. `None`: the way to it is damaged, or leads to a page that belongs elsewhere: SQLite
    /// would take that one's last row for the last of all. 0: there is none.
    pub fn last_rowid(&self, root: u32) -> Option<u64> {
        let mut number = root;
        // All that is left of the way is not greater.
        let mut last = 0;
        for _ in 0..20 {
            let page = self.page(number)?;
            let node = Node::at(&page, number).filter(|node| node.kind == Kind::Table)?;
            for cell in node.cells(&page) {
                let mut bytes = Bytes { page: &page, at: cell? };
                if node.is_leaf {
                    bytes.varint()?;
                } else {
                    bytes.take(4)?;
                }
                last = bytes.varint().filter(|rowid| *rowid > last)?;
            }
            if node.is_leaf {
                let is_right = node.count > 0 || number == root;
                return is_right.then_some(last);
            }
            number = node.last_child;
        }
        None
    }

    /// A row of a table by its number, as `row` gives it.
    pub fn find(&self, root: u32, rowid: u64) -> Option<Vec<Value>> {
        let mut number = root;
        for _ in 0..20 {
            let page = self.page(number)?;
            let node = Node::at(&page, number).filter(|node| node.kind == Kind::Table)?;
            let mut next = node.last_child;
            for cell in node.cells(&page) {
                let mut bytes = Bytes { page: &page, at: cell? };
                if node.is_leaf {
                    let length = usize::try_from(bytes.varint()?).ok().filter(|length| *length <= ROW_BYTES_MAX)?;
                    if bytes.varint()? == rowid {
                        return record(&self.payload(&page, bytes.at, length, Kind::Table, true)?);
                    }
                    continue;
                }
                let child = u32::from_be_bytes(*bytes.take(4)?.first_chunk()?);
                if rowid <= bytes.varint()? {
                    next = child;
                    break;
                }
            }
            if node.is_leaf {
                return None;
            }
            number = next;
        }
        None
    }

    /// Whether the log has anything that counts.
    pub fn has_commits(&self) -> bool {
        !self.newest.is_empty()
    }

    /// Whether the log has a version of this page that counts.
    pub fn is_in_log(&self, page: u32) -> bool {
        self.newest.contains_key(&page)
    }

    /// Whether the tree at `root` has a rowid for each row (1.6); `None`: that cannot be read.
    pub fn is_of_rows(&self, root: u32) -> Option<bool> {
        Node::at(&self.page(root)?, root).map(|node| node.kind == Kind::Table)
    }

    /// Whether its schema names anything, or cannot be read.
    pub fn has_tables(&self) -> bool {
        let Some(page) = self.page(1) else { return true };
        Node::at(&page, 1).is_none_or(|node| node.kind != Kind::Table || !node.is_leaf || node.count > 0)
    }

    /// Whether SQLite would write to it (1.3.3): one of an unknown version it takes for read-only, as if the disk were.
    pub fn is_writable(&self) -> bool {
        let is_known =
            |page: Option<Vec<u8>>| page.and_then(|page| page.get(18).copied()).is_none_or(|version| version <= 2);
        is_known(self.database_page(1)) && is_known(self.page(1))
    }

    /// The step of the schema, as the head of the database says (1.3).
    pub fn schema_step(&self) -> Option<u32> {
        self.page(1).map(|page| big(&page, 60))
    }

    /// The pages that are free (1.5); `None` when the list of them cannot be read.
    pub fn free(&self) -> Option<HashSet<u32>> {
        let first = self.page(1)?;
        let mut free = HashSet::new();
        let mut trunk = big(&first, 32);
        while trunk != 0 {
            if !free.insert(trunk) {
                return None;
            }
            let page = self.page(trunk)?;
            let count = usize::try_from(big(&page, 4)).ok().filter(|count| *count <= PAGE / 4 - 2)?;
            free.extend((0..count).map(|index| big(&page, 8 + 4 * index)));
            trunk = big(&page, 0);
        }
        Some(free)
    }

    /// The number of the database's page that a unit is the content of, if it is its newest.
    pub fn is_newest(&self, unit: u32) -> Option<u32> {
        (unit < self.database_pages).then_some(unit + 1).filter(|page| !self.newest.contains_key(page))
    }
}

fn read_at(file: &File, offset: u64) -> Option<Vec<u8>> {
    let mut page = vec![0; PAGE];
    let mut filled = 0;
    // A file that was cut within a page, and a page of which a sector cannot be read: what is there counts.
    while let Some(rest) = page.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    (filled > 0).then_some(page)
}

fn read_exactly(file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset).ok().map(|()| bytes)
}

/// The checksum of a frame: of its page number and size, and of its page.
fn frame_sum(is_big: bool, seed: (u32, u32), frame: &[u8]) -> (u32, u32) {
    let sum = checksum(is_big, seed, frame.get(..8).unwrap_or_default());
    checksum(is_big, sum, frame.get(FRAME_HEADER..).unwrap_or_default())
}

/// Where a single flipped bit explains that a frame's checksum is wrong: the byte of the frame. A torn frame matches by
/// chance in one of some 10^15 cases.
///
/// The sum is linear: what a bit adds to it depends only on how many words come after. So the difference is followed
/// back, word by word, until it is that of one bit.
fn flipped(is_big: bool, seed: (u32, u32), frame: &[u8]) -> Option<usize> {
    let (stored, sum) = ((big(frame, 16), big(frame, 20)), frame_sum(is_big, seed, frame));
    if (sum.0 ^ stored.0).count_ones() + (sum.1 ^ stored.1).count_ones() == 1 {
        return Some(16);
    }
    let (mut first, mut second) = (stored.0.wrapping_sub(sum.0), stored.1.wrapping_sub(sum.1));
    for at in [0].into_iter().chain((FRAME_HEADER..frame.len()).step_by(8)).rev() {
        let found = match (first, second) {
            (both, other) if both == other => Some((at, both)),
            (0, one) => Some((at + 4, one)),
            _ => None,
        };
        if let Some((word_at, difference)) = found
            && let Some(bytes) = frame.get(word_at..).and_then(|rest| rest.first_chunk())
        {
            let word = if is_big { u32::from_be_bytes(*bytes) } else { u32::from_le_bytes(*bytes) };
            if (word.wrapping_add(difference) ^ word).count_ones() == 1 {
                return Some(word_at);
            }
        }
        second = second.wrapping_sub(first);
        first = first.wrapping_sub(second);
    }
    None
}

fn big(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u32::from_be_bytes(*chunk))
}

/// The checksum of the log (4.2), which goes on from the one before.
fn checksum(is_big: bool, seed: (u32, u32), bytes: &[u8]) -> (u32, u32) {
    let (mut first, mut second) = seed;
    for pair in bytes.chunks_exact(8) {
        let word = |at: usize| {
            let bytes: [u8; 4] = pair.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
            if is_big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
        };
        first = first.wrapping_add(word(0)).wrapping_add(second);
        second = second.wrapping_add(word(4)).wrapping_add(first);
    }
    (first, second)
}

/// The checksum that the head of a log should have.
#[cfg(test)]
pub(super) fn head_sum(head: &[u8]) -> (u32, u32) {
    checksum(big(head, 0) & 1 == 1, (0, 0), head)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Table,
    Index,
}

impl Kind {
    /// How much of a payload lies in the page itself (1.6).
    fn local(self, length: usize) -> usize {
        let most = match self {
            Kind::Table => PAGE - 35,
            Kind::Index => (PAGE - 12) * 64 / 255 - 23,
        };
        if length <= most {
            return length;
        }
        let least = (PAGE - 12) * 32 / 255 - 23;
        let local = least + (length - least) % (PAGE - 4);
        if local <= most { local } else { least }
    }
}

/// The head of a page of a tree (1.6).
#[derive(Debug)]
struct Node {
    kind: Kind,
    is_leaf: bool,
    count: usize,
    pointers: usize,
    last_child: u32,
}

impl Node {
    fn at(page: &[u8], number: u32) -> Option<Node> {
        let head = if number == 1 { 100 } else { 0 };
        let (kind, is_leaf) = match page.get(head)? {
            0x0d => (Kind::Table, true),
            0x05 => (Kind::Table, false),
            0x0a => (Kind::Index, true),
            0x02 => (Kind::Index, false),
            _ => return None,
        };
        let count = usize::from(u16::from_be_bytes(*page.get(head + 3..)?.first_chunk()?));
        let pointers = head + if is_leaf { 8 } else { 12 };
        (pointers + 2 * count <= PAGE).then_some(Node {
            kind,
            is_leaf,
            count,
            pointers,
            last_child: if is_leaf { 0 } else { big(page, head + 8) },
        })
    }

    /// Where its cells begin; `None` where a pointer leads out of the page.
    fn cells<'a>(&'a self, page: &'a [u8]) -> impl Iterator<Item = Option<usize>> + 'a {
        (0..self.count).map(move |index| {
            let pointer = page.get(self.pointers + 2 * index..)?.first_chunk()?;
            Some(usize::from(u16::from_be_bytes(*pointer))).filter(|at| *at < PAGE)
        })
    }
}

/// What looks like a row of messages: a payload that is a record of NULL (the rowid's column) and one blob, whose
/// lengths agree.
#[derive(Debug)]
struct Shape {
    rowid: u64,
    /// Where the payload begins, and its length.
    payload: usize,
    length: usize,
    /// The length of the record's header.
    head: usize,
}

impl Shape {
    fn at(page: &[u8], offset: usize) -> Option<Shape> {
        let mut bytes = Bytes { page, at: offset };
        let length = usize::try_from(bytes.varint()?).ok()?;
        if !(8..=ROW_BYTES_MAX).contains(&length) {
            return None;
        }
        let rowid = bytes.varint().filter(|rowid| (1..super::spans::OPEN).contains(rowid))?;
        let payload = bytes.at;
        let head = usize::from(*bytes.take(1)?.first()?);
        if !(3..=8).contains(&head) || *bytes.take(1)?.first()? != 0 {
            return None;
        }
        let code = usize::try_from(bytes.varint()?).ok().filter(|code| *code >= 12 && code.is_multiple_of(2))?;
        let is_record = bytes.at == payload + head && head + (code - 12) / 2 == length;
        let local = Kind::Table.local(length);
        let end = payload + local + if local < length { 4 } else { 0 };
        (is_record && end <= page.len()).then_some(Shape { rowid, payload, length, head })
    }
}

/// A record's values (2.1).
fn record(payload: &[u8]) -> Option<Vec<Value>> {
    let mut header = Bytes { page: payload, at: 0 };
    let length = usize::try_from(header.varint()?).ok().filter(|length| *length <= payload.len())?;
    let mut body = Bytes { page: payload, at: length };
    let mut values = Vec::new();
    while header.at < length {
        let code = header.varint()?;
        let value = match code {
            0 => Value::Null,
            1..=6 => {
                let bytes = body.take([1, 2, 3, 4, 6, 8].get(usize::try_from(code).ok()? - 1).copied()?)?;
                let negative = bytes.first()? & 0x80 != 0;
                let start = if negative { -1_i64 } else { 0 };
                Value::Int(bytes.iter().fold(start, |value, byte| value << 8 | i64::from(*byte)))
            }
            8 => Value::Int(0),
            9 => Value::Int(1),
            12.. => {
                let bytes = body.take(usize::try_from((code - 12) / 2).ok()?)?;
                match code.is_multiple_of(2) {
                    true => Value::Blob(bytes.to_vec()),
                    false => Value::Text(std::str::from_utf8(bytes).ok()?.to_owned()),
                }
            }
            // A floating-point number, or what is reserved: none of our tables has it.
            _ => return None,
        };
        values.push(value);
    }
    Some(values)
}

/// Takes bytes from a page; `None` beyond its end.
struct Bytes<'a> {
    page: &'a [u8],
    at: usize,
}

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.page.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    /// Big-endian, seven bits a byte, eight in the ninth.
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for place in 0..9 {
            let byte = *self.take(1)?.first()?;
            if place == 8 {
                return Some(value << 8 | u64::from(byte));
            }
            value = value << 7 | u64::from(byte & 0x7f);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}
