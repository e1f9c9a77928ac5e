-- Step 3 of the schema: the ledger (ledger.rs).
-- day: days since 1970-01-01 by the gateway's clock, UTC; 2^40: the clock was not set; 2^41: the mark (line.rs).
-- stream: 0 = what was read in the field. source: of ledger_source; negative: the start that gave the message ids.
CREATE TABLE ledger(
  day INTEGER NOT NULL, stream INTEGER NOT NULL, source INTEGER NOT NULL, body BLOB NOT NULL,
  PRIMARY KEY(day, stream, source)) STRICT, WITHOUT ROWID;
CREATE TABLE ledger_source(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;

-- Times in which nothing was measured. device: '' = the gateway itself. to_ms: null while it lasts.
CREATE TABLE ledger_gap(
  id INTEGER PRIMARY KEY, device TEXT NOT NULL, from_ms INTEGER NOT NULL, to_ms INTEGER,
  is_sure INTEGER NOT NULL, reason TEXT NOT NULL) STRICT;
