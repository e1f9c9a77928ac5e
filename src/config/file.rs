//! From the tree of what was written to a draft: each value valid by itself, each with its place.
//!
//! Nothing here compares two tables: that is `check`. A value that is wrong is noted and missing from the draft.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::access::{CertificateName, PasswordHash, TopicRights};
use super::board::Found;
use super::keys;
use super::load::KeptId;
use super::tokens::TokenConfig;
use super::tree::{Entry, Node, Spot, Tree, Written};
use super::units::{self, Wrong};
use super::walk::{At, Reader, Walk, name_fault};
use super::{
    BoardConfig, Endpoint, ForwardRule, GatewayConfig, LimitsConfig, LineConfig, LineKind, ListenerAddress,
    ListenerConfig, ModbusConfig, PortConfig, QueueConfig, ReceiveRule, SerialConfig, SerialFraming, SessionConfig,
    UplinkConfig, WebConfig, WhenFull,
};
use crate::clock::ClockSource;
use crate::message::{Qos, is_reserved};

mod gauge;
mod limits;
mod listener;
mod modbus;
mod serial;
mod share;
mod token;
mod uplink;
mod user;
mod web;

pub(super) use modbus::read_models;

/// The longest time that a rule may name.
const LONG: Duration = Duration::from_secs(365 * 86_400);

/// Where an id comes from that somebody wrote.
pub(super) const FROM_CONFIGURATION: &str = "the configuration";

/// What stands for the placeholders of templates.
#[derive(Debug, Clone)]
pub(super) struct Words {
    pub(super) gateway: Arc<str>,
    pub(super) board_serial: Option<String>,
    pub(super) hostname: Option<String>,
}

/// The configuration with places, and with holes where something was wrong.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) gateway: Option<GatewayConfig>,
    pub(super) queue: Option<QueueConfig>,
    pub(super) listeners: Vec<ListenerDraft>,
    pub(super) sessions: Option<SessionConfig>,
    pub(super) users: Vec<UserDraft>,
    pub(super) groups: Vec<GroupDraft>,
    pub(super) anonymous: Option<AnonymousDraft>,
    /// `[broker.jwt]`, without the rights of groups.
    pub(super) tokens: Option<(Option<TokenConfig>, Spot)>,
    pub(super) sys_interval: Option<Duration>,
    pub(super) limits: Option<LimitsConfig>,
    pub(super) uplinks: Vec<UplinkDraft>,
    pub(super) lines: Vec<LineDraft>,
    pub(super) models: Vec<(String, Spot)>,
    pub(super) modbus: Vec<ModbusDraft>,
    pub(super) serial: Vec<SerialDraft>,
    /// `[board]`
    pub(super) board: Option<BoardDraft>,
    /// Where the status page is served; `None` = nowhere.
    pub(super) web: Option<WebDraft>,
}

/// `[broker.listener.<name>]`
#[derive(Debug)]
pub(super) struct ListenerDraft {
    pub(super) name: Arc<str>,
    pub(super) bind: Option<At<ListenerAddress>>,
    /// Where these keys stand, when they are written.
    pub(super) tls: Option<Spot>,
    pub(super) cert: Option<Spot>,
    pub(super) key: Option<Spot>,
    pub(super) client_ca: Option<Spot>,
    pub(super) client_crl: Option<Spot>,
    pub(super) client_auth: Option<Spot>,
    pub(super) mode: Option<Spot>,
    pub(super) plaintext: Option<At<bool>>,
    pub(super) config: Option<ListenerConfig>,
}

/// `[broker.user.<name>]`
#[derive(Debug)]
pub(super) struct UserDraft {
    pub(super) name: Arc<str>,
    pub(super) spot: Spot,
    pub(super) password: Option<PasswordHash>,
    /// These are written, right or wrong.
    pub(super) has_password: bool,
    pub(super) has_certificate: bool,
    pub(super) certificate: Option<At<CertificateName>>,
    pub(super) by_token: bool,
    pub(super) groups: Vec<At<String>>,
    /// His own, without those of his groups.
    pub(super) rights: Option<TopicRights>,
}

