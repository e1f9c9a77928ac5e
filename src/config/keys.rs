//! Every key that may be written, once: what it is, whether it must be there, and its default. Pure.
//!
//! The walker knows no other keys, and reads a default from here as if it had been written; `config/tidegate.toml`
//! is held against these tables by a test.

/// Whether a key must be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Without it the table means nothing.
    Required,
    /// Nothing, or something else, takes its place.
    Optional,
    /// As if this TOML value had been written.
    Default(&'static str),
}

/// One key of a table.
#[derive(Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// Whether it must be written.
    pub presence: Presence,
}

/// A kind of table.
#[derive(Debug)]
pub struct KeyTable {
    /// Its name with `<name>` where the owner chooses: `uplink.<name>`.
    pub title: &'static str,
    /// The keys that this version serves.
    pub keys: &'static [Key],
    /// Names that are called otherwise here, and what to write instead.
    pub gone: &'static [(&'static str, &'static str)],
    /// Keys of later versions: known, but not served by this one.
    pub later: &'static [&'static str],
}

const fn required(name: &'static str) -> Key {
    Key { name, presence: Presence::Required }
}

const fn optional(name: &'static str) -> Key {
    Key { name, presence: Presence::Optional }
}

const fn default(name: &'static str, value: &'static str) -> Key {
    Key { name, presence: Presence::Default(value) }
}

/// Every kind of table.
pub static TABLES: &[&KeyTable] = &[
    &ROOT,
    &GATEWAY,
    &QUEUE,
    &BROKER,
    &LISTENER,
    &LISTENER_TLS,
    &SESSION,
    &USER,
    &GROUP,
    &ANONYMOUS,
    &BROKER_JWT,
    &LIMITS,
    &RATE,
    &UPLINK,
    &RECONNECT,
    &PACE,
    &JWT,
    &SAS,
    &DPS,
    &TWIN,
    &AUTHORIZER,
    &PROVISION,
    &PROXY,
    &HTTP,
    &FORWARD,
    &TEMPLATE,
    &BATCH,
    &RECEIVE,
    &LINE,
    &SHARE,
    &MODEL,
    &MODBUS,
    &MODBUS_POINT,
    &WRITE,
    &REPORT,
    &RS485,
    &SERIAL,
    &ASK,
    &FRAME,
    &LENGTH,
    &CHECKSUM,
    &PARSE,
    &SERIAL_POINT,
    &SERIAL_COMMAND,
    &BOARD,
    &BOARD_POINT,
    &WEB,
    &WEB_TLS,
    &WEB_USER,
];

/// The top of the file.
pub static ROOT: KeyTable = KeyTable {
    title: "",
    keys: &[
        optional("gateway"),
        optional("queue"),
        optional("broker"),
        optional("uplink"),
        optional("line"),
        optional("model"),
        optional("modbus"),
        optional("serial"),
        optional("board"),
        optional("web"),
    ],
    gone: &[
        ("listener", "write `[broker.listener.<name>]`"),
        ("mqtt", "the local broker is `[broker]`, the way to a cloud `[uplink.<name>]`"),
        ("cloud", "write `[uplink.cloud]`"),
        ("uplinks", "write `[uplink.<name>]`, one table for each"),
        ("bridge", "write `[uplink.<name>]`"),
        ("device", "write `[modbus.<name>]` or `[serial.<name>]`"),
        ("devices", "write `[modbus.<name>]` or `[serial.<name>]`, one table for each"),
        ("source", "write `[modbus.<name>]` or `[serial.<name>]`, one table for each"),
        ("store", "write `[queue]`"),
        ("storage", "write `[queue]`"),
        ("buffer", "write `[queue]`"),
        ("bus", "write `[line.<name>]`"),
        ("http", "the status page and the metrics are `[web]`"),
        ("metrics", "the status page and the metrics are `[web]`"),
        ("log", "the level of the log is an option of the command line, not a key"),
    ],
    later: &["limits", "simulate", "payload", "user"],
};

/// `[board]`
pub static BOARD: KeyTable = KeyTable {
    title: "board",
    keys: &[
        default("poll", "\"10s\""),
        default("topic", "\"field/{device}/{point}\""),
        default("qos", "1"),
        optional("point"),
    ],
    gone: &[
        ("every", "it is called `poll`"),
        ("interval", "it is called `poll`"),
        ("points", "write `[board.point]`, with a line for each"),
        ("report", "it belongs to a point: `[board.point] temperature = { report = { … } }`"),
    ],
    later: &[],
};

/// One line of `[board.point]`
pub static BOARD_POINT: KeyTable = KeyTable {
    title: "board.point.<name>",
    keys: &[optional("reads"), optional("sensor"), optional("report")],
    gone: &[
        ("type", "what is read is called `reads`"),
        ("zone", "it is called `sensor`"),
        ("deadband", "write it in `report = { deadband = … }`"),
        ("heartbeat", "write it in `report = { heartbeat = … }`"),
        ("poll", "everything of the board is read together: `poll` stands in `[board]`"),
    ],
    later: &[],
};

