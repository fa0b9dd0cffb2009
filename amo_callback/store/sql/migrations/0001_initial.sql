-- The schema of both engines. For PostgreSQL, INTEGER becomes BIGINT and BLOB becomes BYTEA. TEXT becomes
-- TEXT COLLATE "C", so that the order of a page does not depend on the locale.
-- A line that begins with `--sqlite ` or `--postgres ` is for that engine only.
-- Times are in microseconds since 1970, UTC.
-- Encrypted columns are named `sealed` or `sealed_pair`.

-- meta: the canary, the store's location, the freeze, the mass failure, the address block, the rejected client
-- credentials, the client ids to which AMO has issued a pair, the last recorded time, and `serial`.
CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;

-- `serial` is a counter. It is incremented when a grant's pair is stored, when an owner is added or removed, at each
-- disconnect, and by imports. Its values determine the order of these events. Times are not compared, because the
-- clocks of two processes differ.
--sqlite INSERT INTO meta (name, value) VALUES ('serial', CAST('1' AS BLOB));
--postgres INSERT INTO meta (name, value) VALUES ('serial', convert_to('1', 'UTF8'));

-- connections: one row per AMO account and AMO user. Every update increments row_version, except an update by a hook or
-- at the start of a recheck. A refreshed pair, a grant, an import and a disconnect also increment pair_version.
CREATE TABLE connections (
    id TEXT PRIMARY KEY,
    account_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    domain TEXT NOT NULL,
    api_domain TEXT,
    -- the integration to which AMO issued the pair
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
    -- AMO's issue time (`iat`) of the first pair of the current grant
    grant_iat INTEGER,
    -- determines which of an account's active connections `account:` names: the one with the highest value. It is
    -- `serial` when the account was last connected. After the connection was inactive, it is lower than the values of
    -- the account's other connections.
    precedence INTEGER NOT NULL DEFAULT 0,
    pair_version INTEGER NOT NULL DEFAULT 1,
    row_version INTEGER NOT NULL DEFAULT 1,
    lease_owner TEXT,
    lease_until INTEGER,
    attempt TEXT,
    -- fingerprint of the refresh token that the attempt presents
    presented_token TEXT,
    -- fingerprint of a refresh token that an attempt with an unknown outcome may have spent
    possibly_spent_token TEXT,
    -- when a refresh was last claimed
    attempted_at INTEGER,
    -- the time of the terminal failure, if it counts towards a mass failure
    needs_reauth_since INTEGER,
    -- when AMO first refused a refresh without a hint in its response, and introspection also rejected the token
    refused_since INTEGER,
    -- the number of these refusals in a row
    refusals INTEGER NOT NULL DEFAULT 0,
    -- the reason of a terminal failure that is suspended because of a mass failure
    suspended_reason TEXT,
    -- fingerprint of the refresh token whose failure is suspended
    suspended_token TEXT,
    -- when the tokens are introspected next
    recheck_at INTEGER,
    -- when the last introspection began
    rechecked_at INTEGER,
    -- the minimum time between the last introspection and one caused by a further hook
    recheck_pause INTEGER,
    -- when AMO's hook last reported the integration as disabled in the account
    disabled_hook_at INTEGER,
    frozen_at INTEGER,
    -- the `days` value of the last expiry warning
    warned_days INTEGER,
    -- `serial` at the last disconnect on request; a grant claimed before the disconnect cannot store its pair
    disconnect_no INTEGER,
    -- `serial` when all owners were last removed; a grant claimed before the removal adds no owner
    forgotten_no INTEGER
) STRICT;

CREATE INDEX connections_by_account ON connections (account_id);
CREATE INDEX connections_by_due ON connections (next_refresh_at, access_expires_at, id)
    WHERE status = 'active' AND frozen_at IS NULL;
-- Connections with impossible times are due now: the access token was issued in the future, or would expire before the
-- refresh is due. This does not apply to connections that back off after a failure.
CREATE INDEX connections_by_issue ON connections (access_issued_at)
    WHERE status = 'active' AND frozen_at IS NULL AND failures = 0;
CREATE INDEX connections_due_too_late ON connections (id)
    WHERE status = 'active' AND frozen_at IS NULL AND failures = 0 AND next_refresh_at > access_expires_at;