/// `[web]`
#[derive(Debug)]
pub(super) struct WebDraft {
    pub(super) bind: Option<At<SocketAddr>>,
    pub(super) tls: Option<Spot>,
    pub(super) cert: Option<Spot>,
    pub(super) key: Option<Spot>,
    pub(super) config: Option<WebConfig>,
}

/// `[broker.group.<name>]`
#[derive(Debug)]
pub(super) struct GroupDraft {
    pub(super) name: Arc<str>,
    pub(super) spot: Spot,
    pub(super) rights: Option<TopicRights>,
}

/// `[broker.anonymous]`
#[derive(Debug)]
pub(super) struct AnonymousDraft {
    pub(super) spot: Spot,
    pub(super) rights: Option<TopicRights>,
}

/// `[uplink.<name>]`
#[derive(Debug)]
pub(super) struct UplinkDraft {
    pub(super) name: Arc<str>,
    pub(super) spot: Spot,
    /// Where each key stands that is written.
    pub(super) places: Vec<(&'static str, Spot)>,
    pub(super) endpoints: Vec<At<Endpoint>>,
    pub(super) client_id: Option<At<String>>,
    /// Where these keys stand, when they are written.
    pub(super) ca: Option<Spot>,
    pub(super) cert: Option<Spot>,
    pub(super) key: Option<Spot>,
    pub(super) alpn: Option<Spot>,
    pub(super) username: Option<Spot>,
    pub(super) password_file: Option<Spot>,
    pub(super) forward: Vec<(Option<ForwardRule>, Spot)>,
    pub(super) receive: Vec<(Option<ReceiveRule>, Spot)>,
    pub(super) config: Option<UplinkConfig>,
}

impl UplinkDraft {
    /// Where a key stands, or else the table.
    pub(super) fn place(&self, key: &str) -> Spot {
        self.written(key).unwrap_or(self.spot)
    }

    /// Where a key stands, when it is written.
    pub(super) fn written(&self, key: &str) -> Option<Spot> {
        self.places.iter().find(|(name, _)| *name == key).map(|(_, spot)| *spot)
    }
}

/// `[line.<name>]`, or a url in the place of its name.
#[derive(Debug)]
pub(super) struct LineDraft {
    pub(super) name: Arc<str>,
    /// Where its port or url stands.
    pub(super) spot: Spot,
    pub(super) is_in_place: bool,
    pub(super) config: Option<LineConfig>,
}

/// `[modbus.<name>]`
#[derive(Debug)]
pub(super) struct ModbusDraft {
    pub(super) name: Arc<str>,
    pub(super) spot: Spot,
    pub(super) line: Option<At<Arc<str>>>,
    pub(super) unit_id: Option<At<u8>>,
    pub(super) model: Option<At<String>>,
    pub(super) topic: Option<At<String>>,
    /// Each point that has a name, with its place.
    pub(super) point_names: Vec<(Arc<str>, Spot)>,
    /// The device's own deadline, or its model's.
    pub(super) timeout: Option<Duration>,
    /// With the line's timeout still to be filled in.
    pub(super) config: Option<ModbusConfig>,
}

/// `[serial.<name>]`
#[derive(Debug)]
pub(super) struct SerialDraft {
    pub(super) name: Arc<str>,
    pub(super) spot: Spot,
    pub(super) port: Option<At<PathBuf>>,
    pub(super) topic: Option<At<String>>,
    pub(super) point_names: Vec<(Arc<str>, Spot)>,
    pub(super) command_names: Vec<(Arc<str>, Spot)>,
    pub(super) config: Option<SerialConfig>,
}

/// `[board]`
#[derive(Debug)]
pub(super) struct BoardDraft {
    pub(super) name: Arc<str>,
    pub(super) spot: Spot,
    pub(super) topic: Option<At<String>>,
    pub(super) point_names: Vec<(Arc<str>, Spot)>,
    pub(super) config: Option<BoardConfig>,
}

/// What all kinds of devices have.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeviceDraft<'d> {
    pub(super) name: &'d Arc<str>,
    pub(super) spot: Spot,
    pub(super) topic: Option<&'d At<String>>,
    pub(super) point_names: &'d [(Arc<str>, Spot)],
}

