-- states: issued here for a grant, kept a day, used once: used_by is the hash of the code that one came back with.
-- owners: the app's users whose a connection is.
-- ticket_hash, ticket_until: what the app may present in place of AMO's code, and until when.
CREATE TABLE states (
    state_hash TEXT PRIMARY KEY,
    sealed     BLOB,
    expires_at INTEGER NOT NULL,
    used_by    TEXT
) STRICT;

CREATE INDEX states_by_expiry ON states (expires_at);

CREATE TABLE owners (
    connection_id TEXT NOT NULL,
    owner         TEXT NOT NULL,
    bound_at      INTEGER NOT NULL,
    PRIMARY KEY (connection_id, owner)
) STRICT, WITHOUT ROWID;

CREATE INDEX owners_by_owner ON owners (owner);

ALTER TABLE grants ADD COLUMN ticket_hash TEXT;
ALTER TABLE grants ADD COLUMN ticket_until INTEGER;

CREATE UNIQUE INDEX grants_by_ticket ON grants (ticket_hash) WHERE ticket_hash IS NOT NULL;
