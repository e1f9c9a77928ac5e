//! A wall clock that is set under a running program (Debian's faketime). Timers are left alone: the kernel's monotonic
//! time does not move when somebody sets the clock.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::gateway::Gateway;

/// What the program is told about the time of day.
pub struct WallClock {
    library: PathBuf,
    file: PathBuf,
}

impl WallClock {
    /// One in `folder` that shows the true time.
    pub fn right(folder: &Path) -> WallClock {
        let libraries = fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path());
        let library = libraries
            .map(|folder| folder.join("faketime/libfaketimeMT.so.1"))
            .find(|path| path.exists())
            .expect("libfaketime is missing: ./test.sh installs the package faketime");
        let clock = WallClock { library, file: folder.join("faketime") };
        clock.set("+0");
        clock
    }

    /// Sets it, as faketime says it: `+400d`, `-1d`, `@1970-01-01 00:00:10`.
    pub fn set(&self, what: &str) {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{what}\n")).unwrap();
        fs::rename(new, &self.file).unwrap();
    }

    /// Lets a gateway believe a time service alone that has not been heard since the boot.
    pub fn unconfirmed(&self, gateway: &mut Gateway) {
        gateway.set_clock(&format!("clock = \"auto\"\nclock_mark = \"{}\"", self.mark().display()));
    }

    /// The time service sets it, and says so.
    pub fn come_right(&self) {
        self.set("+0");
        File::create(self.mark()).unwrap();
    }

    fn mark(&self) -> PathBuf {
        self.file.with_extension("mark")
    }

    /// What makes a program see it.
    pub fn environment(&self) -> [(&str, &str); 5] {
        [
            ("LD_PRELOAD", self.library.to_str().unwrap()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("TZ", "UTC"),
        ]
    }

    /// What `date` shows under it, in seconds: whether the library works at all on this machine.
    pub fn shown_s(&self) -> i64 {
        let output = Command::new("date").arg("+%s").envs(self.environment()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().parse().unwrap()
    }
}
