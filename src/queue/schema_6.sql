-- Step 6 of the schema: what was written to field devices within the last minute, so that a restart does not let a point be
-- written more often than its owner allows. A row is of no use to a program that does not know it, and of none after a minute.
CREATE TABLE IF NOT EXISTS pace(
  id INTEGER PRIMARY KEY, topic TEXT NOT NULL, boot_id TEXT NOT NULL, mono_ms INTEGER NOT NULL) STRICT;
