-- Step 7 of the schema: what was delivered and is kept for a while (kept.rs). A program that does not know these tables takes
-- away the rows, since nobody wants them; whoever comes after it finds spans without rows, and nothing waits in them.

-- Spans of sequences that nobody wants. period: in which they were delivered. bytes: that they take, about. sum: a checksum
-- of first and last, so that a damaged store is not believed where it says that something was delivered.
CREATE TABLE IF NOT EXISTS kept(
  first INTEGER PRIMARY KEY, last INTEGER NOT NULL, period INTEGER NOT NULL, bytes INTEGER NOT NULL,
  sum INTEGER NOT NULL) STRICT;

-- When a period began, by the clock of a start.
CREATE TABLE IF NOT EXISTS kept_period(
  id INTEGER PRIMARY KEY, start INTEGER NOT NULL, wall_ms INTEGER NOT NULL, mono_ms INTEGER NOT NULL,
  is_unset INTEGER NOT NULL) STRICT;

-- Of these, what a person has ordered to be sent to an uplink once more and is not delivered again yet.
CREATE TABLE IF NOT EXISTS kept_again(
  stream INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
  PRIMARY KEY(stream, first)) STRICT, WITHOUT ROWID;
