//! `[broker.jwt]`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::keys;
use super::super::load::read_bounded;
use super::super::tokens::{self, TokenConfig, TokenKey};
use super::super::tree::{Spot, Tree};
use super::super::units::Wrong;
use super::super::walk::{At, Reader, Walk};
use super::{file_of, user};

/// No set of keys is longer.
const SET_BYTES_MAX: u64 = 1 << 20;
/// A clock that is further off is to be mended.
const LEEWAY_MAX: Duration = Duration::from_secs(600);

/// Without the rights of groups, which stand elsewhere.
pub(super) fn read(walk: &mut Walk, tree: &Tree, spot: Spot) -> Option<TokenConfig> {
    let reader = Reader::open(walk, tree, &keys::BROKER_JWT, spot);
    let keys = all_keys(walk, &reader);
    let audience = audience(walk, &reader);
    let issuer = reader.text(walk, "issuer");
    let user_claim = reader.text(walk, "user_claim");
    let groups_claim = reader.text(walk, "groups_claim");
    let leeway = reader.duration(walk, "leeway", Duration::ZERO, LEEWAY_MAX);
    let without_clock = reader.choice(walk, "without_clock", &[("judge", true), ("refuse", false)], &[]);
    let rights = user::rights(walk, &reader);
    if reader.has("issuer") && issuer.is_none() {
        return None;
    }
    Some(TokenConfig {
        keys: keys?,
        audience: audience?,
        issuer: issuer.map(|at| at.value),
        user_claim: user_claim?.value,
        groups_claim: groups_claim?.value,
        leeway: leeway?.value,
        without_clock: without_clock?.value,
        rights: rights?,
        groups: BTreeMap::new(),
    })
}

fn audience(walk: &mut Walk, reader: &Reader<'_>) -> Option<Vec<String>> {
    const KEY: &str = "audience";
    if !reader.has(KEY) {
        reader.missing(walk, KEY);
        return None;
    }
    let texts = reader.texts(walk, KEY)?;
    if texts.is_empty() || texts.iter().any(|at| at.value.is_empty()) {
        let wrong = Wrong::new("must name for whom the tokens are")
            .help("a token for another service must not open this one: have it say `aud`, and write that here");
        walk.wrong(reader.spot_of(KEY), KEY, wrong);
        return None;
    }
    Some(texts.into_iter().map(|at| at.value).collect())
}

fn all_keys(walk: &mut Walk, reader: &Reader<'_>) -> Option<Vec<Arc<TokenKey>>> {
    const KEY: &str = "keys";
    if !reader.has(KEY) {
        reader.missing(walk, KEY);
        return None;
    }
    let texts = reader.texts(walk, KEY)?;
    let mut all = Vec::new();
    let mut is_whole = !texts.is_empty();
    if texts.is_empty() {
        walk.wrong(reader.spot_of(KEY), KEY, Wrong::new("must name a file, or several"));
    }
    for text in &texts {
        let Some(At { value: path, spot, .. }) = file_of(walk, KEY, text, false) else {
            is_whole = false;
            continue;
        };
        let shown = path.display();
        let read = read_bounded(&path, SET_BYTES_MAX).map_err(|reason| Wrong::new(format!("{shown} {reason}")));
        let keys = read.and_then(|bytes| {
            tokens::keys(&bytes).map_err(|wrong| Wrong { what: format!("{shown} {}", wrong.what), ..wrong })
        });
        match keys {
            Ok(keys) => all.extend(keys.into_iter().map(Arc::new)),
            Err(wrong) => {
                walk.wrong(spot, KEY, wrong);
                is_whole = false;
            }
        }
    }
    is_whole.then_some(all)
}
