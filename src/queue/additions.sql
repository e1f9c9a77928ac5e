-- Tables that stores of the first step may lack; a program that does not know them loses nothing that it needs.

-- How far the salvage of each quarantine has come, as JSON (salvage.rs).
CREATE TABLE IF NOT EXISTS salvage(place TEXT PRIMARY KEY, progress TEXT NOT NULL) STRICT, WITHOUT ROWID;

-- Single texts: `stop`, why the program stopped in order the last time.
CREATE TABLE IF NOT EXISTS note(key TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT, WITHOUT ROWID;