/// `[web]`
pub static WEB: KeyTable = KeyTable {
    title: "web",
    keys: &[default("bind", "\"127.0.0.1:9080\""), optional("tls"), optional("user")],
    gone: &[
        ("listen", "it is called `bind`"),
        ("port", "write `bind = \"127.0.0.1:9080\"`"),
        ("address", "it is called `bind`"),
        ("users", "write `[web.user.<name>]`, one table for each"),
    ],
    later: &[],
};

/// `tls` in `[web]`
pub static WEB_TLS: KeyTable = KeyTable {
    title: "web.tls",
    keys: &[required("cert"), required("key")],
    gone: &[("client_ca", "the page knows its users by their passwords: `[web.user.<name>]`")],
    later: &[],
};

/// `[web.user.<name>]`
pub static WEB_USER: KeyTable = KeyTable {
    title: "web.user.<name>",
    keys: &[optional("password_hash"), optional("password_hash_file")],
    gone: &[("password", "write `password_hash`; `tidegate passwd --web NAME` prints it")],
    later: &[],
};

/// `[gateway]`
pub static GATEWAY: KeyTable = KeyTable {
    title: "gateway",
    keys: &[
        optional("id"),
        default("state_dir", "\"/var/lib/tidegate\""),
        default("clock", "\"auto\""),
        optional("clock_mark"),
    ],
    gone: &[
        ("name", "it is called `id`"),
        ("gateway_id", "it is called `id`"),
        ("data_dir", "it is called `state_dir`"),
        ("state", "it is called `state_dir`"),
    ],
    later: &[],
};

/// `[queue]`
pub static QUEUE: KeyTable = KeyTable {
    title: "queue",
    keys: &[
        default("max_bytes", "\"1 GiB\""),
        optional("max_age"),
        optional("keep_delivered"),
        default("when_full", "\"drop-oldest\""),
        default("flash", "\"always\""),
        default("hold", "\"1s\""),
    ],
    gone: &[
        ("max_size", "it is called `max_bytes`"),
        ("size", "it is called `max_bytes`"),
        ("limit", "it is called `max_bytes`"),
        ("overflow", "it is called `when_full`"),
        ("retention", "it is called `max_age`"),
        ("keep", "it is called `keep_delivered`"),
        ("path", "the store stands in `[gateway] state_dir`"),
        ("max_messages", "the queue is bounded in bytes: `max_bytes`"),
    ],
    later: &[],
};

/// `[broker]`
pub static BROKER: KeyTable = KeyTable {
    title: "broker",
    keys: &[
        optional("listener"),
        optional("session"),
        optional("user"),
        optional("group"),
        optional("anonymous"),
        optional("jwt"),
        optional("limits"),
        default("sys_interval", "\"10s\""),
    ],
    gone: &[
        ("bind", "write `[broker.listener.<name>]` with `bind` in it"),
        ("port", "write `[broker.listener.<name>]` with `bind = \"127.0.0.1:1883\"`"),
        ("listeners", "write `[broker.listener.<name>]`, one table for each"),
        ("allow_anonymous", "anonymous clients may do on this machine what `[broker.anonymous]` says"),
        ("users", "write `[broker.user.<name>]`, one table for each"),
        ("groups", "write `[broker.group.<name>]`, one table for each"),
        ("password_file", "write `[broker.user.<name>]`; `tidegate import mosquitto` does it for a whole file"),
        ("acl_file", "write `[broker.user.<name>]`; `tidegate import mosquitto` does it for a whole file"),
        ("acl", "write `publish` and `subscribe` in `[broker.user.<name>]`"),
        ("max_connections", "write `connections` in [broker.limits]"),
        ("max_packet_size", "write `packet_bytes` in [broker.limits]"),
        ("message_size_limit", "write `packet_bytes` in [broker.limits]"),
        ("max_inflight_messages", "write `in_flight` in [broker.limits]"),
    ],
    later: &[],
};

/// `[broker.listener.<name>]`
pub static LISTENER: KeyTable = KeyTable {
    title: "broker.listener.<name>",
    keys: &[
        required("bind"),
        default("transport", "\"mqtt\""),
        optional("tls"),
        default("plaintext", "false"),
        default("mode", "\"0660\""),
    ],
    gone: &[
        ("port", "write address and port together: `bind = \"127.0.0.1:1883\"`"),
        ("address", "write address and port together: `bind = \"127.0.0.1:1883\"`"),
        ("listen", "it is called `bind`"),
        ("host", "write address and port together: `bind = \"127.0.0.1:1883\"`"),
        ("socket", "write `bind = \"unix:/run/tidegate/mqtt.sock\"`"),
        ("path", "write `bind = \"unix:/run/tidegate/mqtt.sock\"`; a WebSocket has no path of its own here"),
        ("protocol", "it is called `transport`: \"mqtt\" or \"websocket\""),
        ("websocket", "write `transport = \"websocket\"`"),
        ("cert", "write `tls = { cert = \"…\", key = \"…\" }`"),
        ("certfile", "write `tls = { cert = \"…\", key = \"…\" }`"),
        ("key", "write `tls = { cert = \"…\", key = \"…\" }`"),
        ("keyfile", "write `tls = { cert = \"…\", key = \"…\" }`"),
        ("client_ca", "write `tls = { cert = \"…\", key = \"…\", client_ca = \"…\" }`"),
        ("cafile", "write `tls = { cert = \"…\", key = \"…\", client_ca = \"…\" }`"),
        ("require_certificate", "write `tls = { …, client_ca = \"…\", client_auth = \"required\" }`"),
    ],
    later: &[],
};

