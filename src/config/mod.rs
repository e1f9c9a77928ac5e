//! The configuration, valid by type: what the other rooms may rely on.
//!
//! `load` finds the layers and calls the others in turn: `tree` is what was written, with the place of each key;
//! `walk` reads one leaf after the other and knows no keys but those of `keys`; `file` makes a draft of it; `check`
//! applies the rules that join two keys; `report` prints a problem at its place. What comes out is this `Config`: no
//! text left to parse, no limit unset. `run` and `check` call the same code.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::ClockSource;
use crate::message::{Filter, Qos};

pub use access::{CertificateName, PasswordHash, TopicPattern, TopicRights, UserConfig};
pub use effective::{name as toml_key, quoted as toml_text};
pub use examples::{examples, reference};
pub use gauge::{BOARD, BoardConfig, BoardPoint, Gauge};
pub use http::{HmacConfig, HttpConfig, HttpKind};
pub use load::{KeptId, LoadRequest, Loaded, TlsPlaces, load, serial_device, state_dir};
pub use modbus::{
    AddressRange, BitRange, Deadband, Meaning, ModbusConfig, ModbusPoint, PointKind, PointTopic, Report, RequestLimits,
    Table, WordOrder, Write, WriteFunction,
};
pub use payload::{
    Compression, Field, Form, Frame, Part, Payload, PayloadTemplate, PayloadTemplateError, TEMPLATE_BYTES_MAX,
};
pub use report::{Mark, Place, Problem, render};
pub use serial::{
    Ask, ByteOrder, BytesField, Checksum, ChecksumForm, ChecksumKind, CommandValue, Counts, Ending, Escape, Flow,
    FrameConfig, LengthField, Parity, Parse, PortConfig, Rs485, SerialCommand, SerialConfig, SerialMode, SerialPoint,
    TextKind,
};
pub use table::points_table;
pub use template::{TemplateError, TopicTemplate};
pub use tokens::{PublicKey, TokenConfig, TokenKey};

mod load;

pub mod keys;

pub mod clouds;

mod tree;

mod walk;

mod units;

mod access;

mod tokens;

mod file;

mod modbus;

mod serial;

mod gauge;

mod check;

mod effective;

mod table;

pub mod report;

pub mod board;

pub mod template;

pub mod answers;
pub mod payload;

mod http;

mod examples;

pub mod describe;

pub mod schema;

/// The stream in the queue by which writes go to field devices; no uplink may have its name.
pub const WRITES_STREAM: &str = "field";

/// Reads a duration as the configuration writes it: `"5s"`, `"10min"`. The error is for a person.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    units::duration(text).map_err(in_one_line)
}

/// Reads a serial mode as the configuration writes it: `"8E1"`. The error is for a person.
pub fn parse_serial_mode(text: &str) -> Result<SerialMode, String> {
    units::serial_mode(text).map_err(in_one_line)
}

/// Reads an address as the configuration writes it: `holding:100`, `40101`. The error is for a person.
pub fn parse_address(text: &str, base: u16) -> Result<(Table, u16), String> {
    units::address(text, base).map_err(in_one_line)
}

/// Reads the url of a line as the configuration writes it. The error is for a person.
pub fn parse_line_url(text: &str) -> Result<LineKind, String> {
    file::line_url(text).map_err(in_one_line)
}

/// Reads a hash as the configuration writes it. The error is for a person.
pub fn parse_password_hash(text: &str) -> Result<PasswordHash, String> {
    PasswordHash::parse(text).map_err(in_one_line)
}

/// Reads a pattern of topics as the configuration writes it. The error is for a person.
pub fn parse_topic_pattern(text: &str) -> Result<TopicPattern, String> {
    TopicPattern::parse(text).map_err(in_one_line)
}

/// Says why `name` cannot be the name of a user, a device, an uplink. The error is for a person.
pub fn check_name(name: &str) -> Result<(), String> {
    walk::name_fault(name).map_err(in_one_line)
}

/// A duration as the configuration would write it.
pub fn duration_text(duration: Duration) -> String {
    units::duration_text(duration)
}

