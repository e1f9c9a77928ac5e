//! `tidegate restore`: a backup becomes a gateway again. Everything is proven and laid beside its place first; what is in
//! its place is moved aside and never written over.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, lchown};
use std::path::{Component, Path, PathBuf};

use rustix::fs::FlockOperation;

use super::PROVISIONED;
use super::archive::{Manifest, Member, each, verify};
use crate::cli::Exit;
use crate::cli::progress::Progress;
use crate::cli::queue::orders::give_to_owner;
use crate::cli::queue::{confirm, printable};
use crate::cli::status::size;
use crate::clock::{Clock, ClockSource};
use crate::health::chain;
use crate::queue::restored;

/// What stands under `tidegate restore --help`.
pub(in crate::cli) const EXAMPLES: &str = "\
Examples:
  tidegate restore press-hall-3.tar
  tidegate restore press-hall-3.tar --overwrite --yes
  tidegate restore press-hall-3.tar --no-config --state-dir /tmp/look

All that waited when the backup was made waits again, under the same message ids: what the cloud has got since, it
gets again and can tell. What the gateway had in flight begins anew, since the clouds and the clients have gone on. No
message id is ever given twice. What is in the way is moved aside: files of the configuration get the end .replaced,
the store goes to a directory replaced-TIME in the state directory.

Exit status: 0 done, 64 wrong usage or something is in the way, 70 the backup is damaged or cannot be written out,
75 a gateway runs there.";

/// Where the store is laid out before it goes to its place.
const STAGING: &str = "restore.new";

/// `tidegate restore`
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct RestoreArguments {
    /// The backup
    file: PathBuf,
    /// State directory, instead of the one that it was made of
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
    /// Directory of the configuration, instead of the one that it was made of
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "no_config")]
    config_dir: Option<PathBuf>,
    /// Leave the configuration as it is
    #[arg(long)]
    no_config: bool,
    /// Take the place of what is there, which is moved aside
    #[arg(long)]
    overwrite: bool,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
}

/// Where a member goes.
struct Target {
    member: Member,
    path: PathBuf,
    is_state: bool,
}

pub(in crate::cli) fn main(arguments: &RestoreArguments) -> Exit {
    restore(arguments).unwrap_or_else(|exit| exit)
}

fn restore(arguments: &RestoreArguments) -> Result<Exit, Exit> {
    let shown = arguments.file.display();
    let bad = |error: &io::Error| {
        eprintln!("tidegate: {shown} cannot be restored: {error}");
        if error.kind() == io::ErrorKind::NotFound { Exit::Usage } else { Exit::Failed }
    };
    let mut file = File::open(&arguments.file).map_err(|error| bad(&error))?;
    let total = file.metadata().map_or(0, |found| found.len());
    let mut progress = Progress::new("verify");
    let manifest = verify(&mut file, |done| progress.show(done, total, "bytes")).map_err(|error| bad(&error))?;
    progress.end();
    let state_dir = arguments.state_dir.clone().unwrap_or_else(|| manifest.state_dir.clone());
    let config_dir = arguments.config_dir.clone().unwrap_or_else(|| manifest.config_dir.clone());
    let targets = targets(&manifest, &state_dir, (!arguments.no_config).then_some(&*config_dir)).ok_or_else(|| {
        eprintln!("tidegate: {shown} has members that belong nowhere");
        Exit::Failed
    })?;
    let _lock = lock(&state_dir)?;
    let in_the_way: Vec<&Path> =
        targets.iter().map(|target| &*target.path).filter(|path| path.symlink_metadata().is_ok()).collect();
    if !in_the_way.is_empty() && !arguments.overwrite {
        eprintln!("tidegate: nothing was changed: these are in the way, and --overwrite moves them aside:");
        in_the_way.iter().for_each(|path| eprintln!("  {}", path.display()));
        return Err(Exit::Usage);
    }
    confirm(&words(&manifest, &state_dir, &config_dir, arguments, in_the_way.len()), arguments.yes)?;
    lay_out(&mut file, &targets, &state_dir, &manifest)?;
    put_in_place(&targets, &state_dir).map_err(|error| {
        eprintln!("tidegate: not all of it is in its place: {error}");
        eprintln!("help: mend that and restore again with --overwrite; nothing that was there is lost");
        Exit::Failed
    })?;
    give_to_owner(&state_dir);
    eprintln!("{} is restored as it was at {}", printable(&manifest.gateway), printable(&manifest.time));
    if !arguments.no_config {
        eprintln!("help: tidegate check, then start the gateway");
    }
    Ok(Exit::Done)
}

fn words(
    manifest: &Manifest,
    state_dir: &Path,
    config_dir: &Path,
    arguments: &RestoreArguments,
    in_the_way: usize,
) -> String {
    let bytes: u64 = manifest.members.iter().map(|member| member.bytes).sum();
    let config =
        if arguments.no_config { String::new() } else { format!(", its configuration to {}", config_dir.display()) };
    let aside =
        if in_the_way > 0 { format!(" {in_the_way} files that are there are moved aside.") } else { String::new() };
    format!(
        "This restores {} as it was at {} ({}): its queue to {}{config}.{aside}",
        printable(&manifest.gateway),
        printable(&manifest.time),
        size(bytes),
        state_dir.display()
    )
}

