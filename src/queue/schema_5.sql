-- Step 5 of the schema: sessions of local clients. The tables `session` (whose `stream` is the session's number),
-- `subscription` and `rx` are those of step 1. What waits lies beside `delivery`, whose streams are the uplinks': a
-- program of an earlier step, which knows no such sessions, must not count or keep anything for them.

-- Since when no client is there, by the clock of a start. No row: there is one, or was when the gateway ended.
CREATE TABLE IF NOT EXISTS session_away(
  session INTEGER PRIMARY KEY, start INTEGER NOT NULL, wall_ms INTEGER NOT NULL, mono_ms INTEGER NOT NULL,
  is_unset INTEGER NOT NULL) STRICT;

-- What waits for a session: spans of sequences that one subscription (lane) has matched under the same terms.
-- bytes: of their rows. qos, options and identifier: of the subscription when it matched.
CREATE TABLE IF NOT EXISTS session_span(
  session INTEGER NOT NULL, lane INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
  bytes INTEGER NOT NULL, qos INTEGER NOT NULL, options INTEGER NOT NULL, identifier INTEGER,
  PRIMARY KEY(session, lane, first)) STRICT, WITHOUT ROWID;

-- QoS 2 to a client: a packet id and the copy that it carries, from before PUBLISH until PUBCOMP.
CREATE TABLE IF NOT EXISTS session_flight(
  session INTEGER NOT NULL, pid INTEGER NOT NULL, lane INTEGER NOT NULL, sequence INTEGER NOT NULL,
  ord INTEGER NOT NULL, released INTEGER NOT NULL, PRIMARY KEY(session, pid)) STRICT, WITHOUT ROWID;
