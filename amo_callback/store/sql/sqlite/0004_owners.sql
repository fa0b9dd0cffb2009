-- states: issued here for a grant, kept a day, used once: used_by is the hash of the code that one came back with.
-- owners: the app's users whose a connection is, or was until he left it.
-- forgotten_at: when who owned a connection was last forgotten; what AMO accepted before that makes nobody an owner.
-- ticket_hash: what the app may present in place of AMO's code. accepted_at: when AMO accepted that.
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
    left_at       INTEGER,
    PRIMARY KEY (connection_id, owner)
) STRICT, WITHOUT ROWID;

CREATE INDEX owners_by_owner ON owners (owner);

ALTER TABLE grants ADD COLUMN ticket_hash TEXT;
ALTER TABLE grants ADD COLUMN accepted_at INTEGER;
ALTER TABLE connections ADD COLUMN forgotten_at INTEGER;

CREATE UNIQUE INDEX grants_by_ticket ON grants (ticket_hash) WHERE ticket_hash IS NOT NULL;