/// `tls = { … }` of a listener
pub static LISTENER_TLS: KeyTable = KeyTable {
    title: "broker.listener.<name>.tls",
    keys: &[
        required("cert"),
        required("key"),
        optional("client_ca"),
        optional("client_crl"),
        default("client_auth", "\"required\""),
    ],
    gone: &[
        ("ca", "the authority of the clients' certificates is called `client_ca`"),
        ("cafile", "it is called `client_ca`"),
        ("crl", "the list of revoked certificates of clients is called `client_crl`"),
        ("crlfile", "it is called `client_crl`"),
        ("certfile", "it is called `cert`"),
        ("chain", "it is called `cert`: the server's certificate first, then those that lead to its authority"),
        ("keyfile", "it is called `key`"),
        ("require_certificate", "write `client_auth = \"required\"` or `\"optional\"`"),
    ],
    later: &["version", "ciphers"],
};

/// `[broker.session]`
pub static SESSION: KeyTable = KeyTable {
    title: "broker.session",
    keys: &[default("max_bytes", "\"16 MiB\""), default("expiry", "\"7 days\"")],
    gone: &[("max_queued_messages", "what waits for a client is bounded in bytes: `max_bytes`")],
    later: &[],
};

const RIGHTS_GONE: &[(&str, &str)] = &[
    ("read", "it is called `subscribe`"),
    ("write", "it is called `publish`"),
    ("readwrite", "write the filters in both `publish` and `subscribe`"),
    ("acl", "write `publish` and `subscribe`"),
    ("topics", "write `publish` and `subscribe`"),
    ("password", "write its hash: `password_hash`; `tidegate passwd USER` prints it"),
    ("password_file", "write the file of the hash: `password_hash_file`; `tidegate passwd USER` prints it"),
    ("group", "it is called `groups`, and is a list"),
];

/// `[broker.user.<name>]`
pub static USER: KeyTable = KeyTable {
    title: "broker.user.<name>",
    keys: &[
        optional("password_hash"),
        optional("password_hash_file"),
        optional("certificate"),
        default("jwt", "false"),
        optional("groups"),
        optional("publish"),
        optional("subscribe"),
        optional("deny"),
    ],
    gone: RIGHTS_GONE,
    later: &[],
};

/// `[broker.group.<name>]`
pub static GROUP: KeyTable = KeyTable {
    title: "broker.group.<name>",
    keys: &[optional("publish"), optional("subscribe"), optional("deny")],
    gone: RIGHTS_GONE,
    later: &[],
};

/// `[broker.anonymous]`
pub static ANONYMOUS: KeyTable = KeyTable {
    title: "broker.anonymous",
    keys: &[optional("publish"), optional("subscribe"), optional("deny")],
    gone: RIGHTS_GONE,
    later: &[],
};

/// `[broker.jwt]`
pub static BROKER_JWT: KeyTable = KeyTable {
    title: "broker.jwt",
    keys: &[
        required("keys"),
        required("audience"),
        optional("issuer"),
        default("user_claim", "\"sub\""),
        default("groups_claim", "\"groups\""),
        default("leeway", "\"30s\""),
        default("without_clock", "\"judge\""),
        optional("publish"),
        optional("subscribe"),
        optional("deny"),
    ],
    gone: &[
        ("key", "it is called `keys`: a file, or a list of them"),
        ("jwks", "it is called `keys`: a file, or a list of them"),
        ("jwks_url", "the keys stand in a file on this board: `keys`"),
        ("secret", "a secret that is shared signs nothing here: `keys` are public keys (RS256, ES256)"),
        ("aud", "it is called `audience`"),
        ("iss", "it is called `issuer`"),
        ("algorithm", "the kind of the key decides it: RS256 or ES256"),
        ("algorithms", "the kind of the key decides it: RS256 or ES256"),
    ],
    later: &[],
};

/// `[broker.limits]`
pub static LIMITS: KeyTable = KeyTable {
    title: "broker.limits",
    keys: &[
        default("connections", "1000"),
        default("connections_per_address", "100"),
        default("handshakes", "200"),
        default("handshake_time", "\"10s\""),
        default("connect_time", "\"5s\""),
        default("packet_bytes", "\"256 KiB\""),
        default("topic_bytes", "1024"),
        default("topic_levels", "64"),
        default("subscriptions", "256"),
        default("receive_maximum", "128"),
        default("in_flight", "100"),
        default("live_bytes", "\"32 MiB\""),
        optional("rate"),
    ],
    gone: &[
        ("max_connections", "it is called `connections`"),
        ("max_packet_size", "it is called `packet_bytes`"),
        ("message_size_limit", "it is called `packet_bytes`"),
        ("max_inflight_messages", "it is called `in_flight`"),
        ("max_inflight", "it is called `in_flight`"),
        ("max_subscriptions", "it is called `subscriptions`"),
        ("messages_per_s", "write `rate = { messages_per_s = … }`"),
        ("bytes_per_s", "write `rate = { bytes_per_s = \"…\" }`"),
        ("max_queued_messages", "what waits for a client is bounded in bytes: `max_bytes` in [broker.session]"),
    ],
    later: &[],
};

