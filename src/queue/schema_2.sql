-- Step 2 of the schema: the time of boards without a clock.

-- What each boot knew of the time: it did not begin before boot_ms_min, and this was the first moment that was known.
CREATE TABLE boot(
  boot_id TEXT PRIMARY KEY, boot_ms_min INTEGER NOT NULL,
  known_wall_ms INTEGER, known_mono_ms INTEGER, known_error_ms INTEGER) STRICT, WITHOUT ROWID;

-- How the time of a reading was written when it was first sent. timing: 0 as stamped, 1 corrected, 2 corrected with
-- error_ms, 3 between after_ms and before_ms.
ALTER TABLE inflight ADD COLUMN timing INTEGER NOT NULL DEFAULT 0;
ALTER TABLE inflight ADD COLUMN error_ms INTEGER;
ALTER TABLE inflight ADD COLUMN after_ms INTEGER;
ALTER TABLE inflight ADD COLUMN before_ms INTEGER;

-- 1: from_ms or to_ms was taken from a clock that was not set.
ALTER TABLE gap ADD COLUMN is_unset INTEGER NOT NULL DEFAULT 0;
