//! From files to a `Config`: finds the layers, reads and merges them, and lets every rule speak before it gives up.
//!
//! Reads only. A file that cannot be read is a problem like any other; the others are looked at all the same.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::board::{self, Found};
use super::file::{self, Draft, ListenerDraft, UplinkDraft, io_words};
use super::report::{Place, Problem};
use super::tree::{self, Node, Source, Tree, Written};
use super::walk::Walk;
use super::{
    AccessConfig, BoardConfig, BrokerConfig, Config, ListenerConfig, SerialConfig, UserConfig, check, effective,
};

/// The most bytes of one file. A gateway with a thousand points has a tenth of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The most files of one directory.
const FILES_MAX: usize = 256;

const OWNER_DIRECTORY: &str = "etc/tidegate";
const VENDOR_DIRECTORY: &str = "usr/lib/tidegate";
const STATE_DIRECTORY: &str = "/var/lib/tidegate";
/// Where systemd puts what LoadCredential of the unit names, while the service runs.
const CREDENTIALS_DIRECTORY: &str = "/run/credentials/tidegate.service";

/// Looks up the id that was kept in a state directory.
pub type KeptId = Box<dyn Fn(&Path) -> Option<String> + Send + Sync>;

/// Where to look.
///
/// Layers, of which the later wins: `/usr/lib/tidegate/*.toml` (vendor); `/etc/tidegate/tidegate.toml` and
/// `/etc/tidegate/conf.d/*.toml` (owner); `<state_dir>/conf.d/*.toml` (this board). With `config` that file takes the
/// place of the owner's: `conf.d` beside it is read only when it stands in `/etc/tidegate` itself, since a file that
/// is tried out must mean the same wherever it lies.
pub struct LoadRequest {
    /// Put in front of the directories of layers and of the board's own files: `/`, but in tests.
    pub root: PathBuf,
    /// `--config F`: instead of the owner's file.
    pub config: Option<PathBuf>,
    /// What `${CREDENTIALS_DIRECTORY}` stands for.
    pub credentials_dir: Option<PathBuf>,
    /// Looks up the id that was kept in a state directory at first start; asked when none is written.
    pub kept_id: Option<KeptId>,
}

impl LoadRequest {
    /// The files of this machine; `config` is `--config`.
    pub fn standard(config: Option<PathBuf>) -> LoadRequest {
        // Who checks a configuration by hand, beside the service, has its credentials and not its environment.
        let beside = || Some(PathBuf::from(CREDENTIALS_DIRECTORY)).filter(|directory| directory.is_dir());
        let credentials_dir = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from).or_else(beside);
        LoadRequest { root: PathBuf::from("/"), config, credentials_dir, kept_id: None }
    }
}

/// A configuration without a problem.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What works and is probably not meant.
    pub warnings: Vec<Problem>,
    /// The merged configuration as TOML, with the file that each value comes from; secrets masked.
    pub effective: String,
    /// The files that were read, in the order of their layers.
    pub files: Vec<PathBuf>,
    /// What was found on the board.
    pub board: Found,
    /// Where each uplink is written, for whoever finds fault with the contents of its files.
    pub uplink_places: BTreeMap<Arc<str>, TlsPlaces>,
    /// The same of each listener.
    pub listener_places: BTreeMap<Arc<str>, TlsPlaces>,
    /// The same of the status page.
    pub web_places: TlsPlaces,
    /// Where the port or url of each line is written.
    pub line_places: BTreeMap<Arc<str>, Place>,
}

/// Where the TLS files of an uplink or a listener are written; `None` for what is not.
#[derive(Debug, Clone, Default)]
pub struct TlsPlaces {
    /// The table itself.
    pub table: Option<Place>,
    /// The key `ca`, or `client_ca`.
    pub ca: Option<Place>,
    /// The key `client_crl`.
    pub crl: Option<Place>,
    /// The key `cert`.
    pub cert: Option<Place>,
    /// The key `key`.
    pub key: Option<Place>,
}

