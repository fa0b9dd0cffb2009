-- outbox: in the order in which it was written, since a connection's notices are delivered in that order.
-- lease: of whoever delivers it at this moment; it ends by itself. parked_at: when it was given up, and kept.
ALTER TABLE outbox RENAME TO old_outbox;

CREATE TABLE outbox (
    number        INTEGER PRIMARY KEY,
    id            TEXT NOT NULL UNIQUE,
    at            INTEGER NOT NULL,
    type          TEXT NOT NULL,
    connection_id TEXT NOT NULL,
    data          TEXT NOT NULL,
    tries         INTEGER NOT NULL DEFAULT 0,
    next_try_at   INTEGER NOT NULL,
    last_error    TEXT,
    lease         TEXT,
    lease_until   INTEGER,
    parked_at     INTEGER
) STRICT;

INSERT INTO outbox (id, at, type, connection_id, data, next_try_at)
SELECT id, at, type, json_extract(data, '$.connection_id'), data, at FROM old_outbox ORDER BY at, rowid;

DROP TABLE old_outbox;

CREATE INDEX outbox_by_time ON outbox (at);
CREATE INDEX outbox_by_try ON outbox (next_try_at, number) WHERE parked_at IS NULL;
CREATE INDEX outbox_by_lease ON outbox (lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX outbox_by_connection ON outbox (connection_id, number) WHERE parked_at IS NULL;
CREATE INDEX outbox_by_parking ON outbox (parked_at) WHERE parked_at IS NOT NULL;
