-- Both engines' schema. SQLite's types are PostgreSQL's BIGINT, BYTEA and, so that no locale changes the order of a page,
-- TEXT COLLATE "C"; a line that begins with `--sqlite ` or `--postgres ` is that engine's alone.
-- Times are microseconds since 1970, UTC.
-- Encrypted columns are named `sealed` or `sealed_pair`.

-- meta: canary, location, freeze, mass failure, address block, rejected client credentials, last time, `serial`.
CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;

-- `serial` is a counter, incremented by each grant, each new owner and each disconnect. Its values decide which came
-- first; times do not, because the clocks of two processes differ.
--sqlite INSERT INTO meta (name, value) VALUES ('serial', CAST('1' AS BLOB));
--postgres INSERT INTO meta (name, value) VALUES ('serial', convert_to('1', 'UTF8'));

-- connections: one per AMO account and AMO user. Every update except by a hook or at the start of a recheck increments row_version; a refreshed pair,
-- a grant and a disconnect increment pair_version.
CREATE TABLE connections (
    id TEXT PRIMARY KEY,
    account_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    domain TEXT NOT NULL,
    api_domain TEXT,
    -- the integration that the pair was granted to
    client_id TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('active', 'needs_reauth', 'disconnected')),
    reason TEXT,
    last_error TEXT,
    sealed_pair BLOB,
    access_issued_at INTEGER,
    access_expires_at INTEGER,
    refresh_expires_at INTEGER,
    refreshed_at INTEGER,
    next_refresh_at INTEGER,
    failures INTEGER NOT NULL DEFAULT 0,
    connected_at INTEGER NOT NULL,
    -- AMO's `iat` of the first pair of the current grant
    grant_iat INTEGER,
    -- `serial` when it was last connected
    connected_no INTEGER NOT NULL DEFAULT 0,
    pair_version INTEGER NOT NULL DEFAULT 1,
    row_version INTEGER NOT NULL DEFAULT 1,
    lease_owner TEXT,
    lease_until INTEGER,
    attempt TEXT,
    -- fingerprint of the refresh token that the attempt presents
    presented_token TEXT,
    -- fingerprint of a refresh token that an attempt with an unknown outcome may have spent
    possibly_spent_token TEXT,
    -- when its refresh was last claimed
    attempted_at INTEGER,
    -- when its failure became terminal, while that counts for a mass failure
    needs_reauth_since INTEGER,
    -- since when AMO has refused it without a hint while introspection rejects its token
    refused_since INTEGER,
    -- the number of such refusals in a row
    refusals INTEGER NOT NULL DEFAULT 0,
    -- the reason of a terminal failure that a mass failure has suspended
    suspended_reason TEXT,
    -- fingerprint of the refresh token of that failure
    suspended_token TEXT,
    -- when its tokens are introspected next
    recheck_at INTEGER,
    -- when the last introspection began
    rechecked_at INTEGER,
    -- the pause before a further hook causes another
    recheck_pause INTEGER,
    -- when AMO's hook last named its account
    disabled_hook_at INTEGER,
    frozen_at INTEGER,
    -- the last warning before its tokens end
    warned_days INTEGER,
    -- `serial` of the last disconnect on request: a grant claimed before is not stored
    disconnect_no INTEGER,
    -- `serial` when its owners were last removed: a grant claimed before adds no owner
    forgotten_no INTEGER
) STRICT;

CREATE INDEX connections_by_account ON connections (account_id);
CREATE INDEX connections_by_due ON connections (next_refresh_at, access_expires_at, id)
    WHERE status = 'active' AND frozen_at IS NULL;
-- Rows with impossible times are due now: issued in the future, or due after they expire (unless they back off).
CREATE INDEX connections_by_issue ON connections (access_issued_at)
    WHERE status = 'active' AND frozen_at IS NULL AND failures = 0;
CREATE INDEX connections_due_too_late ON connections (id)
    WHERE status = 'active' AND frozen_at IS NULL AND failures = 0 AND next_refresh_at > access_expires_at;
CREATE INDEX connections_by_attempt ON connections (id) WHERE attempt IS NOT NULL;
CREATE INDEX connections_by_recheck ON connections (recheck_at) WHERE recheck_at IS NOT NULL;
CREATE INDEX connections_by_needs_reauth ON connections (needs_reauth_since) WHERE needs_reauth_since IS NOT NULL;
-- The second column lets connections be counted in these indexes only.
CREATE INDEX connections_by_deadline ON connections (refresh_expires_at, access_expires_at) WHERE status = 'active';
CREATE INDEX connections_by_status ON connections (status, reason) WHERE status <> 'active';
CREATE INDEX connections_by_success ON connections (refreshed_at, connected_at, attempted_at);
CREATE INDEX connections_by_client_mismatch ON connections (id) WHERE last_error = 'client_mismatch';
CREATE INDEX connections_by_host_not_allowed ON connections (id)
    WHERE status = 'active' AND last_error = 'host_not_allowed';