/// Loads the configuration, or says everything that is wrong with it.
///
/// # Errors
/// Every problem of every file, in the order of their places.
pub fn load(request: &LoadRequest) -> Result<Loaded, Vec<Problem>> {
    let mut walk = Walk { credentials_dir: request.credentials_dir.clone(), ..Walk::default() };
    let mut tree = Tree::default();
    read_directory(&mut walk, &mut tree, &request.root.join(VENDOR_DIRECTORY), 0);
    read_owner(&mut walk, &mut tree, request);
    read_state(&mut walk, &mut tree, &request.root);
    let files: Vec<PathBuf> = walk.findings.sources.iter().map(|source| source.path.clone()).collect();
    if files.is_empty() && walk.findings.is_clean() {
        let help = "tidegate example rs485-aws > /etc/tidegate/tidegate.toml";
        walk.findings.general_warning("no configuration was found: no device is read", Some(help.to_owned()));
    }

    let board = board::find(&request.root);
    let (gateway, words) = file::gateway(&mut walk, &tree, &board, request.kept_id.as_ref());
    let draft = file::draft(&mut walk, &tree, gateway, &words);
    check::check(&mut walk, &draft);
    if !walk.findings.is_clean() {
        return Err(walk.findings.finish().0);
    }
    let mut effective = effective::render(&tree, &walk.findings);
    if let Some(gateway) = draft.gateway.as_ref().filter(|gateway| gateway.id_source != file::FROM_CONFIGURATION) {
        effective.insert_str(0, &format!("# gateway id: {} (from {})\n", gateway.id, gateway.id_source));
    }
    let place = |spot| walk.findings.place(spot);
    let places = |uplink: &UplinkDraft| TlsPlaces {
        table: place(uplink.spot),
        ca: uplink.ca.and_then(place),
        crl: None,
        cert: uplink.cert.and_then(place),
        key: uplink.key.and_then(place),
    };
    let uplink_places = draft.uplinks.iter().map(|uplink| (uplink.name.clone(), places(uplink))).collect();
    let places = |listener: &ListenerDraft| TlsPlaces {
        table: listener.tls.and_then(place),
        ca: listener.client_ca.and_then(place),
        crl: listener.client_crl.and_then(place),
        cert: listener.cert.and_then(place),
        key: listener.key.and_then(place),
    };
    let listener_places = draft.listeners.iter().map(|listener| (listener.name.clone(), places(listener))).collect();
    let web_places = draft.web.as_ref().map_or_else(TlsPlaces::default, |web| TlsPlaces {
        table: web.tls.and_then(place),
        cert: web.cert.and_then(place),
        key: web.key.and_then(place),
        ..TlsPlaces::default()
    });
    let line_places = draft.lines.iter().filter_map(|line| Some((line.name.clone(), place(line.spot)?))).collect();
    let Some(config) = build(draft, &request.root) else {
        // Each hole in a draft has its problem: this cannot be reached, and must not be a panic if it is.
        walk.findings.general(None, "the configuration could not be put together: this is a fault of tidegate", None);
        return Err(walk.findings.finish().0);
    };
    let warnings = walk.findings.finish().1;
    Ok(Loaded { config, warnings, effective, files, board, uplink_places, listener_places, web_places, line_places })
}

/// The one device of a text that begins with `[serial.<name>]`: for tools that work before any configuration exists.
/// `shown` stands for the file in problems.
///
/// # Errors
/// Every problem of the text.
pub fn serial_device(shown: &Path, text: &str) -> Result<SerialConfig, Vec<Problem>> {
    let mut walk = Walk::default();
    let source = add(&mut walk, shown, text.as_bytes().to_vec(), 1);
    let tree = source.and_then(|source| tree::parse(source, &mut walk.findings));
    let words = file::Words { gateway: Arc::from("gateway"), board_serial: None, hostname: None };
    let draft = tree.map(|tree| file::draft(&mut walk, &tree, None, &words));
    if walk.findings.is_clean()
        && let Some(device) = draft.and_then(|draft| draft.serial.into_iter().next()?.config)
    {
        return Ok(device);
    }
    if walk.findings.is_clean() {
        walk.findings.general(None, "there is no [serial.<name>] to read", None);
    }
    Err(walk.findings.finish().0)
}

/// The state directory that the configuration names, whatever else is wrong with it.
///
/// # Errors
/// Every problem, where a file cannot be read or the directory itself is written wrongly.
pub fn state_dir(request: &LoadRequest) -> Result<PathBuf, Vec<Problem>> {
    let mut walk = Walk { credentials_dir: request.credentials_dir.clone(), ..Walk::default() };
    let mut tree = Tree::default();
    read_directory(&mut walk, &mut tree, &request.root.join(VENDOR_DIRECTORY), 0);
    read_owner(&mut walk, &mut tree, request);
    match file::state_dir(&mut walk, &tree) {
        Some(state_dir) if !walk.is_partial => Ok(state_dir),
        _ => Err(walk.findings.finish().0),
    }
}

