//! A Unix socket to listen on: in the place of one that a dead process left, and of nothing else.
//!
//! Promises: nobody can connect before the socket has its permissions; the socket of a living process, and whatever is
//! no socket, stays as it is; what is removed at the end is our own.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

/// A socket that somebody can connect to; it goes when this is dropped.
#[derive(Debug)]
pub struct UnixDoor {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl UnixDoor {
    /// Listens at `path`, for whom `mode` lets connect.
    pub fn open(path: &Path, mode: u32) -> io::Result<UnixDoor> {
        make_way(path)?;
        // Under another name until it has its permissions, then in one step under its own.
        let mut making = path.as_os_str().to_owned();
        making.push(".new");
        let making = PathBuf::from(making);
        remove_if_there(&making)?;
        let listener = UnixListener::bind(&making)?;
        std::fs::set_permissions(&making, std::fs::Permissions::from_mode(mode))?;
        let identity = identity(&making)?;
        std::fs::rename(&making, path)?;
        Ok(UnixDoor { listener, path: path.to_owned(), identity })
    }

    /// Who may connect from now on.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(mode))
    }

    /// The next one who connects, and the user id of its process.
    pub async fn accept(&self) -> io::Result<(UnixStream, Option<u32>)> {
        let (stream, _) = self.listener.accept().await?;
        let uid = stream.peer_cred().ok().map(|cred| cred.uid());
        Ok((stream, uid))
    }
}

impl Drop for UnixDoor {
    fn drop(&mut self) {
        // By now it may be that of the process that comes after us.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // Left behind it is in nobody's way: it is found to be dead.
            let _left = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Makes sure that what is at `path` may be replaced.
fn make_way(path: &Path) -> io::Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        let what = "something that is no socket is there";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
    }
    // Only the kernel knows whether somebody listens. It would let us wait for one whose backlog is full.
    let asking = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    asking.set_nonblocking(true)?;
    match asking.connect(&SockAddr::unix(path)?).map_err(|error| (error.kind(), error)) {
        Err((io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound, _)) => Ok(()),
        Ok(()) | Err((io::ErrorKind::WouldBlock, _)) => {
            Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"))
        }
        Err((_, error)) => Err(error),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_living_one_and_a_file_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mqtt.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let door = UnixDoor::open(&path, 0o600).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(UnixDoor::open(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let (client, accepted) = tokio::join!(UnixStream::connect(&path), door.accept());
        assert!(client.is_ok(), "the refused second one must not have harmed the first");
        assert_eq!(accepted.unwrap().1, Some(rustix::process::geteuid().as_raw()));
        drop(door);
        assert!(!path.exists());
        std::fs::write(&path, "notes").unwrap();
        assert_eq!(UnixDoor::open(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "notes");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing half made is left");
    }

    #[tokio::test]
    async fn the_socket_of_a_successor_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mqtt.sock");
        let first = UnixDoor::open(&path, 0o660).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _second = UnixDoor::open(&path, 0o660).unwrap();
        drop(first);
        assert!(UnixStream::connect(&path).await.is_ok());
    }
}