CREATE INDEX connections_by_attempt ON connections (id) WHERE attempt IS NOT NULL;
CREATE INDEX connections_by_recheck ON connections (recheck_at) WHERE recheck_at IS NOT NULL;
CREATE INDEX connections_by_needs_reauth ON connections (needs_reauth_since) WHERE needs_reauth_since IS NOT NULL;
-- The second column allows connections to be counted without reading the table.
CREATE INDEX connections_by_deadline ON connections (refresh_expires_at, access_expires_at) WHERE status = 'active';
CREATE INDEX connections_by_status ON connections (status, reason) WHERE status <> 'active';
CREATE INDEX connections_by_success ON connections (refreshed_at, connected_at, attempted_at);
CREATE INDEX connections_by_client_mismatch ON connections (id) WHERE last_error = 'client_mismatch';
CREATE INDEX connections_by_host_not_allowed ON connections (id)
    WHERE status = 'active' AND last_error = 'host_not_allowed';

-- owners: app users who own a connection or have owned it.
CREATE TABLE owners (
    connection_id TEXT NOT NULL,
    owner TEXT NOT NULL,
    -- `serial` when the user last connected the account; `owner:` names the connection with the highest value
    bound_no INTEGER NOT NULL,
    -- `serial` when the ownership ended; a grant claimed before that does not make the user an owner again
    left_no INTEGER,
    -- `serial` when AMO's hook ended the ownership; until the user connects or disconnects, `owner:` still names the
    -- connection
    hook_no INTEGER,
    PRIMARY KEY (connection_id, owner)
) STRICT, WITHOUT ROWID;

CREATE INDEX owners_by_owner ON owners (owner);

-- grants: one row per authorization, from the request to the result. An authorization request inserts a row with its
-- state, which is valid for 30 minutes. The first code that returns with the state takes over this row. A code without
-- an issued state inserts a new row. The secrets are erased 20 minutes after the code arrives, or when the state expires.
-- The row is deleted a day later.
CREATE TABLE grants (
    number INTEGER PRIMARY KEY,
    state_hash TEXT UNIQUE,
    -- hash of the user and the app's state, if the request has a user and a challenge; the app may present the state
    -- instead of a code
    request_hash TEXT,
    code_hash TEXT UNIQUE,
    handle_hash TEXT UNIQUE,
    -- hash of the ticket that the app may present instead of AMO's code
    ticket_hash TEXT UNIQUE,
    -- the authorization request; after the code has arrived, the grant's secrets
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
    -- `serial` when the grant's pair was stored
    connected_no INTEGER,
    CHECK (state_hash IS NOT NULL OR code_hash IS NOT NULL),
    CHECK (
        code_hash IS NULL
        OR (handle_hash IS NOT NULL AND status IS NOT NULL AND attempt IS NOT NULL AND lease_until IS NOT NULL
            AND no IS NOT NULL)
    )
) STRICT;

CREATE INDEX grants_by_expiry ON grants (expires_at);
CREATE INDEX grants_by_request ON grants (request_hash, number) WHERE request_hash IS NOT NULL;

-- events: the history of connections and of the service.
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    connection_id TEXT,
    name TEXT NOT NULL,
    process TEXT NOT NULL,
    -- JSON; contains no secrets
    details TEXT NOT NULL
) STRICT;

CREATE INDEX events_by_connection ON events (connection_id, id);
CREATE INDEX events_by_time ON events (at);

-- webhooks: messages to the operator's systems. Each is written in the transaction of the change that it reports. The
-- messages of a connection are delivered in order.
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
    -- when the last try failed
    dead_lettered_at INTEGER
) STRICT;

CREATE INDEX webhooks_by_time ON webhooks (at);
CREATE INDEX webhooks_by_try ON webhooks (next_try_at, number) WHERE dead_lettered_at IS NULL;
CREATE INDEX webhooks_by_lease ON webhooks (lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX webhooks_by_connection ON webhooks (connection_id, number) WHERE dead_lettered_at IS NULL;
CREATE INDEX webhooks_by_dead_lettering ON webhooks (dead_lettered_at) WHERE dead_lettered_at IS NOT NULL;

-- The tables `turns` and `slots` coordinate several instances. They are UNLOGGED, so a crash of the database empties
-- them.
-- turns: the instance that refreshes or rechecks a connection next. Only the later claim of the connection is binding.
--postgres CREATE UNLOGGED TABLE turns (
--postgres     connection_id TEXT PRIMARY KEY,
--postgres     process TEXT NOT NULL,
--postgres     until BIGINT NOT NULL
--postgres );

-- slots: a single row with the shared rate limit for requests to AMO. It contains the time when the next slot is free,
-- the kind of request that had the last slot, and the times until which users and background requests count as waiting.
--postgres CREATE UNLOGGED TABLE slots (
--postgres     name TEXT PRIMARY KEY,
--postgres     last TEXT NOT NULL,
--postgres     free_at BIGINT NOT NULL,
--postgres     people_until BIGINT NOT NULL,
--postgres     background_until BIGINT NOT NULL
--postgres );
