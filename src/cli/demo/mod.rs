//! `tidegate demo`: the promise, tried on this machine with nothing installed.
//!
//! One process tree on free loopback ports and in a temporary directory: simulated devices, a stand-in cloud and the
//! line to it live in this process; the gateway is this very program, started as `tidegate run` and killed for real.
//! Every child is ended and the directory removed on every way out.

use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use self::process::{ProcessError, TemporaryDirectory};
use self::screen::{Screen, print};
use self::stand::{Report, Stand, StandError, Subject};
use super::{Exit, block_on};
use crate::health::chain;

mod cloud;

mod line;

mod process;

mod plant;

mod mosquitto;

mod scene;

mod drill;

mod stand;

mod table;

mod screen;

/// How often a demo without end says that it is alive.
const STILL_HERE: Duration = Duration::from_secs(60);

/// `tidegate demo`
#[derive(Debug, clap::Args)]
pub(super) struct DemoArguments {
    /// Put another program through the same drills
    #[arg(long, value_name = "PROGRAM")]
    beside: Option<Beside>,
    /// Go on after the drills, to look around, until Ctrl-C
    #[arg(long)]
    forever: bool,
}

/// What can be put beside the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Beside {
    /// Mosquitto's bridge, persistence on
    Mosquitto,
}

/// Why the demo ended without a result.
#[derive(Debug, Error)]
enum DemoError {
    #[error("the demo cannot begin")]
    Begin(#[source] ProcessError),
    #[error("the demo broke off")]
    Stand(#[source] Box<StandError>),
}

pub(super) fn main(arguments: &DemoArguments) -> Exit {
    let mosquitto = match arguments.beside {
        None => None,
        Some(Beside::Mosquitto) => match mosquitto::find() {
            Some(program) => Some(program),
            None => {
                eprintln!("tidegate: --beside mosquitto: the program mosquitto is not installed");
                eprintln!("help: on Debian, apt-get install mosquitto; or run the demo without --beside");
                return Exit::Usage;
            }
        },
    };
    block_on(async {
        // Before anything is started: a signal that came first would end us and leave it behind.
        let interrupted = match interrupted() {
            Ok(interrupted) => interrupted,
            Err(error) => {
                eprintln!("tidegate: cannot listen for signals: {error}");
                return Exit::Failed;
            }
        };
        let ended = tokio::select! {
            ended = demo(mosquitto.as_deref(), arguments.forever) => ended,
            () = interrupted => {
                // All that was started went with the future that owned it.
                if arguments.forever {
                    return Exit::Done;
                }
                eprintln!("tidegate: the demo was stopped before its end; everything is cleaned up");
                return Exit::TryAgain;
            }
        };
        match ended {
            Ok(exit) => exit,
            Err(error) => {
                eprintln!("tidegate: {}", chain(&error));
                if let DemoError::Stand(source) = &error
                    && let Some(words) = source.last_words()
                {
                    eprintln!("its last words:\n{words}");
                }
                Exit::Failed
            }
        }
    })
}

async fn demo(mosquitto: Option<&Path>, forever: bool) -> Result<Exit, DemoError> {
    let directory = TemporaryDirectory::new().map_err(DemoError::Begin)?;
    let stand_error = |source| DemoError::Stand(Box::new(source));
    let began = Instant::now();
    let mut gateway = Stand::build(Subject::Gateway, &directory, began).await.map_err(stand_error)?;
    let mut bridge = None;
    if let Some(program) = mosquitto {
        let stand = Stand::build(Subject::Mosquitto(program.to_owned()), &directory, began).await;
        let stand = stand.map_err(stand_error)?;
        for stand in [&gateway, &stand] {
            print(&format!("# Configuration of {}\n{}\n", stand.title(), stand.configuration()));
        }
        bridge = Some(stand);
    }

    let screen = Screen::open();
    let report = gateway.run(&screen).await.map_err(stand_error)?;
    if !forever {
        gateway.end().await.map_err(stand_error)?;
    }
    let beside = match bridge.as_mut() {
        None => None,
        Some(bridge) => {
            let report = bridge.run(&screen).await.map_err(stand_error)?;
            bridge.end().await.map_err(stand_error)?;
            Some(report)
        }
    };
    drop(screen);

    let exit = conclude(&report, beside.as_ref());
    if forever {
        go_on(&mut gateway).await.map_err(stand_error)?;
    }
    Ok(exit)
}

/// Prints the last screen. Only the gateway's own losses decide how the demo ends.
fn conclude(report: &Report, beside: Option<&Report>) -> Exit {
    print(&format!("\n{}", report.table()));
    if let Some(beside) = beside {
        print(&format!("\n{}", report.side_by_side(beside)));
    }
    let lost = report.losses();
    if lost == 0 {
        print("\nNothing that the gateway acknowledged was lost.\n");
    } else {
        print(&format!("\nLOST: {lost}. This breaks the promise; please report it, with the version below.\n"));
        print(&format!("tidegate {}\n", env!("CARGO_PKG_VERSION")));
    }
    print("Next: tidegate example rs485-aws > tidegate.toml\n");
    if lost == 0 { Exit::Done } else { Exit::Failed }
}

async fn go_on(gateway: &mut Stand) -> Result<(), StandError> {
    let broker = gateway.broker();
    print(&format!(
        "\nThe demo goes on until Ctrl-C. Join in from another terminal:\n\
         \x20 mosquitto_sub -h {host} -p {port} -v -t 'field/#' -t 'plant/#'\n\
         \x20 tidegate status --state-dir {state_dir}\n",
        host = broker.ip(),
        port = broker.port(),
        state_dir = gateway.state_dir().display(),
    ));
    gateway.stay(STILL_HERE, |received| print(&format!("{received} messages at the cloud so far\n"))).await
}

/// Ends when the demo is asked to: Ctrl-C, a terminal that is closed, `kill`.
fn interrupted() -> std::io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}
