//! What gives way at the ceiling. Pure.

use crate::config::WhenFull;

/// Pages in the WAL after which they go to the database file, where the disk has room for it.
const CHECKPOINT_PAGES: u32 = 4000;
/// What one transaction writes at most, about.
pub(super) const CHECKPOINT_PAGES_MIN: u32 = 320;
/// What the WAL has beside each page.
pub(super) const WAL_FRAME: u64 = 24;
/// What the soft ceiling leaves of the hard one, at least, for what the session must write.
const RESERVE: u64 = 1024 * 1024;
/// The same on a disk that has hardly room.
const RESERVE_MIN: u64 = 256 * 1024;

/// What to do with a message for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The oldest messages that may go, go; where none may: `otherwise`.
    Evict {
        /// When nothing may go.
        otherwise: Refusal,
    },
    /// It is not taken.
    Turn(Refusal),
}

/// How a message is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Its publisher keeps it and tries again.
    Refuse,
    /// It is dropped, counted and declared.
    Drop,
}

/// Several streams may want one message, each by a rule of its own. Room that is made for one serves all; without
/// room nobody's message is dropped while one owner has said that its publisher shall wait.
pub(super) fn way(wanted: impl Iterator<Item = WhenFull> + Clone) -> Way {
    let otherwise = if wanted.clone().any(|rule| rule == WhenFull::Refuse) { Refusal::Refuse } else { Refusal::Drop };
    if wanted.clone().any(|rule| rule == WhenFull::DropOldest) {
        Way::Evict { otherwise }
    } else {
        Way::Turn(otherwise)
    }
}

/// Bytes of pages that a row takes, so that many rows together never take more than their sum by much.
pub(super) fn row_bytes(row: usize, page: u64) -> u64 {
    let row = row as u64;
    // Of a leaf page 8 bytes are its header; a cell has a pointer, two lengths, a rowid and a record header.
    let (page_room, cell) = (page - 8, row + 14);
    if cell * 2 > page_room {
        // Alone on its page, and what is over goes to pages of its own with a link each.
        return (1 + row.div_ceil(page - 4)) * page;
    }
    page.div_ceil(page_room / cell)
}

/// How much to evict at once: a little more than needed, because few deletions free no page at all.
pub(super) fn evict_bytes(needed: u64, ceiling: u64) -> u64 {
    needed.max((ceiling / 64).clamp(8 * 1024, 64 * 1024))
}

/// The two ceilings, in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ceilings {
    /// What intake may use.
    pub soft_pages: u64,
    /// What the store as a whole may use: without the difference a full store could admit nothing to the uplink.
    pub hard_pages: u64,
    /// Pages in the WAL after which they go to the database file.
    pub checkpoint_pages: u32,
}

/// The ceilings of `bytes_max`, which gives way to what the disk has: `available` bytes beside the `used` ones of the
/// store. The WAL and the reserve are taken off first: on a small disk an eighth of its room for each, on a larger one
/// what `checkpoint_pages` says and max(1 MiB, 2 %). Also says whether it gave way.
pub(super) fn ceilings(bytes_max: u64, available: u64, used: u64, page: u64) -> (Ceilings, bool) {
    // Less than this holds not even the tables; then the disk has to say no.
    const SOFT_BYTES_MIN: u64 = 64 * 1024;
    let room = available.saturating_add(used);
    let reserve = |soft: u64| (soft / 50).max((room / 8).clamp(RESERVE_MIN, RESERVE));
    let checkpoint = checkpoint_pages(room, page);
    // Until it is cut it may be twice as long: who reads it keeps it from being begun anew.
    let wal = 2 * u64::from(checkpoint) * (page + WAL_FRAME);
    let beside_wal = room.saturating_sub(wal);
    let possible = beside_wal.saturating_sub(reserve(beside_wal)).max(SOFT_BYTES_MIN);
    let soft = bytes_max.max(SOFT_BYTES_MIN).min(possible);
    let ceilings =
        Ceilings { soft_pages: soft / page, hard_pages: (soft + reserve(soft)) / page, checkpoint_pages: checkpoint };
    (ceilings, soft < bytes_max)
}

/// Pages in the WAL after which they go to the database file: as far apart as spares the flash, but on a disk with
/// `room` bytes the WAL may take an eighth of them at most. Never so few that one transaction is beyond them.
fn checkpoint_pages(room: u64, page: u64) -> u32 {
    let pages = room / 16 / (page + WAL_FRAME);
    u32::try_from(pages).unwrap_or(u32::MAX).clamp(CHECKPOINT_PAGES_MIN, CHECKPOINT_PAGES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_who_waits_keeps_the_message_of_all() {
        use WhenFull::{DropNewest, DropOldest, Refuse};
        assert_eq!(way([DropNewest].into_iter()), Way::Turn(Refusal::Drop));
        assert_eq!(way([DropNewest, Refuse].into_iter()), Way::Turn(Refusal::Refuse));
        assert_eq!(way([DropNewest, DropOldest].into_iter()), Way::Evict { otherwise: Refusal::Drop });
        assert_eq!(way([Refuse, DropOldest].into_iter()), Way::Evict { otherwise: Refusal::Refuse });
    }

    #[test]
    fn rows_are_counted_by_the_pages_they_take() {
        assert_eq!(row_bytes(240, 1024), 256);
        assert_eq!(row_bytes(241, 1024), 342);
        assert_eq!(row_bytes(2000, 1024), 3 * 1024);
    }

    #[test]
    fn the_disk_clamps_the_ceiling_and_the_reserve_is_never_part_of_it() {
        const MIB: u64 = 1024 * 1024;
        let (free, clamped) = ceilings(100 * MIB, 1000 * MIB, 0, 1024);
        assert_eq!((free.soft_pages, free.hard_pages, clamped), (100 * 1024, 102 * 1024, false));
        assert_eq!(free.checkpoint_pages, 4000);
        let (tight, clamped) = ceilings(100 * MIB, 40 * MIB, 10 * MIB, 1024);
        assert!(clamped && (42 * 1024..43 * 1024).contains(&tight.soft_pages), "{tight:?}");
        assert!(tight.hard_pages * 1024 + 2 * u64::from(tight.checkpoint_pages) * 1048 <= 50 * MIB);
        let (none, clamped) = ceilings(100 * MIB, 0, 0, 1024);
        assert_eq!((none.soft_pages, clamped), (64, true));
    }

    #[test]
    fn a_small_disk_is_mostly_for_messages_and_never_promised_twice() {
        for kib in [2 * 1024, 4 * 1024, 6 * 1024, 8 * 1024, 16 * 1024, 64 * 1024, 1024 * 1024] {
            let room = kib * 1024;
            let (ceilings, _) = ceilings(u64::MAX, room, 0, 1024);
            let wal = 2 * u64::from(ceilings.checkpoint_pages) * 1048;
            assert!(ceilings.hard_pages * 1024 + wal <= room, "{kib} KiB: {ceilings:?}");
            assert!(ceilings.soft_pages >= kib / 2, "{kib} KiB: {ceilings:?}");
        }
    }
}
