//! The files that say who this gateway is, and how long they are good for.

use std::fs;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::report::Finding;
use crate::clock::rfc3339;
use crate::config::UplinkConfig;
use crate::message::Stamp;
use crate::transport::{Validity, expiry_s};

/// With fewer days left a certificate is told.
pub(super) const DAYS_MIN: i64 = 30;

/// This gateway's own certificate and token.
pub(super) fn own(uplink: &UplinkConfig, now: Stamp) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(path) = &uplink.cert {
        let first = CertificateDer::from_pem_file(path).ok();
        findings.extend(
            first
                .and_then(|der| Validity::of(&der))
                .map(|validity| judge("certificate", &format!("`cert` ({})", path.display()), validity, now)),
        );
    }
    if uplink.jwt.is_none()
        && let Some(path) = &uplink.password_file
        && let Some(expires_s) = token_end(path)
    {
        let shown = rfc3339(expires_s.saturating_mul(1000));
        findings.push(if expires_s.saturating_mul(1000) <= now.wall_ms {
            let help = "whoever signs tokens must put a new one there; `jwt = { key = \"…\" }` signs them here";
            Finding::wrong("token", format!("the token in {} has ended on {shown}", path.display())).help(help)
        } else {
            Finding::good("token", format!("the one in {} is good until {shown}", path.display()))
        });
    }
    findings
}

fn token_end(path: &Path) -> Option<i64> {
    let text = fs::read(path).ok()?;
    expiry_s(text.split(|byte| *byte == b'\n').next().unwrap_or_default().trim_ascii())
}

/// Whether a certificate is good now, and for how long.
pub(super) fn judge(step: &'static str, whose: &str, validity: Validity, now: Stamp) -> Finding {
    let (from, until) = (rfc3339(validity.from_ms), rfc3339(validity.until_ms));
    if now.wall_ms > validity.until_ms {
        let what = format!("{whose} has expired on {until}, and it is {}", rfc3339(now.wall_ms));
        return Finding::wrong(step, what).help("renew it; a new file is read at the next connection");
    }
    if now.wall_ms < validity.from_ms {
        let what = format!("{whose} is valid from {from} on, and it is {}", rfc3339(now.wall_ms));
        return Finding::wrong(step, what).help("is this board's clock right?");
    }
    let days = validity.days_left(now.wall_ms);
    let what = format!("{whose} is good until {until} ({days} days)");
    if days < DAYS_MIN { Finding::unsure(step, what).help("renew it in time") } else { Finding::good(step, what) }
}