/// `rate = { … }`
pub static RATE: KeyTable = KeyTable {
    title: "broker.limits.rate",
    keys: &[optional("messages_per_s"), optional("bytes_per_s")],
    gone: &[],
    later: &[],
};

/// `[uplink.<name>]`
pub static UPLINK: KeyTable = KeyTable {
    title: "uplink.<name>",
    keys: &[
        required("url"),
        default("profile", "\"generic\""),
        default("protocol", "\"5\""),
        default("client_id", "\"{gateway}\""),
        optional("ca"),
        optional("cert"),
        optional("key"),
        default("alpn", "[]"),
        optional("username"),
        optional("password_file"),
        optional("jwt"),
        optional("auth_method"),
        optional("sas"),
        optional("dps"),
        optional("authorizer"),
        optional("provision"),
        optional("proxy"),
        optional("http"),
        default("keep_alive", "\"30s\""),
        default("session_expiry", "\"7 days\""),
        default("window", "100"),
        default("reconnect", "{ first = \"1s\", max = \"30s\" }"),
        default("drain", "\"oldest-first\""),
        optional("pace"),
        default("link", "\"normal\""),
        default("own_topic", "\"tidegate/{gateway}\""),
        optional("forward"),
        optional("receive"),
        optional("thing"),
        optional("twin"),
        default("jobs", "false"),
    ],
    gone: &[
        ("shadow", "write `twin = { shadow = \"…\" }`"),
        ("thing_name", "it is called `thing`"),
        ("device_twin", "it is called `twin`"),
        ("host", "write `url = \"mqtts://host:8883\"`"),
        ("address", "write `url = \"mqtts://host:8883\"`"),
        ("server", "write `url = \"mqtts://host:8883\"`"),
        ("broker", "write `url = \"mqtts://host:8883\"`"),
        ("urls", "it is called `url`, and may be a list"),
        ("port", "it is part of `url`: `\"mqtts://host:8883\"`"),
        ("tls", "write `url = \"mqtts://…\"`, and `ca`, `cert`, `key` beside it"),
        ("clientid", "it is called `client_id`"),
        ("user", "it is called `username`"),
        ("password", "write it in a file of its own and name that: `password_file`"),
        ("ca_file", "it is called `ca`"),
        ("cafile", "it is called `ca`"),
        ("cert_file", "it is called `cert`"),
        ("certfile", "it is called `cert`"),
        ("key_file", "it is called `key`"),
        ("keyfile", "it is called `key`"),
        ("keepalive", "it is called `keep_alive`"),
        ("version", "it is called `protocol`"),
        ("max_inflight", "it is called `window`"),
        ("inflight", "it is called `window`"),
        (
            "token",
            "one that somebody else signs stands in the file `password_file`; to sign here write `jwt = { key = \"…\" }`",
        ),
        ("http_proxy", "write `proxy = { url = \"http://host:3128\" }`"),
        ("clean_session", "a session is always kept; how long says `session_expiry`"),
        ("topics", "write `[[uplink.<name>.forward]]` or `[[uplink.<name>.receive]]`"),
        ("subscribe", "write `[[uplink.<name>.receive]]`"),
        ("publish", "write `[[uplink.<name>.forward]]`"),
    ],
    later: &["envelope", "batch", "format", "interface"],
};

/// `reconnect = { … }`
pub static RECONNECT: KeyTable = KeyTable {
    title: "uplink.<name>.reconnect",
    keys: &[default("first", "\"1s\""), default("max", "\"30s\"")],
    gone: &[("min", "it is called `first`")],
    later: &[],
};

/// `jwt = { … }`
pub static JWT: KeyTable = KeyTable {
    title: "uplink.<name>.jwt",
    keys: &[
        required("key"),
        optional("key_id"),
        optional("audience"),
        optional("issuer"),
        optional("subject"),
        default("lifetime", "\"1h\""),
    ],
    gone: &[
        ("algorithm", "the kind of the key decides: RSA signs RS256, P-256 signs ES256"),
        ("key_file", "it is called `key`"),
        ("private_key", "it is called `key`"),
        ("aud", "it is called `audience`"),
        ("iss", "it is called `issuer`"),
        ("sub", "it is called `subject`"),
        ("kid", "it is called `key_id`"),
        ("exp", "how long a token lives is called `lifetime`"),
        ("expires", "how long a token lives is called `lifetime`"),
        ("token", "a token that somebody else signs stands in the file `password_file`"),
        ("file", "a token that somebody else signs stands in the file `password_file`"),
    ],
    later: &[],
};