fn read_owner(walk: &mut Walk, tree: &mut Tree, request: &LoadRequest) {
    let directory = request.root.join(OWNER_DIRECTORY);
    let file = match &request.config {
        Some(file) => file.clone(),
        None => directory.join("tidegate.toml"),
    };
    // Only a file that is surely not there is passed over: one that may not be looked at is a problem, not a gateway
    // that reads no device.
    let is_absent = fs::symlink_metadata(&file).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    if request.config.is_some() || !is_absent {
        read_file(walk, tree, &file, 1);
    }
    if request.config.is_none() || file.parent() == Some(&directory) {
        read_directory(walk, tree, &directory.join("conf.d"), 1);
    }
}

/// The board's own layer. It cannot say where it lies itself.
fn read_state(walk: &mut Walk, tree: &mut Tree, root: &Path) {
    let section = |tree: &Tree| match tree.get("gateway").map(|entry| entry.node.clone().value) {
        Some(Written::Table(gateway)) => gateway.get("state_dir").cloned(),
        _ => None,
    };
    let state_dir = match section(tree).map(|entry| entry.node) {
        Some(Node { value: Written::Text(text), spot }) if text.starts_with('.') => {
            let source = walk.findings.sources.get(spot.source).and_then(|source| source.path.parent());
            source.unwrap_or(Path::new("")).join(text)
        }
        Some(Node { value: Written::Text(text), .. }) => root.join(text.trim_start_matches('/')),
        _ => root.join(STATE_DIRECTORY.trim_start_matches('/')),
    };
    let directory = state_dir.join("conf.d");
    let mut layer = Tree::default();
    read_directory(walk, &mut layer, &directory, 2);
    if let Some(entry) = section(&layer) {
        let help = "write it in /etc/tidegate/tidegate.toml";
        walk.findings.problem(entry.key, "`state_dir` cannot be set inside the state directory", Some(help.to_owned()));
    }
    tree.merge(layer, &mut walk.findings);
}

/// The `.toml` files of a directory in the order of their bytes; a directory that is not there is empty.
fn read_directory(walk: &mut Walk, tree: &mut Tree, directory: &Path, layer: u8) {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => {
            let what = format!("cannot list this directory: {}", io_words(&error));
            let help = (error.kind() == io::ErrorKind::PermissionDenied).then(|| match (layer, directory.parent()) {
                (2, Some(state_dir)) => format!("chown -R tidegate: {}", state_dir.display()),
                _ => "the user `tidegate` must be able to read it".to_owned(),
            });
            walk.findings.general(Some(directory.to_owned()), what, help);
            walk.is_partial = true;
            return;
        }
    };
    let is_toml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "toml");
    let is_hidden = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| is_toml(path) && !is_hidden(path))
        .take(FILES_MAX + 1)
        .collect();
    files.sort();
    if files.len() > FILES_MAX {
        let what = format!("this directory has more than {FILES_MAX} files");
        walk.findings.general(Some(directory.to_owned()), what, None);
        walk.is_partial = true;
        return;
    }
    for file in files {
        read_file(walk, tree, &file, layer);
    }
}

fn read_file(walk: &mut Walk, tree: &mut Tree, path: &Path, layer: u8) {
    let source = match read_bounded(path, FILE_BYTES_MAX) {
        Ok(bytes) => add(walk, path, bytes, layer),
        Err(reason) => {
            walk.findings.general(Some(path.to_owned()), format!("this file {reason}"), None);
            None
        }
    };
    match source.and_then(|source| tree::parse(source, &mut walk.findings)) {
        Some(written) => tree.merge(written, &mut walk.findings),
        None => walk.is_partial = true,
    }
}