impl Draft {
    /// Every device that readings come from.
    pub(super) fn devices(&self) -> impl Iterator<Item = DeviceDraft<'_>> {
        let modbus = self.modbus.iter().map(|it| device(&it.name, it.spot, it.topic.as_ref(), &it.point_names));
        let serial = self.serial.iter().map(|it| device(&it.name, it.spot, it.topic.as_ref(), &it.point_names));
        let board = self.board.iter().map(|it| device(&it.name, it.spot, it.topic.as_ref(), &it.point_names));
        modbus.chain(serial).chain(board)
    }
}

fn device<'d>(
    name: &'d Arc<str>,
    spot: Spot,
    topic: Option<&'d At<String>>,
    point_names: &'d [(Arc<str>, Spot)],
) -> DeviceDraft<'d> {
    DeviceDraft { name, spot, topic, point_names }
}

/// The state directory alone, for whoever asks the running gateway: whatever else is wrong is no affair of his.
pub(super) fn state_dir(walk: &mut Walk, root: &Tree) -> Option<PathBuf> {
    let empty = Tree::default();
    let (tree, spot) = section(root, "gateway", &empty);
    let reader = Reader::open(walk, tree, &keys::GATEWAY, spot);
    state_dir_of(walk, &reader)
}

/// `[gateway]`, and what the placeholders stand for: needed before anything else is read.
pub(super) fn gateway(
    walk: &mut Walk,
    root: &Tree,
    board: &Found,
    kept_id: Option<&KeptId>,
) -> (Option<GatewayConfig>, Words) {
    let empty = Tree::default();
    let (tree, spot) = section(root, "gateway", &empty);
    let reader = Reader::open(walk, tree, &keys::GATEWAY, spot);
    let state_dir = state_dir_of(walk, &reader);
    let clock = reader.choice(
        walk,
        "clock",
        &[("auto", ClockSource::TimeService), ("trust", ClockSource::Trusted)],
        &["chrony", "gps"],
    );
    let clock_mark = reader.text(walk, "clock_mark");
    let clock_mark = clock_mark.and_then(|text| walk.path("clock_mark", &text)).map(|path| path.value);
    let written = reader.leaf(walk, "id", |node| {
        let id = super::walk::text(node)?;
        name_fault(id).map(|()| id.to_owned())
    });
    let (id, id_source) = if reader.has("id") {
        // A wrong id was noted; the templates are read with something in its place.
        (written.map(|id| id.value), FROM_CONFIGURATION)
    } else if let Some(kept) = state_dir.as_deref().and_then(|directory| kept_id.and_then(|kept| kept(directory))) {
        (Some(kept), "the state directory")
    } else {
        if board.id.is_none() {
            let help = "write [gateway] id = \"…\": this board has no serial number, network card or machine id";
            walk.findings.problem(spot, "this gateway has no id", Some(help.to_owned()));
        }
        (board.id.clone(), board.source)
    };
    let words = Words {
        gateway: Arc::from(id.clone().unwrap_or_else(|| "gateway".to_owned())),
        board_serial: board.board_serial.clone(),
        hostname: board.hostname.clone(),
    };
    let config = match (id, state_dir, clock) {
        (Some(id), Some(state_dir), Some(clock)) => {
            Some(GatewayConfig { id: Arc::from(id), id_source, state_dir, clock: clock.value, clock_mark })
        }
        _ => None,
    };
    (config, words)
}