/// `sas = { … }`
pub static SAS: KeyTable = KeyTable {
    title: "uplink.<name>.sas",
    keys: &[optional("key"), optional("group_key"), default("lifetime", "\"1h\"")],
    gone: &[
        ("key_file", "it is called `key`, and names a file"),
        ("connection_string", "write its HostName as `url`, its DeviceId as `client_id`, and its key in a file: `key`"),
        ("token", "one that somebody else makes stands in the file `password_file`"),
    ],
    later: &[],
};

/// `dps = { … }`
pub static DPS: KeyTable = KeyTable {
    title: "uplink.<name>.dps",
    keys: &[required("id_scope")],
    gone: &[
        ("scope", "it is called `id_scope`"),
        ("idscope", "it is called `id_scope`"),
        ("scope_id", "it is called `id_scope`"),
        ("registration_id", "it is the uplink's `client_id`"),
        ("key", "it stands in `sas` of the uplink: `key`, or `group_key` for one of an enrolment group"),
        ("group_key", "it stands in `sas` of the uplink"),
        ("url", "it is `url` of the uplink; the hub follows from the registration"),
        ("host", "it is `url` of the uplink; the hub follows from the registration"),
    ],
    later: &["payload"],
};

/// `twin = { … }`
pub static TWIN: KeyTable = KeyTable {
    title: "uplink.<name>.twin",
    keys: &[optional("shadow")],
    gone: &[("name", "the name of a shadow is called `shadow`"), ("thing", "`thing` is a key of the uplink")],
    later: &[],
};

/// `authorizer = { … }`
pub static AUTHORIZER: KeyTable = KeyTable {
    title: "uplink.<name>.authorizer",
    keys: &[optional("name"), optional("token_key"), optional("token_file"), optional("signature_file")],
    gone: &[
        ("token", "write it in a file of its own and name that: `token_file`"),
        ("signature", "write it in a file of its own and name that: `signature_file`"),
        ("token_name", "it is called `token_key`"),
        ("token_key_name", "it is called `token_key`"),
    ],
    later: &[],
};

/// `provision = { … }`
pub static PROVISION: KeyTable = KeyTable {
    title: "uplink.<name>.provision",
    keys: &[
        required("template"),
        required("claim_cert"),
        required("claim_key"),
        optional("parameters"),
        default("format", "\"json\""),
    ],
    gone: &[
        ("template_name", "it is called `template`"),
        ("cert", "the certificate that all boards share is called `claim_cert`"),
        ("key", "its key is called `claim_key`"),
    ],
    later: &[],
};

/// `proxy = { … }`
pub static PROXY: KeyTable = KeyTable {
    title: "uplink.<name>.proxy",
    keys: &[required("url"), optional("username"), optional("password_file")],
    gone: &[
        ("host", "write `url = \"http://host:3128\"`"),
        ("address", "write `url = \"http://host:3128\"`"),
        ("port", "it is part of `url`: `\"http://host:3128\"`"),
        ("user", "it is called `username`"),
        ("password", "write it in a file of its own and name that: `password_file`"),
    ],
    later: &[],
};

/// `pace = { … }`
pub static PACE: KeyTable = KeyTable {
    title: "uplink.<name>.pace",
    keys: &[optional("messages_per_s"), optional("bytes_per_s")],
    gone: &[],
    later: &[],
};

/// `[[uplink.<name>.forward]]`
pub static FORWARD: KeyTable = KeyTable {
    title: "uplink.<name>.forward",
    keys: &[
        required("filter"),
        default("topic", "\"{topic}\""),
        optional("qos"),
        optional("when_full"),
        default("order", "\"normal\""),
        default("payload", "\"json\""),
        optional("template"),
        default("compress", "\"none\""),
        optional("batch"),
    ],
    gone: &[
        ("from", "it is called `filter`"),
        ("to", "it is called `topic`"),
        ("local", "it is called `filter`"),
        ("format", "it is called `payload`"),
        ("compression", "it is called `compress`"),
    ],
    later: &["envelope"],
};

/// `http = { … }`
pub static HTTP: KeyTable = KeyTable {
    title: "uplink.<name>.http",
    keys: &[
        optional("hmac_key_file"),
        default("hmac_header", "\"X-Signature-256\""),
        default("headers", "[]"),
        default("timeout", "\"30s\""),
    ],
    gone: &[
        ("token", "it stands in a file: `password_file` of the uplink, without `username`"),
        ("bearer", "it stands in a file: `password_file` of the uplink, without `username`"),
        ("url", "it is `url` of the uplink"),
        ("method", "messages are posted"),
    ],
    later: &[],
};

/// `template = { … }`
pub static TEMPLATE: KeyTable = KeyTable {
    title: "uplink.<name>.forward.template",
    keys: &[required("reading"), default("begin", "\"[\""), default("between", "\",\""), default("end", "\"]\"")],
    gone: &[],
    later: &[],
};

