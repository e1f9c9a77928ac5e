//! `tidegate run`: the gateway, in the foreground.

use std::io;
use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Exit, block_on};
use crate::broker::BindError;
use crate::config::Loaded;
use crate::gateway::{self, GatewayError};
use crate::health::chain;
use crate::queue::OpenError;
use crate::service;

pub(super) fn main(config: Option<PathBuf>) -> Exit {
    if let Err(error) = service::install_log(log::LevelFilter::Info) {
        eprintln!("tidegate: {}", chain(&error));
        return Exit::Failed;
    }
    let loaded = match super::load(config) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    keep_id(&loaded);
    block_on(async {
        let stop = CancellationToken::new();
        tokio::select! {
            ended = gateway::run(loaded.config, stop.clone().cancelled_owned()) => match ended {
                Ok(()) => Exit::Done,
                Err(error) => {
                    log::error!(error:% = chain(&error); "The gateway ended with a failure");
                    if let Some(help) = help(&error) {
                        eprintln!("help: {help}");
                    }
                    if error.is_transient() { Exit::TryAgain } else { Exit::Failed }
                }
            },
            () = insisted(&stop) => {
                log::warn!("A second signal came: the gateway ends without its ordered stop; nothing acknowledged is lost");
                Exit::Failed
            }
        }
    })
}

/// What a person can do about a gateway that does not start.
fn help(error: &GatewayError) -> Option<String> {
    match error {
        GatewayError::Listener(BindError { name, source, .. }) => match source.kind() {
            io::ErrorKind::AddrInUse => Some(format!(
                "another program listens there, often mosquitto: stop it, or write another bind under \
                 [broker.listener.{name}]"
            )),
            io::ErrorKind::PermissionDenied => {
                Some(format!("ports below 1024 are for root: write another bind under [broker.listener.{name}]"))
            }
            _ => None,
        },
        GatewayError::Queue(OpenError::InUse { dir }) => {
            Some(format!("another tidegate runs: tidegate status --state-dir {}", dir.display()))
        }
        GatewayError::Queue(OpenError::Directory { source, .. })
            if matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) =>
        {
            let help = "run as root or as the user tidegate, or set [gateway] state_dir to a directory of yours";
            Some(help.to_owned())
        }
        _ => None,
    }
}

/// Writes the id that was found on the board to the state directory, so that the gateway keeps its name when its card
/// moves to another board. A configured id needs no keeping.
fn keep_id(loaded: &Loaded) {
    let gateway = &loaded.config.gateway;
    let path = gateway.state_dir.join(super::ID_FILE);
    if loaded.board.id.as_deref() != Some(&*gateway.id) || path.exists() {
        return;
    }
    // Where the directory cannot be written, opening the queue in it says so in a moment.
    let _unwritten =
        std::fs::create_dir_all(&gateway.state_dir).and_then(|()| std::fs::write(&path, format!("{}\n", gateway.id)));
}

/// Cancels `stop` at the first SIGTERM or SIGINT, and comes back at the second: whoever sends that has waited enough.
async fn insisted(stop: &CancellationToken) {
    let (terminate, interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = (terminate, interrupt) else {
        log::error!("Signals cannot be received: the gateway stops only when it is killed");
        return std::future::pending().await;
    };
    for _ in 0..2 {
        let already_stopping = stop.is_cancelled();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if already_stopping {
            return;
        }
        stop.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use std::sync::Arc;

    fn bind(kind: io::ErrorKind) -> GatewayError {
        let address = SocketAddr::from(([127, 0, 0, 1], 883));
        GatewayError::Listener(BindError { name: Arc::from("shop"), address, source: kind.into() })
    }

    fn directory(kind: io::ErrorKind) -> GatewayError {
        GatewayError::Queue(OpenError::Directory { dir: PathBuf::from("/var/lib/tidegate"), source: kind.into() })
    }

    #[test]
    fn what_a_person_can_mend_has_a_help_and_the_rest_has_none() {
        let port = help(&bind(io::ErrorKind::AddrInUse)).unwrap();
        assert!(port.contains("often mosquitto") && port.ends_with("[broker.listener.shop]"), "{port}");
        assert!(help(&bind(io::ErrorKind::PermissionDenied)).unwrap().contains("below 1024"));
        assert!(help(&bind(io::ErrorKind::OutOfMemory)).is_none());
        let denied = help(&directory(io::ErrorKind::PermissionDenied)).unwrap();
        assert!(denied.contains("the user tidegate") && denied.contains("state_dir"), "{denied}");
        assert!(help(&directory(io::ErrorKind::StorageFull)).is_none());
        let in_use = GatewayError::Queue(OpenError::InUse { dir: PathBuf::from("/srv/t") });
        assert_eq!(help(&in_use).unwrap(), "another tidegate runs: tidegate status --state-dir /srv/t");
    }
}
