//! `tidegate backup` and `tidegate restore`: configuration, queue and identity in one file, and back.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use super::Exit;
use super::progress::Progress;
use super::queue::source::{Place, Source};
use super::status::size;
use crate::clock::{Clock, ClockSource, rfc3339};
use crate::config::Loaded;
use crate::queue::copying::{CopyAsk, CopyPages};
use crate::queue::inspect::{Answer, Question, quarantines};

use archive::{Archive, Manifest};

mod archive;

pub(super) mod restore;

/// What stands under `tidegate backup --help`.
pub(super) const EXAMPLES: &str = "\
Example: tidegate backup /media/stick/press-hall-3.tar

The file has the configuration with the files that it names beside it (keys among them), all that waits in the queue
as it was at one moment, and who this gateway is, also to clouds that have registered it. Only its owner can read it. The gateway goes on meanwhile. It is a
tar archive: tar tvf FILE lists it.

Exit status: 0 done, 64 wrong usage, 70 the store is damaged or the file cannot be written, 75 the gateway does not
answer now, 78 wrong configuration.";

/// Bytes of a page of the database.
const PAGE: u64 = 1024;
/// A file of the configuration that is larger is none.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Where the state directory keeps what clouds have given it; of an uplink each.
const PROVISIONED: &str = "provisioned";
/// So often the last pages are tried: each time fewer have changed.
const ROUNDS_MAX: usize = 64;

/// `tidegate backup`
#[derive(Debug, clap::Args)]
pub(super) struct BackupArguments {
    /// The new file; one that is there is not written over
    file: PathBuf,
    #[command(flatten)]
    place: Place,
    /// Leave out private keys, passwords and tokens in files of their own
    #[arg(long)]
    without_secrets: bool,
}

/// Keys of the configuration whose files are secrets.
const SECRETS: &[&str] = &["key", "password_file", "token_file", "signature_file", "password_hash_file"];

pub(super) fn main(arguments: &BackupArguments) -> Exit {
    let path = &arguments.file;
    let file = match File::options().read(true).write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file,
        Err(error) => {
            eprintln!("tidegate: cannot make {}: {error}", path.display());
            return Exit::Usage;
        }
    };
    let done = back_up(arguments, file);
    if done.is_err() {
        // Half a backup would be taken for one.
        let _left = fs::remove_file(path);
    }
    done.unwrap_or_else(|exit| exit)
}

fn back_up(arguments: &BackupArguments, file: File) -> Result<Exit, Exit> {
    let Some(loaded) = arguments.place.loaded() else {
        eprintln!("tidegate: the configuration cannot be read, or is of another state directory: tidegate check");
        return Err(Exit::Config);
    };
    let state_dir = loaded.config.gateway.state_dir.clone();
    let state_dir = std::path::absolute(&state_dir).unwrap_or(state_dir);
    let source = Source::open(&arguments.place)?;
    let failed = |error: io::Error| {
        eprintln!("tidegate: the backup failed: {error}");
        Exit::Failed
    };
    let config_dir = config_dir(arguments.place.config.as_deref());
    let mut archive = Archive::new(file).map_err(failed)?;
    let mut left_out = Vec::new();
    for path in config_files(&loaded, &config_dir, arguments.without_secrets, &mut left_out) {
        match (path.strip_prefix(&config_dir), path.strip_prefix(&state_dir)) {
            (_, Ok(rest)) => archive.add_file(&Path::new("state").join(rest), &path).map_err(failed)?,
            (Ok(rest), _) => archive.add_file(&Path::new("config").join(rest), &path).map_err(failed)?,
            // The vendor's: they come with the image.
            _ => {}
        }
    }
    // Before the store: what of them it has taken over meanwhile, it says.
    let mut of_state = state_files(&state_dir);
    let keys = provisioned_files(&state_dir);
    if arguments.without_secrets { &mut left_out } else { &mut of_state }.extend(keys);
    for path in of_state {
        let Ok(rest) = path.strip_prefix(&state_dir) else { continue };
        archive.add_file(&Path::new("state").join(rest), &path).map_err(failed)?;
    }
    let bytes = match &source {
        Source::Live { .. } => copy_live(&source, &mut archive, &state_dir)?,
        Source::Stopped(_) => copy_files(&mut archive, &state_dir).map_err(failed)?,
    };
    let clock = Clock::new(ClockSource::Trusted);
    let manifest = Manifest {
        gateway: loaded.config.gateway.id.to_string(),
        time: rfc3339(clock.now().wall_ms),
        config_dir: config_dir.clone(),
        state_dir,
        ..Manifest::default()
    };
    archive.end(manifest).map_err(failed)?;
    for path in left_out {
        eprintln!("not in the backup: {}", path.display());
    }
    let how = if source.is_live() { "as it was at one moment; the gateway went on" } else { "of a stopped gateway" };
    eprintln!("{} of the queue are in {}, {how}", size(bytes), arguments.file.display());
    Ok(Exit::Done)
}

/// Where the owner's configuration is.
fn config_dir(config: Option<&Path>) -> PathBuf {
    let dir = config.map(|file| file.parent().unwrap_or(Path::new("")).to_owned());
    let dir = dir.unwrap_or_else(|| PathBuf::from("/etc/tidegate"));
    std::path::absolute(if dir.as_os_str().is_empty() { Path::new(".") } else { &dir }).unwrap_or(dir)
}

