-- The store, step 1. Later steps only add: an older program must be able to drain what a newer one has stored.

-- Numbers and names of the whole store: `oldest_program`, `sequence` (reserved up to), `session` (reserved up to).
CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;

-- One row for each time the store was opened; what message rows say relative to it (row.rs).
CREATE TABLE start(
  start INTEGER PRIMARY KEY, store INTEGER NOT NULL, gateway TEXT NOT NULL, boot_id TEXT NOT NULL,
  wall_ms INTEGER NOT NULL, mono_ms INTEGER NOT NULL, clock INTEGER NOT NULL) STRICT;

-- Names of clients and uplinks, so that a message row bears a small number. Nothing but a name is lost with it.
CREATE TABLE word(id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE) STRICT;

-- Ordered consumers. kind: 0 uplink, 1 persistent session. rejected: a checksum of the name, 0 = none.
CREATE TABLE stream(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, kind INTEGER NOT NULL,
  session_key INTEGER, session INTEGER NOT NULL, rejected INTEGER NOT NULL DEFAULT 0,
  lost INTEGER NOT NULL DEFAULT 0) STRICT;

-- Forward rules as they were when messages were matched, each list once.
CREATE TABLE rule(id INTEGER PRIMARY KEY, definition TEXT NOT NULL UNIQUE) STRICT;

-- The messages lie in tables message_0, message_1, … that store.rs makes as they are needed:
--   CREATE TABLE message_<n>(sequence INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT
-- encoded and checksummed by row.rs. A table holds the sequences from the first of its segment to below the first of
-- the next one; a table without a segment is empty (segments.rs).
CREATE TABLE segment(first INTEGER PRIMARY KEY, tab INTEGER NOT NULL UNIQUE) STRICT;

-- What a stream wants: spans of sequences, matched under one list of rules. last = 2^63-1: open, it reaches to
-- the newest message. lane: a session's subscription; 0 for uplinks. Spans of one (stream, lane) do not overlap.
CREATE TABLE delivery(
  stream INTEGER NOT NULL, lane INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
  qos INTEGER, rule INTEGER NOT NULL, PRIMARY KEY(stream, lane, first)) STRICT, WITHOUT ROWID;

-- QoS 2 out: a packet id and the one message that it carries, or its batch.
CREATE TABLE inflight(
  stream INTEGER NOT NULL, pid INTEGER NOT NULL, sequence INTEGER, batch INTEGER, released INTEGER NOT NULL,
  ord INTEGER NOT NULL, topic TEXT NOT NULL, format INTEGER NOT NULL, clock_offset_ms INTEGER NOT NULL,
  PRIMARY KEY(stream, pid)) STRICT, WITHOUT ROWID;
CREATE TABLE batch_row(
  batch INTEGER NOT NULL, place INTEGER NOT NULL, sequence INTEGER NOT NULL,
  PRIMARY KEY(batch, place)) STRICT, WITHOUT ROWID;

-- QoS 2 in: packet ids between PUBLISH and PUBREL.
CREATE TABLE rx(
  session INTEGER NOT NULL, pid INTEGER NOT NULL, PRIMARY KEY(session, pid)) STRICT, WITHOUT ROWID;

-- Persistent sessions of local clients and what they subscribe to. version: a checksum of both, 0 = none.
CREATE TABLE session(
  stream INTEGER PRIMARY KEY, number INTEGER NOT NULL, user TEXT NOT NULL, client TEXT NOT NULL,
  expiry_s INTEGER, version INTEGER NOT NULL, UNIQUE(user, client)) STRICT;
CREATE TABLE subscription(
  stream INTEGER NOT NULL, lane INTEGER NOT NULL, filter TEXT NOT NULL, qos INTEGER NOT NULL,
  options INTEGER NOT NULL, identifier INTEGER, PRIMARY KEY(stream, lane)) STRICT, WITHOUT ROWID;

CREATE TABLE retained(id INTEGER PRIMARY KEY, topic TEXT NOT NULL UNIQUE, body BLOB NOT NULL) STRICT;

CREATE TABLE dead_letter(
  id INTEGER PRIMARY KEY, stream INTEGER NOT NULL, sequence INTEGER NOT NULL, reason TEXT NOT NULL,
  wall_ms INTEGER NOT NULL, body BLOB NOT NULL) STRICT;

-- Losses that were not told yet: one open row for each stream and reason, updated in place. count 0: not known.
CREATE TABLE gap(
  stream INTEGER NOT NULL, reason TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
  count INTEGER NOT NULL, from_ms INTEGER NOT NULL, to_ms INTEGER NOT NULL,
  PRIMARY KEY(stream, reason)) STRICT, WITHOUT ROWID;

-- Losses since the store was made.
CREATE TABLE loss(reason TEXT PRIMARY KEY, count INTEGER NOT NULL) STRICT, WITHOUT ROWID;

-- The number of each device's last reading.
CREATE TABLE device(name TEXT PRIMARY KEY, seq INTEGER NOT NULL) STRICT, WITHOUT ROWID;

-- The last problems, because a journal is often gone after a power cut.
CREATE TABLE problem(id INTEGER PRIMARY KEY, wall_ms INTEGER NOT NULL, text TEXT NOT NULL) STRICT;