/// Adds what was read to the sources, without the mark that some editors put in front (U+FEFF). `None` when it is not
/// UTF-8, which is noted at its place.
pub(super) fn add(walk: &mut Walk, path: &Path, bytes: Vec<u8>, layer: u8) -> Option<usize> {
    let (text, fault) = match String::from_utf8(bytes) {
        Ok(text) => (text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text), None),
        Err(error) => {
            let start = error.utf8_error().valid_up_to();
            (String::from_utf8_lossy(error.as_bytes()).into_owned(), Some(start))
        }
    };
    let source = walk.findings.add(Source { path: path.to_owned(), text, layer });
    let Some(start) = fault else { return Some(source) };
    let spot = tree::Spot { source, start, end: start + '\u{fffd}'.len_utf8() };
    walk.findings.problem(spot, "this character is not UTF-8", Some("save the file as UTF-8".to_owned()));
    None
}

/// Reads a file of at most `bytes_max`; the error is a reason in words that follow the name of the file.
pub(super) fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    let words = |error: io::Error| format!("cannot be read: {}", io_words(&error));
    // A pipe is not opened: that would wait for a writer.
    let metadata = fs::metadata(path).map_err(words)?;
    if metadata.is_dir() {
        return Err("is a directory".to_owned());
    }
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    let mut bytes = Vec::new();
    fs::File::open(path).and_then(|file| file.take(bytes_max + 1).read_to_end(&mut bytes)).map_err(words)?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("is larger than {}", super::units::size_text(bytes_max)));
    }
    Ok(bytes)
}

/// The draft without its places; `None` where it still has a hole.
fn build(draft: Draft, root: &Path) -> Option<Config> {
    let mut listeners = BTreeMap::new();
    for listener in draft.listeners {
        listeners.insert(listener.name, listener.config?);
    }
    if listeners.is_empty() {
        let bind = std::net::SocketAddr::from(([127, 0, 0, 1], 1883));
        listeners.insert(Arc::from("local"), ListenerConfig::from(bind));
    }
    let mut users = BTreeMap::new();
    for user in draft.users {
        let mut rights = user.rights?;
        let groups = draft.groups.iter().filter(|group| user.groups.iter().any(|name| name.value == *group.name));
        for group in groups {
            rights.extend(group.rights.as_ref()?);
        }
        let certificate = user.certificate.map(|at| at.value);
        users.insert(user.name, UserConfig { password: user.password, certificate, by_token: user.by_token, rights });
    }
    let anonymous = match draft.anonymous {
        Some(anonymous) => Some(anonymous.rights?),
        None => None,
    };
    let tokens = match draft.tokens {
        Some((tokens, _)) => {
            let mut tokens = tokens?;
            for group in draft.groups {
                tokens.groups.insert(group.name, group.rights?);
            }
            Some(tokens)
        }
        None => None,
    };
    let mut lines = BTreeMap::new();
    for line in draft.lines {
        lines.insert(line.name, line.config?);
    }
    let mut modbus = BTreeMap::new();
    for device in draft.modbus {
        let mut config = device.config?;
        let of_line = lines.get(&config.line).map_or(Duration::ZERO, |line| line.timeout);
        config.timeout = device.timeout.unwrap_or(of_line);
        modbus.insert(device.name, config);
    }
    let gateway = draft.gateway?;
    let mut uplinks = BTreeMap::new();
    for uplink in draft.uplinks {
        let mut config = uplink.config?;
        if let Some(provision) = &mut config.provision {
            provision.folder = gateway.state_dir.join("provisioned").join(&*uplink.name);
        }
        if let Some(dps) = &mut config.dps {
            dps.folder = gateway.state_dir.join("provisioned").join(&*uplink.name);
        }
        uplinks.insert(uplink.name, config);
    }
    let mut serial = BTreeMap::new();
    for device in draft.serial {
        serial.insert(device.name, device.config?);
    }
    let board = match draft.board {
        Some(board) => {
            let (root, state_dir) = (root.to_owned(), gateway.state_dir.clone());
            Some(BoardConfig { root, state_dir, ..board.config? })
        }
        None => None,
    };
    let web = match draft.web {
        Some(web) => Some(web.config?),
        None => None,
    };
    Some(Config {
        gateway,
        queue: draft.queue?,
        broker: BrokerConfig {
            listeners,
            sessions: draft.sessions?,
            access: AccessConfig { users, anonymous, tokens },
            limits: draft.limits?,
            sys_interval: draft.sys_interval?,
        },
        uplinks,
        lines,
        modbus,
        serial,
        board,
        web,
    })
}