/// The files that were read, and those beside them that they name.
fn config_files(
    loaded: &Loaded,
    config_dir: &Path,
    without_secrets: bool,
    left_out: &mut Vec<PathBuf>,
) -> Vec<PathBuf> {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut files: Vec<PathBuf> = loaded.files.iter().map(|path| absolute(path)).collect();
    let effective: toml::Table = loaded.effective.parse().unwrap_or_default();
    let mut named = Vec::new();
    texts("", &toml::Value::Table(effective), &mut named);
    for (key, text) in named {
        let path = if text.starts_with('/') { PathBuf::from(&text) } else { config_dir.join(&text) };
        let is_file = fs::metadata(&path).is_ok_and(|found| found.is_file() && found.len() <= FILE_BYTES_MAX);
        let is_elsewhere = text.starts_with("${CREDENTIALS_DIRECTORY}") || (is_file && !path.starts_with(config_dir));
        if is_elsewhere || (is_file && without_secrets && SECRETS.contains(&key.as_str())) {
            left_out.push(if is_file { path } else { PathBuf::from(text) });
        } else if is_file {
            files.push(path);
        }
    }
    for all in [&mut files, &mut *left_out] {
        all.sort();
        all.dedup();
    }
    files.retain(|path| !path.components().any(|part| part == Component::ParentDir));
    files
}

/// Every text with the key under which it stands.
fn texts(key: &str, value: &toml::Value, found: &mut Vec<(String, String)>) {
    match value {
        toml::Value::String(text) => found.push((key.to_owned(), text.clone())),
        toml::Value::Array(all) => all.iter().for_each(|value| texts(key, value, found)),
        toml::Value::Table(table) => table.iter().for_each(|(key, value)| texts(key, value, found)),
        _ => {}
    }
}

/// What clouds have given this gateway when it registered: its keys and certificates, and where it belongs.
fn provisioned_files(state_dir: &Path) -> Vec<PathBuf> {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries(&state_dir.join(PROVISIONED))
        .flat_map(|uplink| entries(&uplink))
        .filter(|path| fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() <= FILE_BYTES_MAX))
        .collect();
    files.sort();
    files
}

/// What the state directory has beside the store: numbers, name, and stores that wait to be taken over.
fn state_files(state_dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        ["start", super::ID_FILE].map(|name| state_dir.join(name)).into_iter().filter(|path| path.is_file()).collect();
    let wanting = quarantines(state_dir).into_iter().filter(|(_, is_wanting)| *is_wanting);
    let aside = fs::read_dir(state_dir.join("newer")).into_iter().flatten().flatten().map(|entry| entry.path());
    for place in wanting.map(|(place, _)| PathBuf::from(place)).chain(aside) {
        let inside = fs::read_dir(&place).into_iter().flatten().flatten().map(|entry| entry.path());
        files.extend(inside.filter(|path| path.is_file()));
    }
    files.sort();
    files
}

/// The files of a store that nobody has open but us.
fn copy_files(archive: &mut Archive, state_dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for name in ["queue.db", "queue.db-wal"] {
        let path = state_dir.join(name);
        if path.exists() {
            bytes += fs::metadata(&path)?.len();
            archive.add_file(&Path::new("state").join(name), &path)?;
        }
    }
    Ok(bytes)
}

/// The pages of a store that is in use, as they were at one moment (queue/copying.rs).
fn copy_live(source: &Source, archive: &mut Archive, state_dir: &Path) -> Result<u64, Exit> {
    let failed = |error: io::Error| {
        eprintln!("tidegate: the store cannot be copied: {error}");
        Exit::Failed
    };
    let ask = |ask: CopyAsk| match source.ask(Question::Copy(ask))? {
        Answer::Copy(pages) => Ok(pages),
        _ => Err(super::queue::strange()),
    };
    let database = File::open(state_dir.join("queue.db")).map_err(failed)?;
    let CopyPages { copy, pages, .. } = ask(CopyAsk::Begin)?;
    let (mut progress, mut done) = (Progress::new("backup"), 0);
    let begin = archive.begin_large().map_err(failed)?;
    let mut put = |archive: &Archive, told: &CopyPages| -> io::Result<()> {
        for (first, last) in told.spans.iter().copied() {
            copy_pages(&database, archive, begin, first, last)?;
            done += last.saturating_sub(first) + 1;
            progress.show(done, done + told.left, "pages");
        }
        Ok(())
    };
    for _ in 0..ROUNDS_MAX {
        loop {
            let told = ask(CopyAsk::Take { copy })?;
            put(archive, &told).map_err(failed)?;
            if told.left == 0 || told.spans.is_empty() {
                break;
            }
        }
        let last = ask(CopyAsk::Last { copy })?;
        if !last.is_still {
            continue;
        }
        put(archive, &last).map_err(failed)?;
        let end = ask(CopyAsk::End { copy })?;
        if end.is_still {
            archive.end_large(Path::new("state/queue.db"), begin, last.pages * PAGE).map_err(failed)?;
            return Ok(last.pages * PAGE);
        }
    }
    eprintln!("tidegate: the store of {} changes faster than it can be copied to this place", size(pages * PAGE));
    eprintln!("help: try a faster disk, or stop the gateway: its files are copied as they are then");
    Err(Exit::TryAgain)
}

fn copy_pages(database: &File, archive: &Archive, begin: u64, first: u64, last: u64) -> io::Result<()> {
    let mut buffer = vec![0; 64 * PAGE as usize];
    let mut place = first.saturating_sub(1) * PAGE;
    let end = last * PAGE;
    while place < end {
        let want = usize::try_from((end - place).min(buffer.len() as u64)).unwrap_or(buffer.len());
        let Some(part) = buffer.get_mut(..want) else { return Ok(()) };
        let read = database.read_at(part, place)?;
        if read == 0 {
            // So far the page is in the log only: it comes again.
            part.fill(0);
        }
        let read = if read == 0 { want } else { read };
        archive.put(begin + place, part.get(..read).unwrap_or_default())?;
        place += read as u64;
    }
    Ok(())
}