-- owners: app users who own a connection, or have left it.
CREATE TABLE owners (
    connection_id TEXT NOT NULL,
    owner TEXT NOT NULL,
    -- `serial` when the user last became an owner
    bound_no INTEGER NOT NULL,
    -- `serial` when the user left: a grant claimed before does not make them an owner again
    left_no INTEGER,
    PRIMARY KEY (connection_id, owner)
) STRICT, WITHOUT ROWID;

CREATE INDEX owners_by_owner ON owners (owner);

-- grants: one authorization from start to result. An authorization request inserts a row with its state, valid for half
-- an hour; the code that returns with the state uses that row, once. A code without an issued state inserts a row. Its
-- secrets are erased 20 minutes after the code came, and the row is deleted a day later.
CREATE TABLE grants (
    number INTEGER PRIMARY KEY,
    state_hash TEXT UNIQUE,
    code_hash TEXT UNIQUE,
    handle_hash TEXT UNIQUE,
    -- what the app may present instead of AMO's code
    ticket_hash TEXT UNIQUE,
    -- the authorization request; once a code has come, the grant's secrets
    sealed BLOB,
    status TEXT CHECK (status IN ('exchanging', 'connected', 'refused', 'failed')),
    error TEXT,
    connection_id TEXT,
    attempt TEXT,
    lease_until INTEGER,
    -- whether an exchange with an unknown outcome may have spent the code
--sqlite     possibly_spent INTEGER NOT NULL DEFAULT 0,
--postgres     possibly_spent BOOLEAN NOT NULL DEFAULT FALSE,
    expires_at INTEGER NOT NULL,
    -- when AMO accepted the code
    accepted_at INTEGER,
    -- `serial` when the code was first claimed
    no INTEGER,
    CHECK (state_hash IS NOT NULL OR code_hash IS NOT NULL),
    CHECK (
        code_hash IS NULL
        OR (handle_hash IS NOT NULL AND status IS NOT NULL AND attempt IS NOT NULL AND lease_until IS NOT NULL
            AND no IS NOT NULL)
    )
) STRICT;

CREATE INDEX grants_by_expiry ON grants (expires_at);

-- events: the history.
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    connection_id TEXT,
    name TEXT NOT NULL,
    process TEXT NOT NULL,
    -- JSON, never a secret
    details TEXT NOT NULL
) STRICT;

CREATE INDEX events_by_connection ON events (connection_id, id);
CREATE INDEX events_by_time ON events (at);

-- webhooks: messages to the operator's systems, written with the change that they report, and delivered in order for each connection.
CREATE TABLE webhooks (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    at INTEGER NOT NULL,
    type TEXT NOT NULL,
    connection_id TEXT NOT NULL,
    data TEXT NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    next_try_at INTEGER NOT NULL,
    last_error TEXT,
    lease TEXT,
    lease_until INTEGER,
    -- when its delivery was given up
    dead_lettered_at INTEGER
) STRICT;

CREATE INDEX webhooks_by_time ON webhooks (at);
CREATE INDEX webhooks_by_try ON webhooks (next_try_at, number) WHERE dead_lettered_at IS NULL;
CREATE INDEX webhooks_by_lease ON webhooks (lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX webhooks_by_connection ON webhooks (connection_id, number) WHERE dead_lettered_at IS NULL;
CREATE INDEX webhooks_by_dead_lettering ON webhooks (dead_lettered_at) WHERE dead_lettered_at IS NOT NULL;

-- Coordination of several instances. UNLOGGED: the tables are empty after a crash of the database.
-- turns: which instance refreshes or rechecks a connection next; only the claim is binding.
--postgres CREATE UNLOGGED TABLE turns (
--postgres     connection_id TEXT PRIMARY KEY,
--postgres     process TEXT NOT NULL,
--postgres     until BIGINT NOT NULL
--postgres );

-- slots: one row with the shared rate limit for requests to AMO: when the next slot is free, who had the last one, and
-- until when users and background requests count as waiting.
--postgres CREATE UNLOGGED TABLE slots (
--postgres     name TEXT PRIMARY KEY,
--postgres     last TEXT NOT NULL,
--postgres     free_at BIGINT NOT NULL,
--postgres     people_until BIGINT NOT NULL,
--postgres     background_until BIGINT NOT NULL
--postgres );