/// `batch = { … }`
pub static BATCH: KeyTable = KeyTable {
    title: "uplink.<name>.forward.batch",
    keys: &[default("readings", "1000"), default("bytes", "\"5 KiB\""), default("within", "\"1s\"")],
    gone: &[
        ("count", "it is called `readings`"),
        ("size", "it is called `bytes`"),
        ("interval", "it is called `within`"),
    ],
    later: &[],
};

/// `[[uplink.<name>.receive]]`
pub static RECEIVE: KeyTable = KeyTable {
    title: "uplink.<name>.receive",
    keys: &[
        required("filter"),
        default("topic", "\"{topic}\""),
        default("qos", "1"),
        optional("answer"),
        default("answers", "[]"),
    ],
    gone: &[
        ("from", "it is called `filter`"),
        ("to", "it is called `topic`"),
        ("remote", "it is called `filter`"),
        ("response", "it is called `answer`"),
        ("response_topic", "it is called `answer`"),
    ],
    later: &[],
};

/// `[line.<name>]`
pub static LINE: KeyTable = KeyTable {
    title: "line.<name>",
    keys: &[
        optional("port"),
        optional("url"),
        default("baud", "9600"),
        default("mode", "\"8E1\""),
        optional("dtr"),
        optional("rts"),
        optional("rs485"),
        default("framing", "\"rtu\""),
        default("timeout", "\"1s\""),
        default("pause", "\"0s\""),
        default("connect_pause", "\"0s\""),
        optional("share"),
    ],
    gone: &[
        ("device", "it is called `port`"),
        ("path", "it is called `port`"),
        ("tty", "it is called `port`"),
        ("baudrate", "it is called `baud`"),
        ("baud_rate", "it is called `baud`"),
        ("parity", "write data bits, parity and stop bits together: `mode = \"8E1\"`"),
        ("data_bits", "write data bits, parity and stop bits together: `mode = \"8E1\"`"),
        ("stop_bits", "write data bits, parity and stop bits together: `mode = \"8E1\"`"),
        ("host", "write `url = \"tcp://host:502\"`"),
        ("delay", "it is called `pause`"),
        ("pause_after_connect", "it is called `connect_pause`"),
    ],
    later: &["echo"],
};

/// `share = { … }` of a line
pub static SHARE: KeyTable = KeyTable {
    title: "line.<name>.share",
    keys: &[required("bind"), default("write", "false"), default("plaintext", "false")],
    gone: &[("listen", "it is called `bind`"), ("address", "it is called `bind`"), ("port", "it is called `bind`")],
    later: &[],
};

const RS485_GONE: &[(&str, &str)] = &[
    ("rts_on_send", "RTS is high while sending unless `invert_rts = true`"),
    ("rts_after_send", "RTS is low after sending unless `invert_rts = true`"),
    ("delay_rts_before_send", "it is called `delay_before`"),
    ("delay_rts_after_send", "it is called `delay_after`"),
    ("rx_during_tx", "it is called `full_duplex`"),
    ("terminate_bus", "it is called `terminate`"),
];

/// `rs485 = { … }` of a line or of a serial device
pub static RS485: KeyTable = KeyTable {
    title: "rs485",
    keys: &[
        default("invert_rts", "false"),
        default("full_duplex", "false"),
        default("terminate", "false"),
        default("delay_before", "\"0s\""),
        default("delay_after", "\"0s\""),
    ],
    gone: RS485_GONE,
    later: &[],
};

const MODBUS_GONE: &[(&str, &str)] = &[
    ("slave_id", "it is called `unit_id`"),
    ("slave", "it is called `unit_id`"),
    ("unit", "the number of the device is `unit_id`; the unit of measure stands in its points"),
    ("interval", "it is called `poll`"),
    ("poll_interval", "it is called `poll`"),
    ("byte_order", "it is called `order`"),
    ("word_order", "it is called `order`"),
    ("register", "write `[modbus.<name>.point]` with one line for each"),
    ("registers", "write `[modbus.<name>.point]` with one line for each"),
    ("host", "write `line = \"tcp://host:502\"`"),
    ("address", "the device's number is `unit_id`, its place `line`; the address of a register stands in its point"),
    ("url", "write it as `line`"),
    ("port", "write `[line.<name>]` with `port`, and `line = \"<name>\"` here"),
    ("limits", "write `max_registers`, `max_bits` and `forbidden`"),
    ("max_gap", "it is called `gap`"),
    ("max_count", "it is called `max_registers`; for coils and discrete inputs `max_bits`"),
    ("topic_prefix", "it is called `topic`: \"field/{device}/{point}\""),
];

/// `[model.<name>]`
pub static MODEL: KeyTable = KeyTable {
    title: "model.<name>",
    keys: &[
        optional("order"),
        optional("address_base"),
        optional("poll"),
        optional("timeout"),
        optional("topic"),
        optional("qos"),
        optional("report"),
        optional("max_registers"),
        optional("max_bits"),
        optional("gap"),
        optional("forbidden"),
        optional("points"),
        optional("point"),
    ],
    gone: MODBUS_GONE,
    later: &[],
};

