//! `tidegate run`: the gateway, in the foreground.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Exit, block_on};
use crate::broker::BindError;
use crate::config::{self, ListenerAddress, Loaded, Problem};
use crate::control::{ReloadAsk, Reloaded};
use crate::gateway::{self, GatewayError, Reload};
use crate::health::chain;
use crate::queue::OpenError;
use crate::service;

pub(super) fn main(config: Option<PathBuf>, record: Option<PathBuf>) -> Exit {
    if let Err(error) = service::install_log(log::LevelFilter::Info) {
        eprintln!("tidegate: {}", chain(&error));
        return Exit::Failed;
    }
    let loaded = match super::load_quietly(config.clone()) {
        Ok(loaded) => loaded,
        Err((problems, warnings)) => {
            eprint!("{}", config::render(&problems, &warnings));
            let told = short(&problems);
            // The last line, and the status, are what `systemctl status` shows.
            log::error!(problem = told.as_str(); "The configuration is wrong: the gateway stays down until it is mended");
            service::status(&format!("wrong configuration, stays down until it is mended: {told}"));
            return Exit::Config;
        }
    };
    eprint!("{}", config::render(&[], &loaded.warnings));
    keep_id(&loaded);
    block_on(async {
        let stop = CancellationToken::new();
        let (reloads, coming) = mpsc::channel(1);
        let (asks, asked) = mpsc::channel(1);
        tokio::select! {
            ended = gateway::run(loaded.config, record, coming, asks, stop.clone().cancelled_owned()) => match ended {
                Ok(()) => Exit::Done,
                Err(error) => {
                    let help = help(&error);
                    log::error!(error:% = chain(&error); "The gateway ended with a failure");
                    if let Some(help) = &help {
                        eprintln!("help: {help}");
                    }
                    let help = help.map(|help| format!("; {help}")).unwrap_or_default();
                    service::status(&format!("cannot go on: {}{help}", chain(&error)));
                    if error.is_transient() { Exit::TryAgain } else { Exit::Failed }
                }
            },
            exit = reload(config, reloads, asked) => exit,
            () = insisted(&stop) => {
                log::warn!("A second signal came: the gateway ends without its ordered stop; nothing acknowledged is lost");
                Exit::Failed
            }
        }
    })
}

/// The first problem with its place, and how many more there are.
fn short(problems: &[Problem]) -> String {
    let Some(first) = problems.first() else { return "it is not known why".to_owned() };
    let place = first.place.as_ref().map(|place| match &place.mark {
        Some(mark) => format!("{}:{}:{}: ", place.file.display(), mark.line, mark.column),
        None => format!("{}: ", place.file.display()),
    });
    let help = first.help.as_ref().map(|help| format!("; {help}")).unwrap_or_default();
    let more = match problems.len() {
        1 => String::new(),
        count => format!(" (and {} more: tidegate check)", count - 1),
    };
    format!("{}{}{help}{more}", place.unwrap_or_default(), first.what)
}

/// Reads the configuration again at each SIGHUP and whenever somebody asks for it, and hands on what came of it. Never ends:
/// the others of `select!` do.
async fn reload(file: Option<PathBuf>, reloads: mpsc::Sender<Reload>, mut asked: mpsc::Receiver<ReloadAsk>) -> Exit {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else {
        log::error!("SIGHUP cannot be received: the configuration is read at the start only");
        return std::future::pending().await;
    };
    loop {
        let asker = tokio::select! {
            Some(()) = hangup.recv() => None,
            Some(asker) = asked.recv() => Some(asker),
            else => break,
        };
        service::reloading();
        let file = file.clone();
        let loaded = tokio::task::spawn_blocking(move || super::load_quietly(file)).await;
        let (done, answer) = oneshot::channel();
        let (reload, problems) = match loaded {
            Ok(Ok(Loaded { config, warnings, .. })) => {
                (Reload::Good { config: Box::new(config), done }, config::render(&[], &warnings))
            }
            Ok(Err((problems, warnings))) => {
                (Reload::Wrong { problem: short(&problems), done }, config::render(&problems, &warnings))
            }
            Err(_panicked) => (Reload::Wrong { problem: "it could not be read".to_owned(), done }, String::new()),
        };
        eprint!("{problems}");
        // Where the gateway stops already, nothing is reloaded.
        if reloads.send(reload).await.is_err() {
            break;
        }
        let Ok(reloaded) = answer.await else { break };
        if let Some(asker) = asker {
            // It may be gone.
            let _unheard = asker.send(Reloaded { problems, ..reloaded });
        }
        service::ready();
    }
    std::future::pending().await
}

