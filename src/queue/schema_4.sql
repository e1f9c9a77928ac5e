-- Step 4 of the schema: salvage, and single texts.

-- How far the salvage of each quarantine has come, as JSON (salvage.rs).
CREATE TABLE salvage(place TEXT PRIMARY KEY, progress TEXT NOT NULL) STRICT, WITHOUT ROWID;

-- Single texts: `stop`, why the program stopped in order the last time.
CREATE TABLE note(key TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT, WITHOUT ROWID;