/// Where each member goes; `None`: one of them would go where nothing of ours is.
fn targets(manifest: &Manifest, state_dir: &Path, config_dir: Option<&Path>) -> Option<Vec<Target>> {
    let mut targets = Vec::new();
    for member in &manifest.members {
        let mut parts = member.name.components();
        let Some(Component::Normal(kind)) = parts.next() else { return None };
        let rest = parts.as_path();
        let is_plain = rest.components().all(|part| matches!(part, Component::Normal(_)));
        if !is_plain || rest.as_os_str().is_empty() {
            return None;
        }
        let is_state = kind == "state";
        let dir = match kind.to_str()? {
            "state" => Some(state_dir),
            "config" => config_dir,
            _ => return None,
        };
        let Some(dir) = dir else { continue };
        targets.push(Target { member: member.clone(), path: dir.join(rest), is_state });
    }
    Some(targets)
}

/// Takes the state directory, so that no gateway starts meanwhile.
fn lock(state_dir: &Path) -> Result<File, Exit> {
    let failed = |error: &io::Error| {
        eprintln!("tidegate: cannot use {}: {error}", state_dir.display());
        Exit::Failed
    };
    DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(|error| failed(&error))?;
    let path = state_dir.join("lock");
    let lock = File::options().create(true).truncate(false).write(true).open(path).map_err(|error| failed(&error))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            eprintln!("tidegate: a gateway runs in {}: stop it first", state_dir.display());
            Err(Exit::TryAgain)
        }
        Err(errno) => Err(failed(&errno.into())),
    }
}

/// Lays everything beside its place, durably, and makes the store ready for another day.
fn lay_out(file: &mut File, targets: &[Target], state_dir: &Path, manifest: &Manifest) -> Result<(), Exit> {
    let staging = state_dir.join(STAGING);
    let failed = |error: &io::Error| {
        eprintln!("tidegate: the backup cannot be written out: {error}");
        Exit::Failed
    };
    let mut laid = || -> io::Result<()> {
        if staging.exists() {
            fs::remove_dir_all(&staging)?;
        }
        DirBuilder::new().mode(0o700).create(&staging)?;
        each(file, |name, from| {
            let Some(target) = targets.iter().find(|target| target.member.name == name) else { return Ok(()) };
            let path = staged(target, &staging, state_dir);
            if let Some(parent) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
            }
            let mode = target.member.mode & 0o777;
            let mut to = File::options().write(true).create(true).truncate(true).mode(mode).open(&path)?;
            io::copy(from, &mut to)?;
            to.sync_all()
        })
    };
    laid().map_err(|error| failed(&error))?;
    restored::prepare(&staging, state_dir, &manifest.time).map_err(|error| {
        eprintln!("tidegate: {}", chain(&error));
        Exit::Failed
    })
}

/// Where a member lies until all are proven: beside its place, on the same file system.
fn staged(target: &Target, staging: &Path, state_dir: &Path) -> PathBuf {
    match target.path.strip_prefix(state_dir) {
        Ok(rest) if target.is_state => staging.join(rest),
        _ => beside(&target.path, "restore"),
    }
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{end}"));
    path.with_file_name(name)
}

fn put_in_place(targets: &[Target], state_dir: &Path) -> io::Result<()> {
    let staging = state_dir.join(STAGING);
    let seconds = Clock::new(ClockSource::Trusted).now().wall_ms / 1000;
    let replaced = state_dir.join(format!("replaced-{seconds}"));
    // The store with all that belongs to it, also what the backup has not. But a key that a cloud has given stays where
    // the backup has none: it may be the only one.
    let keys = staging.join(PROVISIONED).exists().then_some(PROVISIONED);
    let old: Vec<PathBuf> =
        ["queue.db", "queue.db-wal", "queue.db-shm", "start", "quarantine", "newer", "conf.d", crate::cli::ID_FILE]
            .into_iter()
            .chain(keys)
            .map(|name| state_dir.join(name))
            .filter(|path| path.symlink_metadata().is_ok())
            .collect();
    if !old.is_empty() {
        DirBuilder::new().mode(0o700).create(&replaced)?;
    }
    for path in old {
        fs::rename(&path, replaced.join(path.file_name().unwrap_or_default()))?;
    }
    for target in targets.iter().filter(|target| !target.is_state) {
        let from = beside(&target.path, "restore");
        let owner =
            fs::metadata(&target.path).or_else(|_| fs::metadata(target.path.parent().unwrap_or(Path::new("/"))));
        if target.path.symlink_metadata().is_ok() {
            fs::rename(&target.path, beside(&target.path, &format!("replaced-{seconds}")))?;
        }
        if let Ok(owner) = owner
            && rustix::process::geteuid().is_root()
        {
            lchown(&from, Some(owner.uid()), Some(owner.gid()))?;
        }
        fs::rename(&from, &target.path)?;
        sync_parent(&target.path)?;
    }
    // The database last: without it there is no store yet.
    let mut laid: Vec<PathBuf> = fs::read_dir(&staging)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    laid.sort_by_key(|path| path.file_name().is_some_and(|name| name == "queue.db"));
    for path in laid {
        fs::rename(&path, state_dir.join(path.file_name().unwrap_or_default()))?;
    }
    fs::remove_dir(&staging)?;
    File::open(state_dir)?.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_outside_of_its_two_directories() {
        let manifest = |name: &str| Manifest {
            members: vec![Member { name: PathBuf::from(name), mode: 0o600, bytes: 1, sha256: String::new() }],
            ..Manifest::default()
        };
        let goes = |name: &str| targets(&manifest(name), Path::new("/s"), Some(Path::new("/c")));
        assert_eq!(goes("state/queue.db").unwrap()[0].path, Path::new("/s/queue.db"));
        assert_eq!(goes("config/conf.d/a.toml").unwrap()[0].path, Path::new("/c/conf.d/a.toml"));
        for name in ["state/../x", "config/..", "/etc/passwd", "etc/passwd", "state", "..", "", "config/a/../../b"] {
            assert!(goes(name).is_none(), "{name}");
        }
    }
}