fn in_one_line(wrong: units::Wrong) -> String {
    match wrong.help {
        Some(help) => format!("{}; {help}", wrong.what),
        None => wrong.what,
    }
}

/// The whole configuration of one gateway.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[gateway]`
    pub gateway: GatewayConfig,
    /// `[queue]`
    pub queue: QueueConfig,
    /// `[broker]`
    pub broker: BrokerConfig,
    /// `[uplink.<name>]`, by name.
    pub uplinks: BTreeMap<Arc<str>, UplinkConfig>,
    /// Every line, named or written in place, by name; a line written in place is named by its url.
    pub lines: BTreeMap<Arc<str>, LineConfig>,
    /// `[modbus.<name>]`, by device name.
    pub modbus: BTreeMap<Arc<str>, ModbusConfig>,
    /// `[serial.<name>]`, by device name.
    pub serial: BTreeMap<Arc<str>, SerialConfig>,
    /// `[board]`: what is read of the board itself; `None` = nothing.
    pub board: Option<BoardConfig>,
    /// `[web]`: where the status page is served, and to whom; `None` = nowhere.
    pub web: Option<WebConfig>,
}

/// `[web]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebConfig {
    /// Where it is served; elsewhere than on loopback only with TLS and users.
    pub bind: SocketAddr,
    /// `None` = in the clear.
    pub tls: Option<ListenerTls>,
    /// Who may see it, by name, and what his password is compared with; none = whoever is on this machine.
    pub users: BTreeMap<Arc<str>, PasswordHash>,
}

/// `[gateway]`
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Name of this gateway in ids, topics and client ids: as written, else as found on the board (DESIGN.md 5).
    pub id: Arc<str>,
    /// Where `id` comes from, in words for the log: "the configuration", "the board's serial number", …
    pub id_source: &'static str,
    /// The one directory that is written to.
    pub state_dir: PathBuf,
    /// Whom to believe about the wall clock: `clock = "auto" | "trust"`.
    pub clock: ClockSource,
    /// A file that the time service touches at each synchronisation; `None` = that of systemd-timesyncd.
    pub clock_mark: Option<PathBuf>,
}

/// `[queue]`
#[derive(Debug, Clone)]
pub struct QueueConfig {
    /// The soft ceiling of the store (DESIGN.md 6.1).
    pub bytes_max: NonZeroU64,
    /// What is older is dropped and declared; `None` = kept until delivered.
    pub age_max: Option<Duration>,
    /// `keep_delivered`: for so long what the cloud has acknowledged is kept, while there is room; `None` = it goes.
    pub keep: Option<Duration>,
    /// What gives way when the ceiling is reached.
    pub when_full: WhenFull,
    /// `flash = "spare"`: how long a message may wait in memory for the cloud; `None` = it is written first.
    pub hold: Option<Duration>,
}

/// What gives way when the store is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// The oldest messages, declared as a gap. A full queue never stops the plant.
    DropOldest,
    /// The message that arrives.
    DropNewest,
    /// Nothing: the publisher keeps its message and waits.
    Refuse,
}

/// `[broker]`
#[derive(Debug, Clone, Default)]
pub struct BrokerConfig {
    /// `[broker.listener.<name>]`, by name; the default one on 127.0.0.1:1883 only where none is written.
    pub listeners: BTreeMap<Arc<str>, ListenerConfig>,
    /// `[broker.session]`
    pub sessions: SessionConfig,
    /// How often the `$SYS` tree is published; zero = never.
    pub sys_interval: Duration,
    /// Who may do what.
    pub access: AccessConfig,
    /// `[broker.limits]`
    pub limits: LimitsConfig,
}

/// `[broker.user.<name>]` and `[broker.anonymous]`, their groups merged in. The default lets everybody on this machine do
/// everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccessConfig {
    /// `[broker.user.<name>]`, by name.
    pub users: BTreeMap<Arc<str>, UserConfig>,
    /// `[broker.anonymous]`: what whoever has no name may do on this machine. `None`: everything while there are no users,
    /// nothing otherwise.
    pub anonymous: Option<TopicRights>,
    /// `[broker.jwt]`: whose tokens are as good as a password; `None` = nobody's.
    pub tokens: Option<TokenConfig>,
}