/// Everything but `[gateway]`.
pub(super) fn draft(walk: &mut Walk, root: &Tree, gateway: Option<GatewayConfig>, words: &Words) -> Draft {
    let top = Reader::open(walk, root, &keys::ROOT, Spot { source: 0, start: 0, end: 0 });
    let mut draft = Draft {
        gateway,
        queue: queue(walk, root),
        listeners: Vec::new(),
        sessions: None,
        users: Vec::new(),
        groups: Vec::new(),
        anonymous: None,
        tokens: None,
        sys_interval: None,
        limits: None,
        uplinks: Vec::new(),
        lines: Vec::new(),
        models: Vec::new(),
        modbus: Vec::new(),
        serial: Vec::new(),
        board: None,
        web: None,
    };
    // A section that is not a table is noted by whoever asks for it first.
    if let Some(Node { spot, value }) = root.get("gateway").map(|entry| &entry.node)
        && !matches!(value, Written::Table(_))
    {
        walk.wrong(*spot, "gateway", super::walk::wrong_kind("a table", value));
    }
    let (empty, nowhere) = (Tree::default(), Spot { source: 0, start: 0, end: 0 });
    let mut session = (&empty, nowhere);
    let (tree, spot) = top.table(walk, "broker").unwrap_or((&empty, nowhere));
    let reader = Reader::open(walk, tree, &keys::BROKER, spot);
    for (name, tree, spot) in reader.named(walk, "listener") {
        draft.listeners.push(listener::read(walk, name, tree, spot));
    }
    for (name, tree, spot) in reader.named(walk, "user") {
        draft.users.push(user::user(walk, name, tree, spot));
    }
    for (name, tree, spot) in reader.named(walk, "group") {
        draft.groups.push(user::group(walk, name, tree, spot));
    }
    if let Some((tree, spot)) = reader.table(walk, "anonymous") {
        draft.anonymous = Some(user::anonymous(walk, tree, spot));
    }
    if let Some((tree, spot)) = reader.table(walk, "jwt") {
        draft.tokens = Some((token::read(walk, tree, spot), spot));
    }
    let limits = reader.table(walk, "limits").unwrap_or((&empty, nowhere));
    session = reader.table(walk, "session").unwrap_or(session);
    let sys_interval = reader.duration(walk, "sys_interval", Duration::ZERO, Duration::from_secs(86_400));
    if let Some(at) = sys_interval.as_ref().filter(|at| at.value.subsec_nanos() != 0) {
        walk.wrong(at.spot, "sys_interval", Wrong::new("must be whole seconds, or \"0s\" for never"));
    }
    draft.sys_interval = sys_interval.map(|interval| interval.value);
    draft.sessions = sessions(walk, session.0, session.1);
    draft.limits = limits::read(walk, limits.0, limits.1);
    for (name, tree, spot) in top.named(walk, "uplink") {
        draft.uplinks.push(uplink::read(walk, name, tree, spot, words));
    }
    for (name, tree, spot) in top.named(walk, "line") {
        draft.lines.push(line(walk, name, tree, spot));
    }
    let models = read_models(walk, &top, words);
    for (name, tree, spot) in top.named(walk, "modbus") {
        let device = modbus::read(walk, name, tree, spot, &models, &mut draft.lines, words);
        draft.modbus.push(device);
    }
    draft.models = models.into_iter().map(|model| (model.name, model.spot)).collect();
    for (name, tree, spot) in top.named(walk, "serial") {
        draft.serial.push(serial::read(walk, name, tree, spot, words));
    }
    if let Some((tree, spot)) = top.table(walk, "board") {
        draft.board = Some(gauge::read(walk, tree, spot, words));
    }
    if let Some((tree, spot)) = top.table(walk, "web") {
        draft.web = Some(web::read(walk, tree, spot));
    }
    draft
}

/// A section of the top; an empty one where it is not written.
fn section<'t>(root: &'t Tree, key: &str, empty: &'t Tree) -> (&'t Tree, Spot) {
    match root.get(key) {
        Some(Entry { key, node: Node { value: Written::Table(tree), .. } }) => (tree, *key),
        _ => (empty, Spot { source: 0, start: 0, end: 0 }),
    }
}

