//! An uplink that speaks HTTP: what it sends where. Pure.

use std::path::PathBuf;
use std::time::Duration;

/// `http` of an uplink, and what its profile makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// What the other end is.
    pub kind: HttpKind,
    /// A signature of each body.
    pub hmac: Option<HmacConfig>,
    /// Further headers, as they are.
    pub headers: Vec<(String, String)>,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// What the other end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpKind {
    /// Any server that takes POST.
    Webhook,
    /// InfluxDB 1, 2 or 3, or whatever takes its lines.
    InfluxDb,
    /// `/topics` of AWS IoT Core: each message to its topic.
    AwsTopics,
}

/// `hmac_key_file` and `hmac_header`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HmacConfig {
    /// File whose first line is the key.
    pub key_file: PathBuf,
    /// The header that has `sha256=` and the signature in hexadecimal digits.
    pub header: String,
}