/// `[modbus.<name>]`
pub static MODBUS: KeyTable = KeyTable {
    title: "modbus.<name>",
    keys: &[
        required("line"),
        required("unit_id"),
        optional("model"),
        default("order", "\"abcd\""),
        default("address_base", "0"),
        default("poll", "\"10s\""),
        optional("timeout"),
        default("topic", "\"field/{device}/{point}\""),
        default("qos", "1"),
        optional("report"),
        default("max_registers", "125"),
        default("max_bits", "2000"),
        default("gap", "16"),
        default("forbidden", "[]"),
        optional("points"),
        optional("point"),
    ],
    gone: MODBUS_GONE,
    later: &[],
};

/// One line of `[modbus.<name>.point]`
pub static MODBUS_POINT: KeyTable = KeyTable {
    title: "modbus.<name>.point.<name>",
    keys: &[
        required("address"),
        optional("type"),
        optional("registers"),
        default("count", "1"),
        optional("order"),
        optional("bit"),
        optional("bits"),
        default("scale", "1.0"),
        default("offset", "0.0"),
        optional("clamp_min"),
        optional("clamp_max"),
        optional("names"),
        optional("not_available"),
        optional("unit"),
        optional("poll"),
        optional("report"),
        optional("write"),
    ],
    gone: &[
        ("register", "it is called `address`: \"holding:100\""),
        ("kind", "it is called `type`"),
        ("data_type", "it is called `type`"),
        ("datatype", "it is called `type`"),
        ("factor", "it is called `scale`"),
        ("multiplier", "it is called `scale`"),
        ("interval", "it is called `poll`"),
        ("byte_order", "it is called `order`"),
        ("word_order", "it is called `order`"),
        ("length", "how many registers a text takes is called `registers`"),
        ("units", "it is called `unit`"),
        ("map", "it is called `names`"),
        ("enum", "it is called `names`"),
        ("values", "it is called `names`"),
        ("mask", "write which bits: `bits = \"4-7\"`"),
        ("min", "for what is read it is called `clamp_min`; for what is written, `write = { min = … }`"),
        ("max", "for what is read it is called `clamp_max`; for what is written, `write = { max = … }`"),
        ("array", "how many values follow each other is called `count`"),
        ("deadband", "write it in `report = { deadband = … }`"),
        ("heartbeat", "write it in `report = { heartbeat = … }`"),
        ("min_interval", "write it in `report = { min_interval = … }`"),
        ("writable", "write `write = true`"),
        ("access", "what may be written says `write = true`"),
        ("function", "the table is part of `address`: \"holding:100\", \"input:100\", \"coil:1\", \"discrete:1\""),
    ],
    later: &[],
};

/// `write = { … }`
pub static WRITE: KeyTable = KeyTable {
    title: "write",
    keys: &[
        optional("min"),
        optional("max"),
        default("per_minute", "60"),
        default("expiry", "\"60s\""),
        optional("function"),
        default("readable", "true"),
        default("settle", "\"0s\""),
        default("idempotent", "false"),
    ],
    gone: &[
        ("clamp_min", "it is called `min`: what is less is refused"),
        ("clamp_max", "it is called `max`: what is more is refused"),
        ("expires", "it is called `expiry`"),
        ("timeout", "it is called `expiry`"),
        ("rate", "it is called `per_minute`"),
        ("verify", "what can be read is read back; where it cannot, write `readable = false`"),
        ("read_back", "what can be read is read back; where it cannot, write `readable = false`"),
        ("delay", "how long after the write it is read back is called `settle`"),
    ],
    later: &[],
};

/// `report = { … }`
pub static REPORT: KeyTable = KeyTable {
    title: "report",
    keys: &[optional("deadband"), optional("min_interval"), optional("heartbeat")],
    gone: &[("interval", "it is called `min_interval`"), ("max_interval", "it is called `heartbeat`")],
    later: &[],
};

/// `[serial.<name>]`
pub static SERIAL: KeyTable = KeyTable {
    title: "serial.<name>",
    keys: &[
        required("port"),
        default("baud", "9600"),
        default("mode", "\"8N1\""),
        default("flow", "\"none\""),
        optional("dtr"),
        optional("rts"),
        optional("rs485"),
        optional("ask"),
        optional("frame"),
        optional("parse"),
        optional("good"),
        default("topic", "\"field/{device}/{point}\""),
        default("qos", "1"),
        optional("point"),
        optional("command"),
    ],
    gone: &[
        ("device", "it is called `port`"),
        ("path", "it is called `port`"),
        ("baudrate", "it is called `baud`"),
        ("baud_rate", "it is called `baud`"),
        ("parity", "write data bits, parity and stop bits together: `mode = \"8N1\"`"),
        ("rtscts", "write `flow = \"rtscts\"`"),
        ("xonxoff", "write `flow = \"xonxoff\"`"),
        ("flow_control", "it is called `flow`"),
        ("checksum", "write it in `frame = { …, checksum = { kind = \"crc16-modbus\" } }`"),
        ("delimiter", "write `frame = { delimiter = \"\\r\\n\" }`"),
        ("regex", "write `parse = { regex = '…' }`"),
        ("poll", "write `ask = { send = \"…\", every = \"1s\" }`"),
    ],
    later: &["capture"],
};

