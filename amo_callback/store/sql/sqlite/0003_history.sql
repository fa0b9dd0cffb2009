-- events: what happened to connections, by which process; details are JSON, never a secret.
-- outbox: changes of which others are to be notified, each written with the change.
-- frozen_at: nothing of this connection is spent. warned_days: which warning of the end of its refresh token was given.
CREATE TABLE events (
    id            INTEGER PRIMARY KEY,
    at            INTEGER NOT NULL,
    connection_id TEXT,
    name          TEXT NOT NULL,
    process       TEXT NOT NULL,
    details       TEXT NOT NULL
) STRICT;

CREATE INDEX events_by_connection ON events (connection_id, id);
CREATE INDEX events_by_time ON events (at);

CREATE TABLE outbox (
    id   TEXT PRIMARY KEY,
    at   INTEGER NOT NULL,
    type TEXT NOT NULL,
    data TEXT NOT NULL
) STRICT;

CREATE INDEX outbox_by_time ON outbox (at);

ALTER TABLE connections ADD COLUMN frozen_at INTEGER;
ALTER TABLE connections ADD COLUMN warned_days INTEGER;

DROP INDEX connections_by_due;
CREATE INDEX connections_by_due ON connections (next_refresh_at, access_expires_at, id)
    WHERE status = 'active' AND frozen_at IS NULL;
-- The second column is for whoever counts the living and the fresh: a fleet is counted in its index alone.
CREATE INDEX connections_by_deadline ON connections (refresh_expires_at, access_expires_at) WHERE status = 'active';
CREATE INDEX connections_by_attempt ON connections (id) WHERE attempt IS NOT NULL;
