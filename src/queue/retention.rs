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
    /// What the shares of its parts are taken of: that somebody else has filled the disk makes nothing give way.
    pub share_pages: u64,
    /// Pages in the WAL after which they go to the database file.
    pub checkpoint_pages: u32,
    /// They are lower than the configuration says, because of the disk.
    pub is_clamped: bool,
    /// Others have taken the disk: beyond the soft ceiling what is stored stays, and what is new is refused, whatever the
    /// rules say. They are about the bound that the owner has set.
    pub is_crowded: bool,
}

/// What the store has of its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Disk {
    /// Bytes that nobody has, and those of the store and its WAL.
    pub room: u64,
    /// Bytes of pages that are in use.
    pub used: u64,
    /// Bytes that the database has blocks for, but for those that the uplink needs while it drains.
    pub owned: u64,
    /// Bytes that intake might use when the disk was not crowded; 0 = there was no such time.
    pub had: u64,
}

/// The ceilings of `bytes_max`, which gives way to what the disk has. The WAL and the reserve are taken off first: on a
/// small disk an eighth of its room for each, on a larger one what `checkpoint_pages` says and max(1 MiB, 2 %). Crowded is
/// a disk on which the store has less than half of what it had, or less than is in it.
pub(super) fn ceilings(bytes_max: u64, disk: Disk, page: u64) -> Ceilings {
    // Less than this holds not even the tables; then the disk has to say no.
    const SOFT_BYTES_MIN: u64 = 64 * 1024;
    let Disk { room, used, owned, had } = disk;
    let reserve = |soft: u64| (soft / 50).max((room / 8).clamp(RESERVE_MIN, RESERVE));
    let checkpoint_pages = checkpoint_pages(room, page);
    // Until it is cut it may be twice as long: who reads it keeps it from being begun anew.
    let wal = 2 * u64::from(checkpoint_pages) * (page + WAL_FRAME);
    let beside_wal = room.saturating_sub(wal);
    let possible = beside_wal.saturating_sub(reserve(beside_wal));
    let wanted = bytes_max.max(SOFT_BYTES_MIN);
    // A little more than possible is what the session has written into the reserve.
    let is_crowded = possible < had.min(wanted) / 2 || used.min(wanted) > possible + evict_bytes(0, possible);
    let (soft, share) = if is_crowded {
        (wanted.min(possible.max(used).max(owned)), wanted)
    } else {
        let soft = wanted.min(possible.max(SOFT_BYTES_MIN));
        (soft, soft)
    };
    Ceilings {
        soft_pages: soft / page,
        hard_pages: (soft + reserve(soft)) / page,
        share_pages: share / page,
        checkpoint_pages,
        is_clamped: soft < bytes_max,
        is_crowded,
    }
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
        let disk = |room, used| Disk { room, used, owned: 0, had: 0 };
        let free = ceilings(100 * MIB, disk(1000 * MIB, 0), 1024);
        assert_eq!((free.soft_pages, free.hard_pages, free.is_clamped), (100 * 1024, 102 * 1024, false));
        assert_eq!(free.checkpoint_pages, 4000);
        let tight = ceilings(100 * MIB, disk(50 * MIB, 10 * MIB), 1024);
        assert!(tight.is_clamped && (42 * 1024..43 * 1024).contains(&tight.soft_pages), "{tight:?}");
        assert!(tight.hard_pages * 1024 + 2 * u64::from(tight.checkpoint_pages) * 1048 <= 50 * MIB);
        let none = ceilings(100 * MIB, disk(0, 0), 1024);
        assert_eq!((none.soft_pages, none.is_clamped), (64, true));
    }

    #[test]
    fn what_others_take_of_the_disk_makes_nothing_give_way_and_a_lower_bound_of_the_owner_does() {
        const MIB: u64 = 1024 * 1024;
        for used in [40 * 1024, 300 * 1024, 5 * MIB, 900 * MIB] {
            // All that is left is the store's own.
            let (room, had) = (used + MIB / 2, 1024 * MIB);
            let crowded = ceilings(had, Disk { room, used, owned: 0, had }, 1024);
            assert!(crowded.is_crowded && crowded.is_clamped, "{crowded:?}");
            assert_eq!((crowded.soft_pages, crowded.share_pages), (used / 1024, 1024 * 1024));
            let owned = ceilings(had, Disk { room, used, owned: used + 2048, had }, 1024);
            assert_eq!(owned.soft_pages, used / 1024 + 2, "what it has blocks for it may use");
            let lowered = ceilings(MIB / 2, Disk { room: 4096 * MIB, used, owned: used, had }, 1024);
            assert_eq!((lowered.soft_pages, lowered.is_crowded), (512, false), "{lowered:?}");
        }
        let some = Disk { room: 100 * MIB, used: 10 * MIB, owned: 10 * MIB, had: 1024 * MIB };
        let some = ceilings(1024 * MIB, some, 1024);
        assert!(
            some.is_crowded && some.soft_pages > 80 * 1024,
            "what is left may be used, and nothing gives way: {some:?}"
        );
        let most = ceilings(1024 * MIB, Disk { room: 700 * MIB, used: MIB, owned: MIB, had: 1024 * MIB }, 1024);
        assert!(!most.is_crowded && most.is_clamped, "{most:?}");
        // A full store on a disk of its own is no other one after a restart, with what a session has in its reserve.
        let first = ceilings(u64::MAX, Disk { room: 16 * MIB, used: 0, owned: 0, had: 0 }, 1024);
        let had = first.soft_pages * 1024;
        let again = Disk { room: 16 * MIB, used: had + 8 * 1024, owned: 15 * MIB, had };
        assert_eq!(ceilings(u64::MAX, again, 1024), first);
    }

    #[test]
    fn a_small_disk_is_mostly_for_messages_and_never_promised_twice() {
        for kib in [2 * 1024, 4 * 1024, 6 * 1024, 8 * 1024, 16 * 1024, 64 * 1024, 1024 * 1024] {
            let room = kib * 1024;
            let ceilings = ceilings(u64::MAX, Disk { room, used: 0, owned: 0, had: 0 }, 1024);
            let wal = 2 * u64::from(ceilings.checkpoint_pages) * 1048;
            assert!(ceilings.hard_pages * 1024 + wal <= room, "{kib} KiB: {ceilings:?}");
            assert!(ceilings.soft_pages >= kib / 2, "{kib} KiB: {ceilings:?}");
        }
    }
}