fn queue(walk: &mut Walk, root: &Tree) -> Option<QueueConfig> {
    let empty = Tree::default();
    let (tree, spot) = section(root, "queue", &empty);
    if let Some(Node { spot, value }) = root.get("queue").map(|entry| &entry.node)
        && !matches!(value, Written::Table(_))
    {
        walk.wrong(*spot, "queue", super::walk::wrong_kind("a table", value));
        return None;
    }
    let reader = Reader::open(walk, tree, &keys::QUEUE, spot);
    let bytes_max = reader.size(walk, "max_bytes", 64 << 10, 1 << 44);
    let age_max = reader.duration(walk, "max_age", Duration::from_secs(1), LONG * 10);
    let keep = reader.duration(walk, "keep_delivered", Duration::from_secs(1), LONG * 10);
    let when_full = when_full(walk, &reader);
    let is_kept = reader.has("keep_delivered");
    let is_spare = reader.choice(walk, "flash", &[("always", false), ("spare", true)], &[]);
    let hold = reader.duration(walk, "hold", Duration::from_millis(10), Duration::from_secs(60));
    if let Some(keep) = keep.as_ref().filter(|_| is_kept && is_spare.as_ref().is_some_and(|is_spare| is_spare.value)) {
        let wrong = Wrong::new("keeps nothing with flash = \"spare\": what the cloud takes at once is never written");
        walk.wrong(keep.spot, "keep_delivered", wrong.help("take one of the two out"));
    }
    Some(QueueConfig {
        bytes_max: NonZeroU64::new(bytes_max?.value)?,
        age_max: if reader.has("max_age") { Some(age_max?.value) } else { None },
        keep: if is_kept { Some(keep?.value) } else { None },
        when_full: when_full?.value,
        hold: hold.filter(|_| is_spare.as_ref().is_some_and(|is_spare| is_spare.value)).map(|hold| hold.value),
    })
}

fn when_full(walk: &mut Walk, reader: &Reader<'_>) -> Option<At<WhenFull>> {
    let choices =
        [("drop-oldest", WhenFull::DropOldest), ("drop-newest", WhenFull::DropNewest), ("refuse", WhenFull::Refuse)];
    reader.choice(walk, "when_full", &choices, &[])
}

fn qos(walk: &mut Walk, reader: &Reader<'_>) -> Option<At<Qos>> {
    let level = reader.integer(walk, "qos", 0, 2)?;
    let value = u8::try_from(level.value).ok().and_then(Qos::from_level)?;
    Some(At { value, spot: level.spot, is_default: level.is_default })
}

fn sessions(walk: &mut Walk, tree: &Tree, spot: Spot) -> Option<SessionConfig> {
    let reader = Reader::open(walk, tree, &keys::SESSION, spot);
    let bytes_max = reader.size(walk, "max_bytes", 64 << 10, 1 << 34);
    let expiry = reader.duration(walk, "expiry", Duration::from_secs(1), LONG);
    Some(SessionConfig { bytes_max: bytes_max?.value, expiry: expiry?.value })
}

