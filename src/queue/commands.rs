//! Commands that clouds have sent at QoS 1 of late, so that one that comes again is not carried out again.
//!
//! A cloud repeats what it has no acknowledgement of: after a connection that ended between the two, and after a kill. At
//! QoS 1 it does so under any packet id, so a command is known by what it is made of. Each is written down in the
//! transaction that takes it, in a ring of a fixed size, because the acknowledgement follows at once: only the last ones
//! before a connection ended can come again.

use std::collections::{HashMap, VecDeque};

use super::store::Store;

/// Commands that are known at a time, of all clouds. More than can be unacknowledged at once.
pub(super) const COMMANDS_KEPT: u64 = 1024;

const NEXT: &str = "commands";

/// What was taken of late.
#[derive(Debug, Default)]
pub(super) struct Commands {
    /// How many were ever taken; the next one's place is this, modulo the ring.
    next: u64,
    ring: VecDeque<u64>,
    /// How often each stands in the ring.
    known: HashMap<u64, u32>,
}

impl Commands {
    /// What the store says.
    pub fn read(store: &Store) -> rusqlite::Result<Commands> {
        let mut commands = Commands { next: store.meta(NEXT)?.unwrap_or(0), ..Commands::default() };
        for number in commands.next.saturating_sub(COMMANDS_KEPT)..commands.next {
            if let Some(key) = store.meta(&place(number))? {
                commands.remember(key);
            }
        }
        Ok(commands)
    }

    /// Whether this one was taken.
    pub fn knows(&self, key: u64) -> bool {
        self.known.contains_key(&key)
    }

    /// This one is taken, in the transaction that is open.
    pub fn note(&mut self, store: &Store, key: u64) -> rusqlite::Result<()> {
        store.set_meta(&place(self.next), key)?;
        self.next = self.next.saturating_add(1);
        store.set_meta(NEXT, self.next)?;
        self.remember(key);
        Ok(())
    }

    fn remember(&mut self, key: u64) {
        self.ring.push_back(key);
        *self.known.entry(key).or_default() += 1;
        while u64::try_from(self.ring.len()).unwrap_or(u64::MAX) > COMMANDS_KEPT {
            let Some(old) = self.ring.pop_front() else { break };
            if let Some(count) = self.known.get_mut(&old) {
                *count -= 1;
                if *count == 0 {
                    self.known.remove(&old);
                }
            }
        }
    }
}

fn place(number: u64) -> String {
    format!("command.{}", number % COMMANDS_KEPT)
}
