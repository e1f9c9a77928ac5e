//! `[broker.user.<name>]`, `[broker.group.<name>]` and `[broker.anonymous]`.

use std::sync::Arc;

use super::super::access::{CertificateName, PasswordHash, TopicPattern, TopicRights};
use super::super::keys;
use super::super::load::read_bounded;
use super::super::tree::{Spot, Tree};
use super::super::units::Wrong;
use super::super::walk::{At, Reader, Walk, text};
use super::{AnonymousDraft, GroupDraft, UserDraft, file};
use crate::message::is_reserved;

/// More patterns than this are a mistake: each message is held against them.
const PATTERNS_MAX: usize = 256;

/// No hash is longer.
const HASH_BYTES_MAX: u64 = 4096;

pub(super) fn user(walk: &mut Walk, name: &str, tree: &Tree, spot: Spot) -> UserDraft {
    let reader = Reader::open(walk, tree, &keys::USER, spot);
    let password = password(walk, &reader);
    let certificate = reader.leaf(walk, "certificate", |node| CertificateName::parse(text(node)?));
    let by_token = reader.truth(walk, "jwt");
    let groups = if reader.has("groups") { reader.texts(walk, "groups") } else { Some(Vec::new()) };
    let rights = rights(walk, &reader);
    let has_password = reader.has("password_hash") || reader.has("password_hash_file");
    let has_hole = (has_password && password.is_none())
        || (reader.has("certificate") && certificate.is_none())
        || by_token.is_none()
        || groups.is_none();
    UserDraft {
        name: Arc::from(name),
        spot,
        password,
        has_password,
        has_certificate: reader.has("certificate"),
        certificate,
        // Where that is wrong it is told, and nothing else about it.
        by_token: by_token.is_none_or(|at| at.value),
        groups: groups.unwrap_or_default(),
        rights: rights.filter(|_| !has_hole),
    }
}

/// What a password is compared with; `None` where it is not written, or wrong.
pub(super) fn password(walk: &mut Walk, reader: &Reader<'_>) -> Option<PasswordHash> {
    let written = reader.leaf(walk, "password_hash", |node| PasswordHash::parse(text(node)?));
    let from_file = hash_file(walk, reader);
    if reader.has("password_hash") && reader.has("password_hash_file") {
        let help = "keep one of the two".to_owned();
        let what = "a user has one password: `password_hash` or `password_hash_file`";
        walk.findings.problem(reader.spot_of("password_hash_file"), what, Some(help));
        return None;
    }
    written.map(|at| at.value).or(from_file)
}

pub(super) fn group(walk: &mut Walk, name: &str, tree: &Tree, spot: Spot) -> GroupDraft {
    let reader = Reader::open(walk, tree, &keys::GROUP, spot);
    GroupDraft { name: Arc::from(name), spot, rights: rights(walk, &reader) }
}

pub(super) fn anonymous(walk: &mut Walk, tree: &Tree, spot: Spot) -> AnonymousDraft {
    let reader = Reader::open(walk, tree, &keys::ANONYMOUS, spot);
    AnonymousDraft { spot, rights: rights(walk, &reader) }
}

/// The hash in a file: its first line.
fn hash_file(walk: &mut Walk, reader: &Reader<'_>) -> Option<PasswordHash> {
    const KEY: &str = "password_hash_file";
    let At { value: path, spot, .. } = file(walk, reader, KEY, true)?;
    let read = read_bounded(&path, HASH_BYTES_MAX).map_err(|reason| Wrong::new(format!("{} {reason}", path.display())));
    let parsed = read.and_then(|bytes| {
        let text = String::from_utf8_lossy(&bytes);
        PasswordHash::parse(text.lines().next().unwrap_or_default().trim())
    });
    parsed.map_err(|wrong| walk.wrong(spot, KEY, wrong)).ok()
}

pub(super) fn rights(walk: &mut Walk, reader: &Reader<'_>) -> Option<TopicRights> {
    let publish = patterns(walk, reader, "publish");
    let subscribe = patterns(walk, reader, "subscribe");
    let deny = patterns(walk, reader, "deny");
    Some(TopicRights { publish: publish?, subscribe: subscribe?, deny: deny? })
}

fn patterns(walk: &mut Walk, reader: &Reader<'_>, key: &'static str) -> Option<Vec<TopicPattern>> {
    if !reader.has(key) {
        return Some(Vec::new());
    }
    let texts = reader.texts(walk, key)?;
    if texts.len() > PATTERNS_MAX {
        walk.wrong(reader.spot_of(key), key, Wrong::new(format!("has more than {PATTERNS_MAX} filters")));
        return None;
    }
    let mut patterns = Vec::new();
    let mut is_whole = true;
    for At { value, spot, .. } in texts {
        let pattern = TopicPattern::parse(&value).and_then(|pattern| match key == "publish" && is_reserved(&value) {
            true => Err(Wrong::new(format!("nobody may publish to {value:?}: it is the gateway's own"))),
            false => Ok(pattern),
        });
        match pattern {
            Ok(pattern) => patterns.push(pattern),
            Err(wrong) => {
                walk.wrong(spot, key, wrong);
                is_whole = false;
            }
        }
    }
    is_whole.then_some(patterns)
}