/// The settings of a serial port: of a line, or of a device that speaks by itself.
fn port(walk: &mut Walk, reader: &Reader<'_>) -> (Option<At<PathBuf>>, Option<PortConfig>) {
    let path = reader.text(walk, "port").and_then(|text| {
        if text.value.starts_with('/') && !text.value.contains('\0') {
            return Some(At { value: PathBuf::from(text.value), spot: text.spot, is_default: false });
        }
        let wrong = Wrong::new(format!("{:?} is not the path of a serial port", text.value))
            .help("write \"/dev/serial/by-id/…\": such a name stays when the cable is plugged in elsewhere");
        walk.wrong(text.spot, "port", wrong);
        None
    });
    let baud = reader.integer(walk, "baud", 50, 4_000_000);
    let mode = reader.leaf(walk, "mode", |node| units::serial_mode(super::walk::text(node)?));
    let dtr = reader.truth(walk, "dtr");
    let rts = reader.truth(walk, "rts");
    let rs485 = serial::rs485(walk, reader);
    for (key, is_read) in [("dtr", dtr.is_some()), ("rts", rts.is_some())] {
        if reader.has(key) && !is_read {
            return (path, None);
        }
    }
    if let Some(path) = &path
        && let Some(warning) = serial::unstable(&path.value)
    {
        walk.findings.warning(path.spot, warning, Some(serial::STABLE_HELP.to_owned()));
    }
    let config = (|| {
        let baud = NonZeroU32::new(u32::try_from(baud?.value).ok()?)?;
        let (dtr, rts) = (dtr.map(|at| at.value), rts.map(|at| at.value));
        let port = PortConfig::new(path.as_ref()?.value.clone(), baud, mode?.value);
        Some(PortConfig { dtr, rts, rs485: rs485?, ..port })
    })();
    (path, config)
}

fn line(walk: &mut Walk, name: &str, tree: &Tree, spot: Spot) -> LineDraft {
    let reader = Reader::open(walk, tree, &keys::LINE, spot);
    let (_, serial) = port(walk, &reader);
    let network = reader.leaf(walk, "url", |node| line_url(super::walk::text(node)?));
    let kind = match (reader.has("port"), reader.has("url")) {
        (true, true) => {
            let help = "a line is a serial port or a connection: keep one of the two".to_owned();
            walk.findings.problem(reader.spot_of("url"), "this line has both `port` and `url`", Some(help));
            None
        }
        (false, false) => {
            if !walk.is_partial {
                let help = "write `port = \"/dev/…\"` or `url = \"tcp://host:502\"`".to_owned();
                walk.findings.problem(spot, "this line has neither `port` nor `url`", Some(help));
            }
            None
        }
        (true, false) => serial.map(LineKind::Rtu),
        (false, true) => {
            for key in ["baud", "mode", "dtr", "rts", "rs485"] {
                if reader.has(key) {
                    let what = format!("`{key}` is for serial ports, and this line has a url");
                    walk.findings.problem(reader.spot_of(key), what, None);
                }
            }
            network.map(|at| at.value)
        }
    };
    let framings = [("rtu", SerialFraming::Rtu), ("ascii", SerialFraming::Ascii)];
    let framing = reader.choice(walk, "framing", &framings, &[]);
    if reader.has("framing") && matches!(kind, Some(LineKind::Tcp { .. })) {
        let what = "`framing` is for serial lines and rtu-tcp://; Modbus TCP has its own";
        walk.findings.problem(reader.spot_of("framing"), what, None);
    }
    let pacing = pacing(walk, &reader);
    let share = share::read(walk, &reader);
    let config = (|| {
        let line = pacing?.line(kind?);
        Some(LineConfig { framing: framing?.value, share: share?, ..line })
    })();
    let place = if reader.has("port") { reader.spot_of("port") } else { reader.spot_of("url") };
    LineDraft { name: Arc::from(name), spot: place, is_in_place: false, config }
}

/// Deadline and pauses of a line.
struct Pacing {
    timeout: Duration,
    pause: Duration,
    connect_pause: Duration,
}

fn pacing(walk: &mut Walk, reader: &Reader<'_>) -> Option<Pacing> {
    let minute = Duration::from_secs(60);
    let timeout = reader.duration(walk, "timeout", Duration::from_millis(10), minute);
    let pause = reader.duration(walk, "pause", Duration::ZERO, minute);
    let connect_pause = reader.duration(walk, "connect_pause", Duration::ZERO, minute);
    Some(Pacing { timeout: timeout?.value, pause: pause?.value, connect_pause: connect_pause?.value })
}

