-- Times are microseconds since 1970, UTC.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;

CREATE TABLE connections (
    id                 TEXT PRIMARY KEY,
    account_id         TEXT NOT NULL,
    user_id            TEXT NOT NULL,
    domain             TEXT NOT NULL,
    api_domain         TEXT,
    client_id          TEXT NOT NULL,   -- the integration that the pair was granted to
    status             TEXT NOT NULL CHECK (status IN ('active', 'needs_reauth', 'disconnected')),
    reason             TEXT,
    last_error         TEXT,
    sealed_pair        BLOB,
    access_issued_at   INTEGER,
    access_expires_at  INTEGER,
    refresh_expires_at INTEGER,
    refreshed_at       INTEGER,
    next_refresh_at    INTEGER,
    failures           INTEGER NOT NULL DEFAULT 0,
    connected_at       INTEGER NOT NULL,
    grant_iat          INTEGER,         -- AMO's `iat` of the pair that the present grant began with
    pair_version       INTEGER NOT NULL DEFAULT 1,
    row_version        INTEGER NOT NULL DEFAULT 1,
    lease_owner        TEXT,
    lease_until        INTEGER,
    attempt            TEXT,
    spending           TEXT,            -- fingerprint of the refresh token that the open attempt presents
    doubtful           TEXT             -- fingerprint of one that may have been spent without an answer
) STRICT;

CREATE INDEX connections_by_account ON connections (account_id);
CREATE INDEX connections_by_due ON connections (next_refresh_at) WHERE status = 'active';

CREATE TABLE grants (
    code_hash     TEXT PRIMARY KEY,
    handle_hash   TEXT NOT NULL UNIQUE,
    sealed        BLOB,
    status        TEXT NOT NULL CHECK (status IN ('exchanging', 'connected', 'refused', 'failed')),
    error         TEXT,
    connection_id TEXT,
    attempt       TEXT NOT NULL,
    lease_until   INTEGER NOT NULL,
    doubtful      INTEGER NOT NULL DEFAULT 0,
    expires_at    INTEGER NOT NULL
) STRICT;

CREATE INDEX grants_by_expiry ON grants (expires_at);
