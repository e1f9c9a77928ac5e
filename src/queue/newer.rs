//! A store that a newer program wrote and that this one may not open, after an update was taken back: it is good, so it
//! is neither thrown among the damaged ones nor touched. It lies in `newer/` until a program that may open it starts.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use log::{error, info, warn};

use super::QueueSettings;
use super::identity::sync_dir;
use super::store::Store;
use crate::health::Alarm;

const NEWER: &str = "newer";

/// Puts the store aside. It was closed, so that all of it is in one file: it is here or there, never half of it.
pub(super) fn set_aside(dir: &Path, database: &str, step: u64) -> io::Result<PathBuf> {
    let newer = dir.join(NEWER);
    let number = places(&newer).last().map_or(1, |(number, _)| number + 1);
    let place = newer.join(number.to_string());
    DirBuilder::new().recursive(true).mode(0o700).create(&place)?;
    sync_dir(&newer)?;
    fs::rename(dir.join(database), place.join(database))?;
    sync_dir(&place)?;
    sync_dir(dir)?;
    error!(
        kept:% = place.display(), step;
        "A newer program wrote the store and this one may not open it; it is kept as it is, and the queue starts empty. \
         What waits in it is delivered when the newer program is back"
    );
    Ok(place)
}

/// Brings back the oldest store that was put aside, where this program may open it and nothing waits in the present one,
/// which `retire` then moves away. Says whether it did.
pub(super) fn take_back(dir: &Path, database: &str, retire: impl FnOnce() -> io::Result<PathBuf>) -> io::Result<bool> {
    let newer = dir.join(NEWER);
    let Some((_, place)) = places(&newer).into_iter().next() else { return Ok(false) };
    let (aside, present) = (place.join(database), dir.join(database));
    let may_open = Store::open(&aside).is_ok_and(|store| store.close().is_ok());
    if !may_open {
        warn!(kept:% = place.display(); "A store of a newer program is kept until that program is back");
        return Ok(false);
    }
    if present.exists() {
        let is_drained = Store::open(&present).is_ok_and(|store| {
            let is_drained = store.deliveries().is_some_and(|waiting| waiting.values().all(|count| *count == 0));
            store.close().is_ok() && is_drained
        });
        if !is_drained {
            warn!(
                kept:% = place.display();
                "The store that was put aside comes back at a start at which nothing waits in the present one"
            );
            return Ok(false);
        }
        retire()?;
    }
    fs::rename(&aside, &present)?;
    sync_dir(dir)?;
    fs::remove_dir_all(&place)?;
    info!("The store that was put aside is back; what waits in it is delivered now");
    Ok(true)
}

/// Whether a store was put aside.
pub(super) fn is_any(dir: &Path) -> bool {
    !places(&dir.join(NEWER)).is_empty()
}

/// Shows in `status` what is aside, or that nothing is any more.
pub(super) fn show(settings: &QueueSettings) {
    let places = places(&settings.dir.join(NEWER));
    let Some((_, oldest)) = places.first() else {
        settings.health.clear(Alarm::StoreAside);
        return;
    };
    let more = if places.len() > 1 { format!(", and {} more beside it", places.len() - 1) } else { String::new() };
    let text = format!(
        "a store that a newer program wrote is kept in {}{more}: what waits in it is delivered when that program is back",
        oldest.display()
    );
    settings.health.raise(Alarm::StoreAside, settings.clock.now().wall_ms, &text);
}

/// What is aside, the oldest first.
fn places(newer: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = fs::read_dir(newer) else { return Vec::new() };
    let mut places: Vec<(u64, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((path.file_name()?.to_str()?.parse().ok()?, path))
        })
        .collect();
    places.sort();
    places
}