impl Pacing {
    fn line(self, kind: LineKind) -> LineConfig {
        let Pacing { timeout, pause, connect_pause } = self;
        LineConfig { pause, connect_pause, ..LineConfig::new(kind, timeout) }
    }
}

/// `tcp://host:502` or `rtu-tcp://host:port`.
pub(super) fn line_url(text: &str) -> Result<LineKind, Wrong> {
    const HELP: &str = "write \"tcp://host:502\" for Modbus TCP, \"rtu-tcp://host:port\" for RTU frames over TCP";
    let url = units::url(text).map_err(|wrong| if wrong.help.is_none() { wrong.help(HELP) } else { wrong })?;
    // Names of hosts know no case (RFC 4343): two spellings are one connection.
    let host = url.host.to_lowercase();
    match url.scheme {
        "tcp" => Ok(LineKind::Tcp { host, port: url.port.unwrap_or(502) }),
        "rtu-tcp" => match url.port {
            Some(port) => Ok(LineKind::RtuOverTcp { host, port }),
            None => Err(Wrong::new("the port is missing").help("converters choose their own: \"rtu-tcp://host:4001\"")),
        },
        other => Err(Wrong::new(format!("{other:?} is not a kind of line")).help(HELP)),
    }
}

/// The name of a line that was written in place: equal ones are one line.
fn line_name(kind: &LineKind) -> Option<String> {
    let authority = |host: &str, port: u16| {
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    };
    match kind {
        LineKind::Tcp { host, port } => Some(format!("tcp://{}", authority(host, *port))),
        LineKind::RtuOverTcp { host, port } => Some(format!("rtu-tcp://{}", authority(host, *port))),
        LineKind::Rtu(_) => None,
    }
}

/// Fills the placeholders that are known at load; others are wrong.
fn fill(walk: &mut Walk, key: &str, text: &At<String>, words: &Words) -> Option<String> {
    let mut result = String::new();
    let mut rest = text.value.as_str();
    while let Some((before, after)) = rest.split_once('{') {
        result.push_str(before);
        let Some((name, after)) = after.split_once('}') else {
            walk.wrong(text.spot, key, Wrong::new("a brace { is not closed"));
            return None;
        };
        rest = after;
        let word = match name {
            "gateway" => Some(words.gateway.as_ref()),
            "board_serial" => words.board_serial.as_deref(),
            "hostname" => words.hostname.as_deref(),
            "cert.cn" => {
                let wrong = Wrong::new("the placeholder {cert.cn} is not served by this version")
                    .help("write the common name itself, or {gateway}, {board_serial}, {hostname}");
                walk.wrong(text.spot, key, wrong);
                return None;
            }
            _ => {
                let wrong = Wrong::new(format!("the placeholder {{{name}}} is not known here"))
                    .help("there are {gateway}, {board_serial} and {hostname}");
                walk.wrong(text.spot, key, wrong);
                return None;
            }
        };
        let Some(word) = word else {
            let wrong = Wrong::new(format!("this board has nothing to put for {{{name}}}"))
                .help("write {gateway}, with `id` in [gateway]");
            walk.wrong(text.spot, key, wrong);
            return None;
        };
        result.push_str(word);
    }
    result.push_str(rest);
    Some(result)
}

/// A device's topic: `{gateway}` is filled in, `{device}` and `{point}` stay.
fn point_topic(walk: &mut Walk, reader: &Reader<'_>, words: &Words) -> Option<At<String>> {
    reader.leaf(walk, "topic", |node| {
        let text = super::walk::text(node)?.replace("{gateway}", &words.gateway);
        let sample = text.replace("{device}", "d").replace("{point}", "p");
        if let Some((_, after)) = sample.split_once('{') {
            let name = after.split('}').next().unwrap_or_default();
            return Err(Wrong::new(format!("the placeholder {{{name}}} is not known here"))
                .help("there are {device}, {point} and {gateway}"));
        }
        crate::message::Topic::new(&sample).map_err(|error| Wrong::new(error.to_string()))?;
        if is_reserved(&sample) {
            return Err(Wrong::new("topics that start with `tidegate/` or `$` are the gateway's own")
                .help("readings stand under \"field/{device}/{point}\" by default"));
        }
        Ok(text)
    })
}

