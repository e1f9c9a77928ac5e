//! `tidegate simulate modbus`: some units, the devices of a configuration, or what was recorded.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Link, PortArguments, ServeError, Units, also, parse_units, recording};
use crate::config::{self, Config, LineConfig, LineKind, PortConfig, SerialFraming, toml_key, toml_text};
use crate::field::record::Wire;
use crate::field::simulate::fault::Fault;
use crate::field::simulate::modbus::{Devices, Server, Settings};
use crate::field::simulate::wave::Wave;
use crate::field::simulate::{Bound, Place, SimulateError, Waves};

pub(super) const EXAMPLES: &str = "Examples:
  tidegate simulate modbus --listen 127.0.0.1:1502 --units 1-3 --dead 4
  tidegate simulate modbus --config tidegate.toml --wave ramp --fault 3:silence
  tidegate simulate modbus --replay meters.rec --pty --link /tmp/meters";

/// The port of the first line of a configuration; the others follow.
const FIRST_PORT: u16 = 1502;

/// `tidegate simulate modbus`
#[derive(Debug, clap::Args)]
pub(super) struct ModbusArguments {
    /// Serve TCP at this address [default: 127.0.0.1:1502]
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with_all = ["pty", "port"])]
    listen: Option<SocketAddr>,
    /// Serve a serial line on a pty and print its path
    #[arg(long, conflicts_with = "port")]
    pty: bool,
    /// Name the pty by a link, so that a configuration can name it; removed at the end
    #[arg(long, value_name = "PATH", requires = "pty")]
    link: Option<PathBuf>,
    /// Serve it on this serial port
    #[arg(long, value_name = "DEVICE")]
    port: Option<PathBuf>,
    /// Serve Modbus ASCII there; a line of a configuration says itself which it has
    #[arg(long, conflicts_with_all = ["listen", "config"])]
    ascii: bool,
    #[command(flatten)]
    settings: PortArguments,
    /// On a pty: answer only who speaks with these settings, such as 19200,8E1
    #[arg(long, value_name = "BAUD,MODE", conflicts_with_all = ["listen", "port"], value_parser = parse_heeded)]
    heed: Option<PortConfig>,
    /// Units that answer, such as 1,3,7-9
    #[arg(long, value_name = "UNITS", default_value = "1", value_parser = parse_units, conflicts_with_all = ["config", "replay"])]
    units: Units,
    /// Units that never answer
    #[arg(long, value_name = "UNITS", value_parser = parse_units, conflicts_with_all = ["config", "replay"])]
    dead: Option<Units>,
    /// Registers in each table
    #[arg(long, value_name = "COUNT", default_value_t = 1000, conflicts_with_all = ["config", "replay"])]
    registers: u16,
    /// Serve the devices of this configuration, with their points, each of its lines at a place of its own
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    config: Option<PathBuf>,
    /// Only this line of the configuration
    #[arg(long, value_name = "NAME", requires = "config")]
    line: Option<String>,
    /// How values move: sine, ramp, square, walk, constant; for one point DEVICE/POINT=ramp
    #[arg(long, value_name = "WAVE", requires = "config", value_parser = parse_wave)]
    wave: Vec<(Option<String>, Wave)>,
    /// What is wrong with answers: [UNIT:]delay=200ms, exception=2, silence, bad-crc, wrong-unit or late, each /N-th
    #[arg(long, value_name = "FAULT", value_parser = Fault::parse, conflicts_with = "replay")]
    fault: Vec<Fault>,
    /// Serve what was recorded with --record
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
}

fn parse_heeded(text: &str) -> Result<PortConfig, String> {
    let (baud, mode) = text.split_once(',').ok_or("write baud rate and mode: 19200,8E1")?;
    let baud: NonZeroU32 = baud.trim().parse().map_err(|_| "write baud rate and mode: 19200,8E1")?;
    Ok(PortConfig::new(PathBuf::new(), baud, config::parse_serial_mode(mode.trim())?))
}

fn parse_wave(text: &str) -> Result<(Option<String>, Wave), String> {
    let (name, wave) = match text.rsplit_once('=') {
        Some((name, wave)) => (Some(name.to_owned()), wave),
        None => (None, text),
    };
    let wave = Wave::parse(wave).ok_or("there are sine, ramp, square, walk and constant")?;
    Ok((name, wave))
}

pub(super) async fn serve(arguments: &ModbusArguments, stop: CancellationToken) -> Result<(), ServeError> {
    let mut servers = JoinSet::new();
    let mut links = Vec::new();
    if let Some(file) = &arguments.config {
        let lines = lines(arguments, file).await?;
        println!("# In front of the configuration, for a gateway that asks this simulation:");
        for (text, server) in lines {
            println!("{text}");
            links.extend(link(arguments, &server)?);
            servers.spawn(server.run(stop.clone()));
        }
        println!("# Modbus units are served; Ctrl-C ends it");
    } else {
        let server = single(arguments).await?;
        let link = link(arguments, &server)?;
        println!("Modbus units are served at {}{}; Ctrl-C ends it", server.bound(), also(link.as_ref()));
        links.extend(link);
        servers.spawn(server.run(stop.clone()));
    }
    while let Some(ended) = servers.join_next().await {
        match ended {
            Ok(ended) => ended.map_err(ServeError::Device)?,
            Err(panic) => return Err(ServeError::Device(SimulateError::Failed(panic.to_string()))),
        }
    }
    Ok(())
}

fn link(arguments: &ModbusArguments, server: &Server) -> Result<Option<Link>, ServeError> {
    match (&arguments.link, server.path()) {
        (Some(link), Some(pty)) => Link::lay(link.clone(), pty).map(Some),
        _ => Ok(None),
    }
}