/// `[broker.limits]`: what clients may take of the board. The defaults suit one with 512 MB of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Sockets at once, of all listeners.
    pub connections: usize,
    /// Sockets at once from one address that is not on this machine.
    pub connections_per_address: usize,
    /// Sockets at once that have not sent their CONNECT.
    pub handshakes: usize,
    /// For TLS and WebSocket.
    pub handshake_time: Duration,
    /// From there to a whole CONNECT.
    pub connect_time: Duration,
    /// Longest packet.
    pub packet_bytes: usize,
    /// Longest topic or filter.
    pub topic_bytes: usize,
    /// Most levels of a topic or filter.
    pub topic_levels: usize,
    /// Filters of one session.
    pub subscriptions: usize,
    /// QoS 1 and 2 messages from a client that are not acknowledged yet.
    pub receive_maximum: u16,
    /// QoS 1 and 2 messages to a client that it has not acknowledged.
    pub in_flight: u16,
    /// PUBLISH packets of one client, and their bytes; what is more waits in its socket.
    pub rate: Pace,
    /// What may wait in memory for all live subscribers together, and what all sessions have in hand.
    pub live_bytes: usize,
}

impl Default for LimitsConfig {
    fn default() -> LimitsConfig {
        LimitsConfig {
            connections: 1000,
            connections_per_address: 100,
            handshakes: 200,
            handshake_time: Duration::from_secs(10),
            connect_time: Duration::from_secs(5),
            packet_bytes: 256 << 10,
            topic_bytes: 1024,
            topic_levels: 64,
            subscriptions: 256,
            receive_maximum: 128,
            in_flight: 100,
            rate: Pace::default(),
            live_bytes: 32 << 20,
        }
    }
}

/// `[broker.session]`: bounds of sessions that outlive their sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionConfig {
    /// What may wait for one client.
    pub bytes_max: u64,
    /// How long a session is kept while its client is away, at most.
    pub expiry: Duration,
}

impl Default for SessionConfig {
    fn default() -> SessionConfig {
        SessionConfig { bytes_max: 16 << 20, expiry: Duration::from_secs(7 * 86_400) }
    }
}

/// `[broker.listener.<name>]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Where it listens.
    pub bind: ListenerAddress,
    /// What carries the MQTT packets.
    pub transport: ListenerTransport,
    /// TLS in front of all else; `None` = plain.
    pub tls: Option<ListenerTls>,
}

/// A plain listener, without anything else written.
impl From<SocketAddr> for ListenerConfig {
    fn from(address: SocketAddr) -> ListenerConfig {
        let bind = ListenerAddress::Network(address);
        ListenerConfig { bind, transport: ListenerTransport::Mqtt, tls: None }
    }
}

/// `bind` of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerAddress {
    /// `"127.0.0.1:1883"`
    Network(SocketAddr),
    /// `"unix:/run/tidegate/mqtt.sock"`
    Unix {
        /// The socket's path, absolute.
        path: PathBuf,
        /// Who may connect, as permissions of the socket.
        mode: u32,
    },
}

impl fmt::Display for ListenerAddress {
    fn fmt(&self, into: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenerAddress::Network(address) => write!(into, "{address}"),
            ListenerAddress::Unix { path, .. } => write!(into, "unix:{}", path.display()),
        }
    }
}

/// `transport` of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerTransport {
    /// MQTT as it is.
    Mqtt,
    /// MQTT in the binary frames of a WebSocket (MQTT 5.0, 6).
    WebSocket,
}

/// `tls` of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerTls {
    /// PEM file of the server's certificate chain.
    pub cert: PathBuf,
    /// PEM file of its private key.
    pub key: PathBuf,
    /// Which certificates clients may show; `None` = they are not asked.
    pub client: Option<ClientCertificates>,
}