fn state_dir_of(walk: &mut Walk, reader: &Reader<'_>) -> Option<PathBuf> {
    let text = reader.text(walk, "state_dir")?;
    // Like every other path, one that is not from the root is taken from the file that names it; the dot says that this
    // was meant.
    if ["/", "./", "../"].iter().any(|start| text.value.starts_with(start)) {
        return walk.path("state_dir", &text).map(|path| path.value);
    }
    let wrong = Wrong::new("must be a path from the root, \"/var/lib/tidegate\", or start with \"./\"");
    walk.wrong(text.spot, "state_dir", wrong);
    None
}

/// A file that must be there, be a file, and be readable; a secret one by nobody else.
fn file(walk: &mut Walk, reader: &Reader<'_>, key: &'static str, is_secret: bool) -> Option<At<PathBuf>> {
    let text = reader.text(walk, key)?;
    file_of(walk, key, &text, is_secret)
}

/// One such file or a list of them.
fn files(walk: &mut Walk, reader: &Reader<'_>, key: &'static str) -> Option<Vec<PathBuf>> {
    let texts = reader.texts(walk, key)?;
    // All of them are looked at, so that each that is wrong is told.
    let files: Vec<Option<At<PathBuf>>> = texts.iter().map(|text| file_of(walk, key, text, false)).collect();
    files.into_iter().map(|file| file.map(|file| file.value)).collect()
}

fn file_of(walk: &mut Walk, key: &'static str, text: &At<String>, is_secret: bool) -> Option<At<PathBuf>> {
    use std::os::unix::fs::PermissionsExt as _;
    /// No certificate or key is larger.
    const BYTES_MAX: u64 = 1 << 20;

    let path = walk.path(key, text)?;
    let shown = path.value.display();
    // Its kind is looked at before it is opened: to open a pipe would wait for a writer.
    let wrong = match std::fs::metadata(&path.value) {
        Err(error) => {
            let wrong = Wrong::new(format!("cannot read {shown}: {}", io_words(&error)));
            Some(match error.kind() {
                std::io::ErrorKind::NotFound => wrong.help(PUT_IT_THERE),
                _ => wrong,
            })
        }
        Ok(metadata) if !metadata.is_file() => Some(Wrong::new(format!("{shown} is not a file"))),
        Ok(metadata) if metadata.len() == 0 => Some(Wrong::new(format!("{shown} is empty"))),
        Ok(metadata) if metadata.len() > BYTES_MAX => Some(Wrong::new(format!("{shown} is larger than 1 MiB"))),
        // The group may read: the service's own group is how a key is given to it.
        Ok(metadata) if is_secret && metadata.permissions().mode() & 0o027 != 0 => {
            let mode = metadata.permissions().mode() & 0o777;
            Some(
                Wrong::new(format!("others can read or change {shown} (mode {mode:03o})"))
                    .help(format!("chmod u=rw,g=r,o= {shown}")),
            )
        }
        Ok(_) => match std::fs::File::open(&path.value) {
            Ok(_) => None,
            Err(error) => Some(
                Wrong::new(format!("cannot read {shown}: {}", io_words(&error)))
                    .help("the user `tidegate` must be able to read it"),
            ),
        },
    };
    match wrong {
        Some(wrong) => {
            walk.wrong(path.spot, key, wrong);
            None
        }
        None => Some(path),
    }
}

/// The help for a file that is named and not there.
pub(super) const PUT_IT_THERE: &str = "put the file there, or name where it is";

/// An error of the system in lower case and without its number: the same words on every machine.
pub(super) fn io_words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "it does not exist".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        std::io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        std::io::ErrorKind::NotADirectory => "a part of the path is not a directory".to_owned(),
        _ => error.to_string(),
    }
}