/// One server: some units, or a recording.
async fn single(arguments: &ModbusArguments) -> Result<Server, ServeError> {
    let place = place(arguments, None);
    if arguments.ascii && matches!(place, Place::Tcp(_)) {
        return Err(ServeError::Usage("--ascii is for serial lines: write --pty or --port".to_owned()));
    }
    let framing = if arguments.ascii { SerialFraming::Ascii } else { SerialFraming::Rtu };
    let bound = match &arguments.replay {
        Some(file) => {
            let recording = recording(file)?;
            if recording.wire == Wire::Serial {
                let why = format!("{} is of a serial device: tidegate simulate serial --replay", file.display());
                return Err(ServeError::Usage(why));
            }
            Server::bind_devices(&place, recording.wire, Devices::Recorded(&recording), arguments.heed.clone()).await
        }
        None => {
            let mut settings = Settings::at(place);
            settings.units = arguments.units.0.clone();
            settings.dead = arguments.dead.as_ref().map(|dead| dead.0.clone()).unwrap_or_default();
            settings.registers = arguments.registers;
            settings.faults = arguments.fault.clone();
            settings.heeds = arguments.heed.clone();
            Server::bind(settings).await
        }
    };
    Ok(bound.map_err(ServeError::Device)?.framed(framing))
}

/// Where to serve: as asked for, else at `own`, else at the usual place.
fn place(arguments: &ModbusArguments, own: Option<Place>) -> Place {
    match (&arguments.port, arguments.pty, arguments.listen) {
        (Some(port), ..) => arguments.settings.at(port.clone()),
        (None, true, _) => Place::Pty,
        (None, false, Some(listen)) => Place::Tcp(listen),
        (None, false, None) => own.unwrap_or(Place::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST_PORT)))),
    }
}

/// A server for each line of the configuration that has devices, and what points a gateway to it.
async fn lines(arguments: &ModbusArguments, file: &Path) -> Result<Vec<(String, Server)>, ServeError> {
    // Warnings are about the gateway, which is not this.
    let loaded = super::super::read(Some(file.to_path_buf())).map_err(ServeError::Config)?;
    let config = &loaded.config;
    let has_devices = |name: &str| config.modbus.values().any(|device| &*device.line == name);
    let is_wanted = |name: &str| arguments.line.as_deref().is_none_or(|line| line == name) && has_devices(name);
    let lines: Vec<_> = config.lines.iter().filter(|(name, _)| is_wanted(name)).collect();
    if lines.is_empty() {
        let names: Vec<&str> = config.lines.keys().map(AsRef::as_ref).collect();
        return Err(ServeError::Usage(format!("no such line has Modbus devices; there are: {}", names.join(", "))));
    }
    let is_placed = arguments.port.is_some() || arguments.pty || arguments.listen.is_some();
    if is_placed && lines.len() > 1 {
        let what = "a place is for one line: name it with --line, or let each have its own".to_owned();
        return Err(ServeError::Usage(what));
    }
    let waves = Waves {
        all: arguments.wave.iter().rev().find(|(name, _)| name.is_none()).map(|(_, wave)| *wave).unwrap_or_default(),
        named: arguments.wave.iter().filter_map(|(name, wave)| Some((name.clone()?, *wave))).collect(),
    };
    for name in waves.named.keys() {
        let known = name
            .split_once('/')
            .and_then(|(device, point)| config.modbus.get(device)?.points.iter().find(|known| &*known.name == point));
        if known.is_none() {
            return Err(ServeError::Usage(format!("there is no point {name:?}: write DEVICE/POINT=ramp")));
        }
    }
    let mut servers = Vec::new();
    for (number, (name, line)) in (0_u16..).zip(lines) {
        let own = match &line.kind {
            LineKind::Rtu(_) => Place::Pty,
            LineKind::Tcp { .. } | LineKind::RtuOverTcp { .. } => {
                Place::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST_PORT.saturating_add(number))))
            }
        };
        let wire = if matches!(line.kind, LineKind::RtuOverTcp { .. }) { Wire::Rtu } else { Wire::Tcp };
        let place = place(arguments, Some(own));
        let wire = if matches!(place, Place::Tcp(_)) { wire } else { Wire::Rtu };
        let devices = Devices::Line { config, line: name, waves: &waves, faults: arguments.fault.clone() };
        let server =
            Server::bind_devices(&place, wire, devices, arguments.heed.clone()).await.map_err(ServeError::Device)?;
        let server = server.framed(line.framing);
        servers.push((overlay(config, name, line, server.bound(), wire), server));
    }
    Ok(servers)
}

/// Points a gateway to the simulation: a file of it in `<state_dir>/conf.d/` is stronger than what the owner wrote.
fn overlay(config: &Config, name: &str, line: &LineConfig, bound: &Bound, wire: Wire) -> String {
    let url = |address: &SocketAddr| {
        let scheme = if wire == Wire::Rtu { "rtu-tcp" } else { "tcp" };
        toml_text(&format!("{scheme}://{address}"))
    };
    let is_in_place = name.contains("://");
    match bound {
        Bound::Path(path) if !is_in_place => {
            format!("[line.{}]\nport = {}", toml_key(name), toml_text(&path.display().to_string()))
        }
        Bound::Tcp(address) if !is_in_place && !matches!(line.kind, LineKind::Rtu(_)) => {
            format!("[line.{}]\nurl = {}", toml_key(name), url(address))
        }
        Bound::Path(path) => format!("# {name} is at {}", path.display()),
        Bound::Tcp(address) => {
            let devices = config.modbus.iter().filter(|(_, device)| &*device.line == name);
            let blocks = devices.map(|(device, _)| format!("[modbus.{}]\nline = {}", toml_key(device), url(address)));
            blocks.collect::<Vec<_>>().join("\n")
        }
    }
}
