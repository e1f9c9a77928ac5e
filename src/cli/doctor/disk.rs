//! Whether the disk that keeps what is acknowledged does what it says.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::report::Finding;

/// Blocks that are written and synced, one after the other.
const SYNCS: u64 = 32;
const BLOCK_BYTES: usize = 4096;

/// No disk moves a block over its bus and answers in less: whoever does has written nothing down.
const SYNC_MIN: Duration = Duration::from_micros(8);

/// Longer than this and clients wait for their acknowledgements.
const SYNC_SLOW: Duration = Duration::from_millis(200);

pub(super) async fn examine(state_dir: &Path) -> Vec<Finding> {
    let dir = state_dir.to_owned();
    let measured = tokio::task::spawn_blocking(move || measure(&dir)).await;
    match measured {
        Ok(Ok((median, is_memory))) => vec![judge(median, is_memory, state_dir)],
        Ok(Err(error)) => {
            let what = format!("cannot write in {}: {error}", state_dir.display());
            let finding = match error.kind() {
                io::ErrorKind::NotFound => Finding::unsure(
                    "disk",
                    format!("{} is not there yet: the first start makes it", state_dir.display()),
                ),
                io::ErrorKind::PermissionDenied => {
                    Finding::unsure("disk", what).help("run it as the user of the service, or as root")
                }
                _ => Finding::wrong("disk", what).help("nothing can be kept there"),
            };
            vec![finding]
        }
        Err(_panicked) => Vec::new(),
    }
}

/// The median time of a sync, and whether the directory stands in memory.
fn measure(dir: &Path) -> io::Result<(Duration, bool)> {
    let file = tempfile_in(dir)?;
    let mut times = Vec::new();
    let block = [0x5a; BLOCK_BYTES];
    for number in 0..SYNCS {
        file.write_all_at(&block, number * BLOCK_BYTES as u64)?;
        let begun = Instant::now();
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    /// `TMPFS_MAGIC` and `RAMFS_MAGIC` of linux/magic.h.
    const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];
    let kind = rustix::fs::fstatfs(&file)?.f_type;
    #[expect(clippy::useless_conversion, reason = "its type is another one on 32-bit boards")]
    let is_memory = i64::try_from(kind).is_ok_and(|kind| IN_MEMORY.contains(&kind));
    Ok((median, is_memory))
}

/// A file without a name: nothing of it stays, whatever happens.
fn tempfile_in(dir: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let unnamed = rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    match unnamed {
        Ok(file) => Ok(File::from(file)),
        // Not every file system has such files.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            let path = dir.join("doctor.tmp");
            let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
            file.flush()?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}

fn judge(median: Duration, is_memory: bool, state_dir: &Path) -> Finding {
    let shown = format!("a sync takes {median:.1?}");
    if is_memory {
        let what = format!("{} stands in memory: what is kept there does not outlive a power cut", state_dir.display());
        return Finding::wrong("disk", what).help("set `state_dir` to a place on a disk");
    }
    if median < SYNC_MIN {
        let what = format!("{shown}, which no disk can do: what it says is written is not");
        let help = "look for `nobarrier`, a virtual disk with cache=unsafe, or a controller whose cache has no battery";
        return Finding::wrong("disk", what).help(help);
    }
    if median > SYNC_SLOW {
        let help = "each acknowledgement waits for one; flash = \"spare\" in [queue] needs fewer";
        return Finding::unsure("disk", shown).help(help);
    }
    Finding::good("disk", shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_that_cannot_be_true_is_told() {
        let told = |median_us: u64, is_memory: bool| {
            format!("{:?}", judge(Duration::from_micros(median_us), is_memory, Path::new("/s")))
        };
        assert!(told(1, false).contains("no disk can do") && told(1, false).contains("Wrong"));
        assert!(told(500, false).contains("Good"));
        assert!(told(900_000, false).contains("Unsure"));
        assert!(told(500, true).contains("stands in memory"));
    }
}