/// What a person can do about a gateway that does not start.
fn help(error: &GatewayError) -> Option<String> {
    match error {
        GatewayError::Listener(BindError { name, address: ListenerAddress::Unix { path, .. }, source }) => {
            socket_help(name, path, source.kind())
        }
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
        GatewayError::Queue(OpenError::Directory { dir, source }) => directory_help(dir, source.kind()),
        _ => None,
    }
}

fn socket_help(listener: &str, path: &Path, kind: io::ErrorKind) -> Option<String> {
    let directory = path.parent().unwrap_or(path).display();
    match kind {
        io::ErrorKind::AddrInUse => {
            Some(format!("stop that process, or write another bind under [broker.listener.{listener}]"))
        }
        io::ErrorKind::AlreadyExists => {
            Some(format!("move it away, or write another bind under [broker.listener.{listener}]"))
        }
        io::ErrorKind::NotFound => {
            Some(format!("make the directory {directory}; systemd's unit makes /run/tidegate at each start"))
        }
        io::ErrorKind::PermissionDenied => Some(format!(
            "the user tidegate must be able to write in {directory}; in /run/tidegate it is, under systemd"
        )),
        _ => None,
    }
}

fn directory_help(dir: &Path, kind: io::ErrorKind) -> Option<String> {
    match kind {
        io::ErrorKind::PermissionDenied => {
            let me = rustix::process::geteuid().as_raw();
            let places = [dir.to_owned(), dir.join("lock")];
            let others = places.iter().filter_map(|place| Some((place, std::fs::metadata(place).ok()?.uid())));
            let others = others.filter(|(_, uid)| *uid != me).map(|(place, uid)| (place.display(), uid)).next();
            let whose = others.map(|(place, uid)| {
                format!(
                    "{place} belongs to user {uid} and this is user {me}: chown -R tidegate: {}; or ",
                    dir.display()
                )
            });
            Some(format!(
                "{}run as root or as the user tidegate, or set [gateway] state_dir to a directory of yours",
                whose.unwrap_or_default()
            ))
        }
        io::ErrorKind::ReadOnlyFilesystem => Some(format!(
            "the file system of {} is read-only: mount it writable, or set [gateway] state_dir to a directory on one \
             that is, for example a data partition",
            dir.display()
        )),
        io::ErrorKind::StorageFull => Some(format!(
            "the disk of {} is full: free some room, or set [gateway] state_dir to a directory on another",
            dir.display()
        )),
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => Some(format!(
            "something that is no directory is at {}: move it away, or set [gateway] state_dir to another",
            dir.display()
        )),
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
        let address = ListenerAddress::Network(SocketAddr::from(([127, 0, 0, 1], 883)));
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
        let full = help(&directory(io::ErrorKind::StorageFull)).unwrap();
        assert!(full.contains("/var/lib/tidegate is full: free some room"), "{full}");
        let read_only = help(&directory(io::ErrorKind::ReadOnlyFilesystem)).unwrap();
        assert!(read_only.contains("mount it writable"), "{read_only}");
        assert!(help(&directory(io::ErrorKind::OutOfMemory)).is_none());
        let in_use = GatewayError::Queue(OpenError::InUse { dir: PathBuf::from("/srv/t") });
        assert_eq!(help(&in_use).unwrap(), "another tidegate runs: tidegate status --state-dir /srv/t");
    }
}
