//! The file of a backup: a tar archive in which `manifest.json` has the sum of every member before it, and the last one,
//! `manifest.sha256`, that of the manifest.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

/// The member that tells of all others.
const MANIFEST: &str = "manifest.json";
/// The member with its sum, as `sha256sum` writes it.
const MANIFEST_SUM: &str = "manifest.sha256";
const MANIFEST_BYTES_MAX: u64 = 4 << 20;
const BLOCK: u64 = 512;
/// What this program writes; it reads no newer one.
const FORMAT: u32 = 1;

/// What a backup is of.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub format: u32,
    pub version: String,
    pub gateway: String,
    pub time: String,
    /// Where `config/…` was.
    pub config_dir: PathBuf,
    /// Where `state/…` was.
    pub state_dir: PathBuf,
    pub members: Vec<Member>,
}

/// A file in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    pub name: PathBuf,
    pub mode: u32,
    pub bytes: u64,
    pub sha256: String,
}

/// A backup that is being written.
pub(super) struct Archive {
    file: File,
    members: Vec<Member>,
}

impl Archive {
    pub(super) fn new(file: File) -> io::Result<Archive> {
        Ok(Archive { file, members: Vec::new() })
    }

    /// Adds a file that nobody changes meanwhile.
    pub(super) fn add_file(&mut self, name: &Path, path: &Path) -> io::Result<()> {
        if self.members.iter().any(|member| member.name == name) {
            return Ok(());
        }
        let mut file = File::open(path)?;
        let found = file.metadata()?;
        let mut header = header(found.permissions().mode(), found.len());
        let mut summed = Summed { from: &mut file, sum: Context::new(&SHA256), bytes: 0 };
        tar::Builder::new(&mut self.file).append_data(&mut header, name, &mut summed)?;
        let (bytes, sha256) = (summed.bytes, hex(summed.sum));
        if bytes != found.len() {
            return Err(io::Error::other(format!("{} changed while it was read", path.display())));
        }
        // The builder ends an archive when it goes: the next member takes the place of that end.
        self.back_before_end()?;
        self.members.push(Member { name: name.to_owned(), mode: found.permissions().mode() & 0o777, bytes, sha256 });
        Ok(())
    }

    fn back_before_end(&mut self) -> io::Result<()> {
        let end = self.file.stream_position()?;
        self.file.seek(SeekFrom::Start(end.saturating_sub(2 * BLOCK))).map(drop)
    }

    /// Begins a member whose pages come in any order; gives back where it begins.
    pub(super) fn begin_large(&mut self) -> io::Result<u64> {
        Ok(self.file.stream_position()? + BLOCK)
    }

    /// Puts some of it.
    pub(super) fn put(&self, place: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, place)
    }

    /// Gives it its name and its length.
    pub(super) fn end_large(&mut self, name: &Path, begin: u64, bytes: u64) -> io::Result<()> {
        let padded = bytes.div_ceil(BLOCK) * BLOCK;
        self.file.set_len(begin + padded)?;
        let mut header = header(0o600, bytes);
        header.set_path(name)?;
        header.set_cksum();
        self.file.write_all_at(header.as_bytes(), begin - BLOCK)?;
        let mut sum = Context::new(&SHA256);
        let mut buffer = vec![0; 256 * 1024];
        let mut place = 0;
        while place < bytes {
            let want = usize::try_from((bytes - place).min(buffer.len() as u64)).unwrap_or(buffer.len());
            let Some(part) = buffer.get_mut(..want) else { break };
            self.file.read_exact_at(part, begin + place)?;
            sum.update(part);
            place += want as u64;
        }
        self.file.seek(SeekFrom::Start(begin + padded))?;
        self.members.push(Member { name: name.to_owned(), mode: 0o600, bytes, sha256: hex(sum) });
        Ok(())
    }

    /// Adds what tells of all, and makes it durable.
    pub(super) fn end(mut self, manifest: Manifest) -> io::Result<()> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let manifest = Manifest { format: FORMAT, version, members: self.members, ..manifest };
        let text = serde_json::to_vec_pretty(&manifest)?;
        let mut header = header(0o600, text.len() as u64);
        let mut builder = tar::Builder::new(&mut self.file);
        builder.append_data(&mut header, MANIFEST, text.as_slice())?;
        let sum = manifest_sum(&text);
        let mut header = self::header(0o600, sum.len() as u64);
        builder.append_data(&mut header, MANIFEST_SUM, sum.as_bytes())?;
        builder.finish()?;
        drop(builder);
        self.file.flush()?;
        self.file.sync_all()
    }
}

fn header(mode: u32, bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode & 0o777);
    header.set_size(bytes);
    header.set_entry_type(tar::EntryType::Regular);
    header
}

/// Reads a whole backup and compares it with what it says of itself.
pub(super) fn verify(file: &mut File, mut show: impl FnMut(u64)) -> io::Result<Manifest> {
    let broken = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    file.seek(SeekFrom::Start(0))?;
    let mut found: Vec<(PathBuf, u64, String)> = Vec::new();
    let (mut manifest, mut told_sum) = (None, String::new());
    let mut done = 0;
    for entry in tar::Archive::new(&mut *file).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        if name == Path::new(MANIFEST) {
            let mut text = Vec::new();
            entry.take(MANIFEST_BYTES_MAX).read_to_end(&mut text)?;
            manifest = Some(text);
            continue;
        }
        if name == Path::new(MANIFEST_SUM) {
            entry.take(MANIFEST_BYTES_MAX).read_to_string(&mut told_sum)?;
            continue;
        }
        if !entry.header().entry_type().is_file() {
            return Err(broken(format!("{} is no file", name.display())));
        }
        let mut summed = Summed { from: &mut entry, sum: Context::new(&SHA256), bytes: 0 };
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let read = summed.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            done += read as u64;
            show(done);
        }
        found.push((name, summed.bytes, hex(summed.sum)));
    }
    let Some(text) = manifest else { return Err(broken("its end is missing".to_owned())) };
    if manifest_sum(&text) != told_sum {
        return Err(broken("it is damaged, or its end is missing".to_owned()));
    }
    let manifest: Manifest = serde_json::from_slice(&text)?;
    if manifest.format > FORMAT {
        return Err(broken(format!("tidegate {} made it, which is newer than this one", manifest.version)));
    }
    let told = manifest.members.iter().map(|member| (member.name.clone(), member.bytes, member.sha256.clone()));
    if !told.eq(found) {
        return Err(broken("it is damaged: its sums are not right".to_owned()));
    }
    Ok(manifest)
}

/// Hands each member over, in order.
pub(super) fn each(file: &mut File, mut take: impl FnMut(&Path, &mut dyn Read) -> io::Result<()>) -> io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    for entry in tar::Archive::new(&mut *file).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        take(&name, &mut entry)?;
    }
    Ok(())
}

/// Reads and sums.
struct Summed<'a, R> {
    from: &'a mut R,
    sum: Context,
    bytes: u64,
}

impl<R: Read> Read for Summed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.sum.update(buffer.get(..read).unwrap_or_default());
        self.bytes += read as u64;
        Ok(read)
    }
}

fn manifest_sum(text: &[u8]) -> String {
    let mut sum = Context::new(&SHA256);
    sum.update(text);
    format!("{}  {MANIFEST}\n", hex(sum))
}

fn hex(sum: Context) -> String {
    sum.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