/// `client_ca`, `client_crl` and `client_auth` of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificates {
    /// PEM file of the authorities that sign them.
    pub ca: PathBuf,
    /// PEM files of the authorities' lists of those that they have revoked; none = nobody looks.
    pub revoked: Vec<PathBuf>,
    /// Without one, no connection.
    pub is_required: bool,
}

/// `[uplink.<name>]`
#[derive(Debug, Clone)]
pub struct UplinkConfig {
    /// What the cloud takes, and how it refuses.
    pub profile: &'static clouds::Profile,
    /// Tried in turn; never empty.
    pub endpoints: Vec<Endpoint>,
    /// MQTT 3.1.1 or 5.
    pub protocol: Protocol,
    /// `{gateway}` and the like are replaced at start.
    pub client_id: String,
    /// PEM file of the roots to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// PEM file of the client's certificate chain.
    pub cert: Option<PathBuf>,
    /// PEM file of the client's private key.
    pub key: Option<PathBuf>,
    /// Protocol names to offer in the TLS handshake (RFC 7301), in order; none = as the profile has it for the port.
    pub alpn: Vec<String>,
    /// User name of CONNECT.
    pub username: Option<String>,
    /// File whose first line is the password of CONNECT.
    pub password_file: Option<PathBuf>,
    /// A token instead of the password.
    pub jwt: Option<JwtConfig>,
    /// Enhanced authentication (MQTT 5.0, 4.12) by this method: the token is its data, or a login by `ScramHash` is made.
    pub auth_method: Option<String>,
    /// A signature instead of the password, at Azure.
    pub sas: Option<SasConfig>,
    /// The hub is not known yet: Azure's provisioning service, which `endpoints` are then, says which it is.
    pub dps: Option<DpsConfig>,
    /// Who judges that, at AWS.
    pub authorizer: Option<AuthorizerConfig>,
    /// How a board without a certificate of its own gets one.
    pub provision: Option<ProvisionConfig>,
    /// `https://` and `http://`: no broker, and what is posted where. Then the path of each endpoint is that of the request.
    pub http: Option<HttpConfig>,
    /// What stands between this board and the cloud.
    pub proxy: Option<ProxyConfig>,
    /// Seconds of CONNECT's keep-alive; 0 = off.
    pub keep_alive: Duration,
    /// How long the cloud keeps the session, for exactly once over restarts.
    pub session_expiry: Duration,
    /// Messages in flight at most, before the cloud's own Receive Maximum.
    pub window: NonZeroU16,
    /// Pauses between attempts to connect.
    pub reconnect: Reconnect,
    /// What goes first when much waits.
    pub drain: DrainOrder,
    /// At most this much, whatever waits.
    pub pace: Pace,
    /// Topic of the gateway's own messages at the cloud, `{gateway}` already replaced; `None` = off.
    pub own_topic: Option<String>,
    /// `[[uplink.<name>.forward]]`; the first rule that matches a message decides. Where none is written, one
    /// rule for `field/#`.
    pub forward: Vec<ForwardRule>,
    /// `[[uplink.<name>.receive]]`
    pub receive: Vec<ReceiveRule>,
    /// `twin`: the copy of the gateway's state that the cloud keeps; its topics.
    pub twin: Option<clouds::services::TwinTopics>,
    /// `jobs`: the cloud has jobs for the gateway; their topics.
    pub jobs: Option<clouds::services::JobTopics>,
}

impl UplinkConfig {
    /// What `twin` and `jobs` subscribe to.
    pub fn service_filters(&self) -> Vec<Filter> {
        let twin = self.twin.iter().flat_map(clouds::services::TwinTopics::filters);
        let filters = twin.chain(self.jobs.iter().flat_map(clouds::services::JobTopics::filters));
        filters.filter_map(|filter| Filter::new(&filter).ok()).collect()
    }
}

/// What goes first after an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DrainOrder {
    /// Everything in the order in which it came.
    #[default]
    OldestFirst,
    /// What comes in while the cloud is there, and the backlog beside it.
    LiveFirst,
}