/// `ask = { … }`
pub static ASK: KeyTable = KeyTable {
    title: "serial.<name>.ask",
    keys: &[required("send"), default("every", "\"1s\""), default("timeout", "\"500ms\"")],
    gone: &[("interval", "it is called `every`"), ("poll", "it is called `every`"), ("request", "it is called `send`")],
    later: &[],
};

/// `frame = { … }`
pub static FRAME: KeyTable = KeyTable {
    title: "serial.<name>.frame",
    keys: &[
        default("delimiter", "\"\\r\\n\""),
        optional("start"),
        optional("end"),
        optional("length"),
        optional("idle"),
        default("tail", "0"),
        optional("escape"),
        default("escape_xor", "0"),
        optional("checksum"),
        default("max", "1024"),
    ],
    gone: &[
        ("max_length", "it is called `max`"),
        ("sync", "the bytes that a frame begins with are called `start`"),
        ("stx", "the bytes that a frame begins with are called `start`"),
        ("etx", "the bytes that a frame ends with are called `end`"),
        ("timeout", "the silence that ends a frame is called `idle`"),
        ("gap", "the silence that ends a frame is called `idle`"),
        ("crc", "write `checksum = { kind = \"crc16-modbus\" }`"),
    ],
    later: &[],
};

/// `length = { … }` of a frame
pub static LENGTH: KeyTable = KeyTable {
    title: "serial.<name>.frame.length",
    keys: &[
        required("offset"),
        default("width", "1"),
        default("order", "\"big\""),
        default("counts", "\"rest\""),
        default("plus", "0"),
    ],
    gone: &[("at", "it is called `offset`"), ("size", "it is called `width`"), ("add", "it is called `plus`")],
    later: &[],
};

/// `checksum = { … }` of a frame
pub static CHECKSUM: KeyTable = KeyTable {
    title: "serial.<name>.frame.checksum",
    keys: &[
        required("kind"),
        default("form", "\"binary\""),
        optional("order"),
        optional("at"),
        default("from", "0"),
        default("skip", "0"),
    ],
    gone: &[
        ("type", "it is called `kind`"),
        ("as", "it is called `form`: \"binary\" or \"hex\""),
        ("encoding", "it is called `form`: \"binary\" or \"hex\""),
        ("offset", "it is called `at`"),
        ("to", "it covers all before it; write how many bytes right before it are not covered as `skip`"),
    ],
    later: &[],
};

/// `parse = { … }`
pub static PARSE: KeyTable = KeyTable {
    title: "serial.<name>.parse",
    keys: &[
        optional("regex"),
        optional("csv"),
        optional("separator"),
        optional("fixed"),
        optional("json"),
        optional("bytes"),
        optional("hex"),
        optional("nmea"),
        default("decimal", "\".\""),
    ],
    gone: &[
        ("pattern", "it is called `regex`"),
        ("columns", "write them as `csv = [\"weight\", \"unit\"]`"),
        ("binary", "it is called `bytes`"),
    ],
    later: &[],
};

/// One line of `[serial.<name>.point]`
pub static SERIAL_POINT: KeyTable = KeyTable {
    title: "serial.<name>.point.<name>",
    keys: &[
        default("type", "\"f64\""),
        optional("unit"),
        optional("pointer"),
        optional("at"),
        default("order", "\"abcd\""),
        optional("chars"),
        optional("bit"),
        optional("bits"),
        default("scale", "1.0"),
        default("offset", "0.0"),
        optional("clamp_min"),
        optional("clamp_max"),
        optional("names"),
        optional("not_available"),
        optional("report"),
    ],
    gone: &[
        ("kind", "it is called `type`"),
        ("group", "a point bears the name of its group"),
        ("column", "a point bears the name of its column"),
        ("units", "it is called `unit`"),
        ("byte", "it is called `at`"),
        ("factor", "it is called `scale`"),
        ("length", "how many characters a text takes is called `chars`"),
    ],
    later: &[],
};

/// One line of `[serial.<name>.command]`
pub static SERIAL_COMMAND: KeyTable = KeyTable {
    title: "serial.<name>.command.<name>",
    keys: &[
        required("send"),
        optional("min"),
        optional("max"),
        optional("decimals"),
        optional("values"),
        optional("good"),
        optional("bad"),
        default("timeout", "\"500ms\""),
        default("per_minute", "60"),
        default("expiry", "\"60s\""),
        default("idempotent", "false"),
    ],
    gone: &[
        ("answer", "the answer that says that it was done is called `good`"),
        ("reply", "the answer that says that it was done is called `good`"),
        ("expires", "it is called `expiry`"),
        ("rate", "it is called `per_minute`"),
        ("write", "what is sent is called `send`"),
        ("names", "the words that a request may say are called `values`"),
    ],
    later: &[],
};
