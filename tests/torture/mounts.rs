//! File systems of a test's own, in a mount namespace of its own.
//!
//! The test program starts itself again in a new mount namespace. Whatever ends that second process, a failed
//! assertion or SIGKILL, ends the namespace with it, and the kernel unmounts everything and lets the loop devices go.
//! Needs root, loop devices and ext4; where they are missing the test fails and says so.

#![allow(dead_code, reason = "each test uses its own part of this")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::common::process::Process;
use super::common::{PATIENCE, turn, wait_until};

/// Set in the second process.
const INSIDE: &str = "TIDEGATE_TEST_MOUNTS";
/// Says that tests which need root are to be left out. Ignored where `CI` is set.
const WITHOUT_ROOT: &str = "TIDEGATE_TEST_WITHOUT_ROOT";

/// Runs `body` with mounts that nobody else sees; `test` is the full name of the calling test.
pub fn privately(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        body();
        return;
    }
    if !rustix::process::geteuid().is_root() {
        let is_left_out = std::env::var_os(WITHOUT_ROOT).is_some() && std::env::var_os("CI").is_none();
        assert!(
            is_left_out,
            "{test} mounts file systems and needs root: run ./test.sh as root, or set {WITHOUT_ROOT}=1 to leave it out"
        );
        println!("NOT TESTED: {test} needs root, and {WITHOUT_ROOT} is set");
        return;
    }
    let _turn = turn();
    let program = std::env::current_exe().unwrap().display().to_string();
    let words =
        ["--mount", "--propagation", "private", "--", &program, "--exact", test, "--nocapture", "--test-threads=1"];
    let mut inside = Process::start_with(test, "unshare", &words, &[(INSIDE, "1")]);
    let mut shown = 0;
    let mut show = |inside: &Process| {
        for line in inside.stdout_from(shown) {
            println!("{line}");
            shown += 1;
        }
    };
    // As long as its budget says, which is its own affair.
    while inside.status().is_none() {
        show(&inside);
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = inside.wait(PATIENCE);
    show(&inside);
    assert!(status.success(), "{test} failed in its mount namespace ({status}):\n{}", inside.stderr().join("\n"));
    assert!(inside.stdout().iter().any(|line| line.contains("1 passed")), "{test} did not run: is its name right?");
}

/// A mounted file system; unmounted when dropped.
pub struct Mount {
    at: PathBuf,
}

impl Mount {
    /// The ext4 file system in the file `image`.
    pub fn ext4(image: &Path, at: &Path) -> Mount {
        // The loop device goes with the mount.
        Mount::made(at, &["-t", "ext4", "-o", "loop,errors=remount-ro", &image.display().to_string()])
    }

    /// The same as at the boot after a power cut: what cannot be mounted is mended first (`fsck.repair=yes`).
    pub fn ext4_at_boot(image: &Path, at: &Path) -> Mount {
        fs::create_dir_all(at).unwrap();
        let words = ["-t", "ext4", "-o", "loop,errors=remount-ro", &image.display().to_string()];
        let output = Command::new("mount").args(words).arg(at).env("PATH", path()).output().unwrap();
        if output.status.success() {
            return Mount { at: at.to_owned() };
        }
        println!("{} is mended: {}", image.display(), String::from_utf8_lossy(&output.stderr).trim());
        mend_ext4(image);
        Mount::ext4(image, at)
    }

    /// A file system in memory that holds so many bytes.
    pub fn tmpfs(bytes: u64, at: &Path) -> Mount {
        Mount::made(at, &["-t", "tmpfs", "-o", &format!("size={bytes}"), "tidegate-test"])
    }

    /// One that another program has mounted.
    pub fn adopted(at: &Path) -> Mount {
        Mount { at: at.to_owned() }
    }

    fn made(at: &Path, words: &[&str]) -> Mount {
        fs::create_dir_all(at).unwrap();
        run(Command::new("mount").args(words).arg(at));
        Mount { at: at.to_owned() }
    }

    /// Makes it read-only, or writable again. Not while somebody has a file open for writing.
    pub fn set_read_only(&self, is_read_only: bool) {
        let option = if is_read_only { "remount,ro" } else { "remount,rw" };
        run(Command::new("mount").args(["-o", option]).arg(&self.at));
    }

    /// As when the disk has failed under it: the kernel makes it read-only at once, whoever writes. Only a new mount
    /// ends that.
    pub fn fail(&self) {
        let output = Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(&self.at).output().unwrap();
        let device = String::from_utf8(output.stdout).unwrap();
        let name = device.trim().trim_start_matches("/dev/").to_owned();
        fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "1").unwrap();
    }

    /// Unmounts it; whoever used it a moment ago may still be on the way out.
    #[track_caller]
    pub fn unmount(self) {
        let what = format!("{} is unmounted", self.at.display());
        wait_until(PATIENCE, &what, || {
            let output = Command::new("umount").arg(&self.at).output().unwrap();
            match output.status.success() {
                true => Ok(()),
                false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            }
        });
        std::mem::forget(self);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: after a failed test its users may still live. The namespace's end does the rest.
        Command::new("umount").arg("-l").arg(&self.at).output().ok();
    }
}

/// Makes the file `image` an ext4 file system of so many bytes.
pub fn make_ext4(image: &Path, bytes: u64) {
    File::create(image).unwrap().set_len(bytes).unwrap();
    // All written now: nothing is to be made up later, in the middle of a test's own writes.
    let options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
    run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", options]).arg(image));
}

/// Mends the file system in `image`, as a board does when it boots after a failure.
pub fn mend_ext4(image: &Path) {
    let output = Command::new("e2fsck").args(["-f", "-y"]).arg(image).env("PATH", path()).output().unwrap();
    // 1: mended.
    let is_fine = matches!(output.status.code(), Some(0 | 1));
    assert!(is_fine, "e2fsck: {}\n{}", output.status, String::from_utf8_lossy(&output.stdout));
}

/// Debian keeps these programs out of the path of those who are not root by login.
fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.env("PATH", path()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed ({}): {said}", output.status);
}