/// One address of a cloud broker.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Host name or address; the server name in TLS.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// `mqtts://` or `wss://` rather than `mqtt://` or `ws://`.
    pub tls: bool,
    /// `wss://` and `ws://`: the path of the WebSocket. `https://` and `http://`: that of the request. `None` = MQTT as it is.
    pub path: Option<String>,
}

impl Endpoint {
    /// The bare connection below: TCP, or TLS.
    pub fn bare(&self) -> Endpoint {
        Endpoint { path: None, ..self.clone() }
    }
}

/// `proxy` of an uplink: an HTTP proxy in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// For basic authentication.
    pub username: Option<String>,
    /// File whose first line is the password that goes with it.
    pub password_file: Option<PathBuf>,
}

/// `authorizer` of an uplink: a custom authoriser of AWS IoT Core, which is asked for in the user name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizerConfig {
    /// Its name; `None` = the account's default one.
    pub name: Option<String>,
    /// Under which name it is given the token.
    pub token_key: Option<String>,
    /// File whose first line is the token.
    pub token_file: Option<PathBuf>,
    /// File whose first line is the token's signature, in base64.
    pub signature_file: Option<PathBuf>,
}

/// `provision` of an uplink: fleet provisioning by claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvisionConfig {
    /// The template at the cloud.
    pub template: String,
    /// PEM file of the certificate that all boards of a lot share.
    pub claim_cert: PathBuf,
    /// PEM file of its key.
    pub claim_key: PathBuf,
    /// What the template wants to know.
    pub parameters: BTreeMap<String, String>,
    /// How it is said.
    pub format: ProvisionFormat,
    /// Where the board's own key and certificate are kept, in the state directory.
    pub folder: PathBuf,
}

/// `format` of `provision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProvisionFormat {
    /// JSON
    Json,
    /// CBOR
    Cbor,
}

/// `sas` of an uplink: a shared access signature in the place of the password, made here for each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SasConfig {
    /// File whose first line is the device's key, in base64.
    pub key: PathBuf,
    /// It is the key of a whole group, from which that of the device with this registration id is derived.
    pub derived_for: Option<String>,
    /// How long a signature holds; some time before its end the gateway comes back with the next one.
    pub lifetime: Duration,
}

/// `dps` of an uplink: Azure's device provisioning service, to which the client id is the registration id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DpsConfig {
    /// Which of the many services behind one name.
    pub id_scope: String,
    /// Where it is kept which hub the device belongs to, in the state directory.
    pub folder: PathBuf,
}

/// `jwt` of an uplink: a token in the place of the password, signed here for each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtConfig {
    /// PEM file of the private key: RSA signs RS256, P-256 signs ES256.
    pub key: PathBuf,
    /// `kid` of the header.
    pub key_id: Option<String>,
    /// `aud`
    pub audience: Option<String>,
    /// `iss`
    pub issuer: Option<String>,
    /// `sub`
    pub subject: Option<String>,
    /// From `iat` to `exp`; some time before its end the gateway comes back with the next one.
    pub lifetime: Duration,
}

/// A login by password that the cloud asks for in steps, and in which it proves itself (RFC 5802, 7677): by which hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScramHash {
    /// `SCRAM-SHA-256`
    Sha256,
    /// `SCRAM-SHA-512`
    Sha512,
}

impl ScramHash {
    /// The method of this name; `None` = another method, whose data is a token.
    pub fn of(method: &str) -> Option<ScramHash> {
        match method {
            "SCRAM-SHA-256" => Some(ScramHash::Sha256),
            "SCRAM-SHA-512" => Some(ScramHash::Sha512),
            _ => None,
        }
    }

    /// Whether a name or a password goes in as it is. Beyond printable ASCII it would have to be prepared (RFC 4013), which
    /// some brokers do and others, EMQX among them, do not.
    pub fn takes(text: &[u8]) -> bool {
        !text.is_empty() && text.iter().all(|byte| (0x20..0x7f).contains(byte))
    }
}

/// Protocol version of an uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// MQTT 3.1.1
    V311,
    /// MQTT 5.0
    V5,
}

