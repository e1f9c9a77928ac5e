//! The files of an identity that a board has got for itself. The key never leaves this folder.
//!
//! Promises: nobody but the owner may read them (0600 in a folder of 0700); each is there whole or not at all, whatever
//! dies and when (written beside, synced, renamed, the folder synced); a key is made once, and made again only where no
//! certificate for it was ever kept.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const KEY: &str = "key.pem";
const CERT: &str = "cert.pem";
const PENDING: &str = "pending.json";
const THING: &str = "thing.json";
const TRIAL: &str = "trial.pem";
const ASSIGNMENT: &str = "hub.json";

/// No file of these is longer.
const BYTES_MAX: u64 = 256 * 1024;

/// A certificate that the cloud has made, and that is not registered yet as far as is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Its name at the cloud.
    pub certificate_id: String,
    /// Itself.
    pub certificate_pem: String,
    /// What proves that it is ours, for an hour.
    pub token: String,
    /// The thing was asked for with it: it may be registered though nobody has heard so.
    pub is_asked: bool,
}

/// One uplink's folder.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// At `path`, whether or not it is there yet.
    pub fn new(path: &Path) -> Folder {
        Folder { path: path.to_owned() }
    }

    /// The certificate, once it is registered.
    pub fn cert(&self) -> PathBuf {
        self.path.join(CERT)
    }

    /// Its key.
    pub fn key(&self) -> PathBuf {
        self.path.join(KEY)
    }

    /// A certificate that may be registered.
    pub fn trial(&self) -> PathBuf {
        self.path.join(TRIAL)
    }

    /// Whether there is an identity.
    pub fn is_provisioned(&self) -> bool {
        self.cert().is_file() && self.key().is_file()
    }

    /// The key, made if there is none that can be read.
    ///
    /// # Errors
    /// When it can neither be read nor written.
    pub fn key_pem(
        &self,
        make: impl FnOnce() -> io::Result<String>,
        is_key: impl FnOnce(&str) -> bool,
    ) -> io::Result<String> {
        if let Some(pem) = self.read(KEY)? {
            if is_key(&pem) {
                return Ok(pem);
            }
            // A power cut cannot leave half of it, a bad disk can. It is of no use, and what belongs to it neither.
            self.remove(PENDING)?;
        }
        let pem = make()?;
        self.keep(KEY, pem.as_bytes())?;
        Ok(pem)
    }

    /// What was begun.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn pending(&self) -> io::Result<Option<Pending>> {
        Ok(self.read(PENDING)?.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// Keeps what was begun.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn keep_pending(&self, pending: &Pending) -> io::Result<()> {
        self.keep(PENDING, &serde_json::to_vec(pending)?)
    }

    /// What was begun leads to nothing.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn forget_pending(&self) -> io::Result<()> {
        self.remove(PENDING)
    }

    /// Keeps a certificate that may be registered, to try it.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn keep_trial(&self, pem: &str) -> io::Result<()> {
        self.keep(TRIAL, pem.as_bytes())
    }

    /// The certificate is registered: from here on there is an identity.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn keep_identity(&self, pending: &Pending, thing: &[u8]) -> io::Result<()> {
        self.keep(THING, thing)?;
        self.keep(CERT, pending.certificate_pem.as_bytes())?;
        self.remove(TRIAL)?;
        self.remove(PENDING)
    }

    /// Which hub the device was given to, as it was kept.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn assignment(&self) -> io::Result<Option<String>> {
        self.read(ASSIGNMENT)
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn keep_assignment(&self, bytes: &[u8]) -> io::Result<()> {
        self.keep(ASSIGNMENT, bytes)
    }

    fn read(&self, name: &str) -> io::Result<Option<String>> {
        let mut text = String::new();
        match File::open(self.path.join(name)).and_then(|file| file.take(BYTES_MAX).read_to_string(&mut text)) {
            Ok(_) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // Not text: not one of ours any more.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Some(String::new())),
            Err(error) => Err(error),
        }
    }

    fn keep(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if !self.path.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
            if let Some(above) = self.path.parent() {
                File::open(above)?.sync_all()?;
            }
        }
        let beside = self.path.join(format!("{name}.new"));
        // One that was left over may have other rights.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, self.path.join(name))?;
        File::open(&self.path)?.sync_all()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Ok(()) => File::open(&self.path)?.sync_all(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_is_made_once_and_nobody_else_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(&dir.path().join("provisioned/aws"));
        let key = |text: &str| folder.key_pem(|| Ok(text.to_owned()), |pem| pem.starts_with("key")).unwrap();
        assert_eq!((key("key 1"), key("key 2")), ("key 1".to_owned(), "key 1".to_owned()));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder.key()), mode(folder.key().parent().unwrap())), (0o600, 0o700));
        // One that cannot be used is replaced, and what was begun with it is forgotten.
        folder.keep_pending(&pending()).unwrap();
        fs::write(folder.key(), b"\xff\xfe").unwrap();
        assert_eq!((key("key 3"), folder.pending().unwrap()), ("key 3".to_owned(), None));
    }

    fn pending() -> Pending {
        Pending {
            certificate_id: "i".to_owned(),
            certificate_pem: "p".to_owned(),
            token: "t".to_owned(),
            is_asked: true,
        }
    }

    #[test]
    fn what_was_begun_is_there_until_the_certificate_is() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        folder.key_pem(|| Ok("key".to_owned()), |_| true).unwrap();
        assert_eq!(folder.pending().unwrap(), None);
        folder.keep_pending(&pending()).unwrap();
        assert_eq!((folder.pending().unwrap(), folder.is_provisioned()), (Some(pending()), false));
        folder.keep_identity(&pending(), b"{}").unwrap();
        assert_eq!((folder.pending().unwrap(), folder.is_provisioned()), (None, true));
        fs::write(dir.path().join(PENDING), "torn").unwrap();
        assert_eq!(folder.pending().unwrap(), None);
    }
}