/// `reconnect = { first = "1s", max = "30s" }`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reconnect {
    /// Upper bound of the first pause.
    pub first: Duration,
    /// Upper bound of every pause.
    pub max: Duration,
}

/// `pace = { messages_per_s = 100, bytes_per_s = "512 KiB" }`; `None` = not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pace {
    /// PUBLISH packets a second.
    pub messages_per_s: Option<NonZeroU32>,
    /// Bytes of PUBLISH packets a second.
    pub bytes_per_s: Option<NonZeroU64>,
}

/// `[[uplink.<name>.forward]]`
#[derive(Debug, Clone)]
pub struct ForwardRule {
    /// Local topics to deliver.
    pub filter: Filter,
    /// The topic at the cloud.
    pub topic: TopicTemplate,
    /// Raises as well as lowers; `None` = as published.
    pub qos: Option<Qos>,
    /// Instead of the queue's own rule.
    pub when_full: Option<WhenFull>,
    /// `order = "strict"`: one message of a topic in flight.
    pub strict_order: bool,
    /// How readings are written.
    pub payload: Payload,
    /// How readings travel together. `None` = one message each.
    pub batch: Option<BatchLimits>,
}

/// `batch` of a forward rule: what one message holds at most, and how long its first reading waits for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Readings.
    pub readings: NonZeroU16,
    /// Bytes of payload; a single reading may be longer.
    pub bytes: NonZeroU32,
    /// From when the first one could have left.
    pub within: Duration,
}

impl Default for BatchLimits {
    fn default() -> BatchLimits {
        // Some clouds bill by 5 KiB.
        let (readings, bytes) = (NonZeroU16::MIN.saturating_add(999), NonZeroU32::MIN.saturating_add(5 * 1024 - 1));
        BatchLimits { readings, bytes, within: Duration::from_secs(1) }
    }
}

/// `[[uplink.<name>.receive]]`
#[derive(Debug, Clone)]
pub struct ReceiveRule {
    /// Cloud topics to take in.
    pub filter: Filter,
    /// The local topic.
    pub topic: TopicTemplate,
    /// QoS to subscribe at.
    pub qos: Qos,
    /// Where answers go at the cloud, when the command does not say.
    pub answer: Option<TopicTemplate>,
    /// Where they may go besides, when it does.
    pub answers: Vec<Filter>,
}

/// One physical bus or connection: exactly one task owns it.
#[derive(Debug, Clone, PartialEq)]
pub struct LineConfig {
    /// What it is made of.
    pub kind: LineKind,
    /// How long to wait for an answer, unless the device says otherwise.
    pub timeout: Duration,
    /// Pause between the end of one exchange and the next request.
    pub pause: Duration,
    /// Pause between the opening and the first request.
    pub connect_pause: Duration,
    /// How frames look where they are not those of Modbus TCP.
    pub framing: SerialFraming,
    /// Where another master reaches the line; `None` = nowhere.
    pub share: Option<ShareConfig>,
}

/// `share = { bind = "127.0.0.1:1502" }`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareConfig {
    /// Where it listens, by Modbus TCP.
    pub bind: SocketAddr,
    /// What changes a device is passed on too.
    pub is_writable: bool,
}

impl LineConfig {
    /// A line without anything that need not be said.
    pub fn new(kind: LineKind, timeout: Duration) -> LineConfig {
        let (pause, connect_pause) = (Duration::ZERO, Duration::ZERO);
        LineConfig { kind, timeout, pause, connect_pause, framing: SerialFraming::Rtu, share: None }
    }
}

/// `framing`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SerialFraming {
    /// Bytes with pauses between the frames.
    Rtu,
    /// Hexadecimal digits with a colon before each frame.
    Ascii,
}

/// What a line is made of.
#[derive(Debug, Clone, PartialEq)]
pub enum LineKind {
    /// A serial port with RTU framing.
    Rtu(PortConfig),
    /// `tcp://host:port`: Modbus TCP.
    Tcp {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// `rtu-tcp://host:port`: RTU frames over a TCP connection.
    RtuOverTcp {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
}
