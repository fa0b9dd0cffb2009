-- Named statements. The notes in parentheses after a name are:
-- `changes connection`: caches must drop the connection named by the parameter `connection_id` or `id`, or, without
-- such a parameter, the connections with the returned ids;
-- `changes owners`: in addition, an account or owner may have gained a connection;
-- `changes all`: caches must drop all connections;
-- `erases connection`: tokens were erased, so caches must not keep them;
-- `slow`: the statement reads a whole table.
-- A line that begins with `--sqlite ` or `--postgres ` is for that engine only.
-- Every update of a connection increments `row_version`, except an update by a hook or at the start of a recheck.
-- `pair_version` counts stored pairs and disconnects. A refreshed pair replaces only the version from which it was
-- obtained.

-- name: get_meta
SELECT value FROM meta WHERE name = :name;

-- name: add_meta
INSERT INTO meta (name, value) VALUES (:name, :value) ON CONFLICT (name) DO NOTHING RETURNING name;

-- name: put_meta
INSERT INTO meta (name, value) VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = excluded.value;

-- name: change_meta
-- Applies only if the value is unchanged since it was read, so that only one of several instances changes it.
UPDATE meta SET value = :value WHERE name = :name AND value = :before RETURNING name;

-- name: shared_state
SELECT name, value FROM meta WHERE name IN ('frozen', 'terminal_suspended', 'amo_block', 'refused_credentials');

-- name: drop_meta
DELETE FROM meta WHERE name = :name RETURNING value;

-- name: sealed_{kind}
SELECT {key} AS name, {sealed} AS content FROM {table}
WHERE {key} > :after AND {sealed} IS NOT NULL{only} ORDER BY {key} LIMIT :limit;

-- name: reencrypt_{kind} (changes {kind})
-- Replaces only the content that was read. The pair itself does not change, so `pair_version` stays the same.
-- `row_version` is incremented, so that caches notice the change of the content.
UPDATE {table} SET {sealed} = :content{also} WHERE {key} = :id AND {sealed} = :read RETURNING {key};

-- name: count_connections
SELECT count(*) FROM connections WHERE status <> 'disconnected';

-- name: all_due (changes all, slow)
UPDATE connections SET next_refresh_at = :now, row_version = row_version + 1
WHERE status = 'active' AND next_refresh_at > :now;

-- name: shift_times (changes all)
-- Runs after the clock was moved back. Future times are moved back by the same step. All connections become due,
-- because the age of their tokens is unknown. Past times were stored by a correct clock and stay the same.
UPDATE connections SET
    access_expires_at = CASE WHEN access_issued_at > :now THEN access_expires_at - :by ELSE access_expires_at END,
    refresh_expires_at = CASE WHEN access_issued_at > :now THEN refresh_expires_at - :by ELSE refresh_expires_at END,
    access_issued_at = CASE WHEN access_issued_at > :now THEN access_issued_at - :by ELSE access_issued_at END,
    recheck_at = CASE WHEN recheck_at > :now THEN :now ELSE recheck_at END,
    next_refresh_at = CASE WHEN next_refresh_at > :now THEN :now ELSE next_refresh_at END,
    connected_at = CASE WHEN connected_at > :now THEN connected_at - :by ELSE connected_at END,
    refreshed_at = CASE WHEN refreshed_at > :now THEN refreshed_at - :by ELSE refreshed_at END,
    needs_reauth_since = CASE WHEN needs_reauth_since > :now THEN needs_reauth_since - :by ELSE needs_reauth_since END,
    disabled_hook_at = CASE WHEN disabled_hook_at > :now THEN disabled_hook_at - :by ELSE disabled_hook_at END,
    rechecked_at = CASE WHEN rechecked_at > :now THEN rechecked_at - :by ELSE rechecked_at END,
    attempted_at = CASE WHEN attempted_at > :now THEN attempted_at - :by ELSE attempted_at END,
    refused_since = CASE WHEN refused_since > :now THEN refused_since - :by ELSE refused_since END,
    row_version = row_version + 1;

-- name: next_serial
-- The row stays locked until the transaction ends, so a transaction must run this statement before it acquires any
-- other lock.
UPDATE meta SET value =
--sqlite     CAST(CAST(value AS INTEGER) + :count AS BLOB)
--postgres     convert_to(CAST(CAST(value AS INTEGER) + CAST(:count AS BIGINT) AS TEXT), 'UTF8')
WHERE name = 'serial'
RETURNING value;

-- name: amo_block
-- Always returns one row, with the time of the store's clock.
SELECT (SELECT value FROM meta WHERE name = 'amo_block') AS value, :clock AS clock;

-- name: connection
SELECT *, EXISTS (SELECT 1 FROM meta WHERE name = 'frozen') AS all_frozen, :clock AS clock FROM connections WHERE id = :id;

-- name: connections_of
-- The connection that `account:` names comes first.
SELECT *, EXISTS (SELECT 1 FROM meta WHERE name = 'frozen') AS all_frozen, :clock AS clock FROM connections
WHERE account_id = :account_id AND status <> 'disconnected'
ORDER BY status = 'active' DESC, precedence DESC, id;

-- name: page
SELECT * FROM connections
WHERE id > :after
    AND (CAST(:status AS TEXT) IS NULL OR status = :status)
    AND (CAST(:domain AS TEXT) IS NULL OR domain = :domain)
ORDER BY id
LIMIT :limit;

-- name: page_of_owner
SELECT * FROM connections
WHERE id IN (SELECT connection_id FROM owners WHERE owner = :owner AND left_no IS NULL) AND id > :after
    AND (CAST(:account_id AS TEXT) IS NULL OR account_id = :account_id)
    AND (CAST(:status AS TEXT) IS NULL OR status = :status)
    AND (CAST(:domain AS TEXT) IS NULL OR domain = :domain)
ORDER BY id
LIMIT :limit;

-- name: page_of_account
SELECT * FROM connections
WHERE account_id = :account_id AND id > :after
    AND (CAST(:status AS TEXT) IS NULL OR status = :status)
    AND (CAST(:domain AS TEXT) IS NULL OR domain = :domain)
ORDER BY id
LIMIT :limit;

-- name: ids_within
-- The connections that an API key is limited to.
SELECT id FROM connections WHERE account_id IN (SELECT value FROM json_each(:accounts))
UNION
SELECT connection_id AS id FROM owners WHERE owner IN (SELECT value FROM json_each(:owners)) AND left_no IS NULL;

-- name: page_among
SELECT * FROM connections
WHERE id IN (SELECT value FROM json_each(:ids))
    AND id > :after
    AND (CAST(:account_id AS TEXT) IS NULL OR account_id = :account_id)
    AND (
        CAST(:owner AS TEXT) IS NULL
        OR id IN (SELECT connection_id FROM owners WHERE owner = :owner AND left_no IS NULL)
    )
    AND (CAST(:status AS TEXT) IS NULL OR status = :status)
    AND (CAST(:domain AS TEXT) IS NULL OR domain = :domain)
ORDER BY id
LIMIT :limit;

-- name: quick_check
--sqlite SELECT quick_check FROM pragma_quick_check(1);

-- name: attempts
-- Returns every attempt. The caller determines by its own clock which attempts may still be in progress.
SELECT *, :clock AS clock FROM connections WHERE attempt IS NOT NULL;

-- name: connection_counts
SELECT
    (SELECT count(*) FROM connections WHERE status = 'active' AND refresh_expires_at IS NOT NULL) AS active,
    (
        SELECT count(*) FROM connections
        WHERE status = 'active' AND refresh_expires_at IS NOT NULL AND access_expires_at > :now
    ) AS fresh,
    (SELECT count(*) FROM connections WHERE status = 'needs_reauth' AND needs_reauth_since > :since) AS failed;

-- name: extend (changes connection)
UPDATE connections SET lease_until = :clock + :lease, domain = :domain, row_version = row_version + 1
WHERE id = :connection_id AND attempt = :attempt
RETURNING *;

-- name: save_refreshed (changes connection)
-- Does not depend on the attempt: even if another process holds the lease, the pair is valid unless a newer pair is
-- stored.
UPDATE connections SET
    precedence = CASE WHEN status = 'active' THEN precedence ELSE (SELECT min(precedence) FROM connections AS other WHERE other.account_id = connections.account_id) - 1 END,
    sealed_pair = :sealed_pair, api_domain = :api_domain,
    status = 'active', reason = NULL, last_error = NULL, failures = 0, needs_reauth_since = NULL, warned_days = NULL,
    recheck_at = CASE WHEN status = 'active' THEN recheck_at END,
    access_issued_at = :issued_at, access_expires_at = :expires_at, refresh_expires_at = :refresh_expires_at,
    refreshed_at = :issued_at, next_refresh_at = :next_refresh_at,
    lease_owner = NULL, lease_until = NULL, attempt = NULL, presented_token = NULL, possibly_spent_token = NULL,
    refused_since = NULL, refusals = 0, suspended_reason = NULL, suspended_token = NULL,
    pair_version = pair_version + 1, row_version = row_version + 1
WHERE id = :connection_id AND pair_version = :pair_version
    AND (CAST(:grant_iat AS BIGINT) IS NULL OR grant_iat IS NULL OR grant_iat = :grant_iat)
RETURNING *;

-- name: save_failure (changes connection)
-- An attempt with an unknown outcome is kept, and its lease ends after the time `in_doubt_for`. The token of a
-- connection with the reason `refused` is presented once a day, which counts as a recheck.
UPDATE connections SET
    status = :status, reason = :reason, last_error = :last_error, failures = failures + 1,
    next_refresh_at = :next_refresh_at, needs_reauth_since = :needs_reauth_since,
    rechecked_at = CASE WHEN :reason = 'refused' THEN :clock ELSE rechecked_at END,
    recheck_at = CASE WHEN status = 'active' AND recheck_at < :recheck_at THEN recheck_at
        ELSE COALESCE(:recheck_at, recheck_at) END,
    refused_since = COALESCE(refused_since, CAST(:refused_at AS BIGINT)),
    refusals = refusals + CASE WHEN CAST(:refused_at AS BIGINT) IS NULL THEN 0 ELSE 1 END,
    suspended_reason = CASE WHEN :status = 'active' THEN COALESCE(CAST(:suspended_reason AS TEXT), suspended_reason) END,
    suspended_token = CASE
        WHEN :status <> 'active' THEN NULL
        WHEN CAST(:suspended_reason AS TEXT) IS NULL THEN suspended_token
        ELSE presented_token END,
    lease_until = :clock + CAST(:in_doubt_for AS BIGINT),
    lease_owner = CASE WHEN CAST(:in_doubt_for AS BIGINT) IS NOT NULL THEN lease_owner END,
    attempt = CASE WHEN CAST(:in_doubt_for AS BIGINT) IS NOT NULL THEN attempt END,
    presented_token = CASE WHEN CAST(:in_doubt_for AS BIGINT) IS NOT NULL THEN presented_token END,
    row_version = row_version + 1
WHERE id = :connection_id AND attempt = :attempt
RETURNING *;

-- name: give_up (changes connection)
-- Applies a suspended terminal failure.
UPDATE connections SET
    status = 'needs_reauth', reason = suspended_reason, last_error = :last_error, failures = failures + 1,
    next_refresh_at = NULL, needs_reauth_since = CAST(:now AS BIGINT),
    recheck_at = CASE WHEN recheck_at < :recheck_at THEN recheck_at ELSE CAST(:recheck_at AS BIGINT) END,
    suspended_reason = NULL, suspended_token = NULL, row_version = row_version + 1
WHERE id = :id AND row_version = :row_version AND status = 'active' AND suspended_reason IS NOT NULL
RETURNING *;

-- name: accept_token (changes connection)
-- Runs if introspection accepts the refresh token: earlier refusals no longer count.
UPDATE connections SET
    refused_since = NULL, refusals = 0, suspended_reason = NULL, suspended_token = NULL, row_version = row_version + 1
WHERE id = :id AND pair_version = :pair_version
RETURNING *;

-- name: release (changes connection)
UPDATE connections SET
    lease_owner = NULL, lease_until = NULL, attempt = NULL, presented_token = NULL, row_version = row_version + 1
WHERE id = :connection_id AND attempt = :attempt;

-- name: postpone (changes connection)
UPDATE connections SET
    failures = failures + 1, last_error = :last_error, next_refresh_at = :next_refresh_at,
    row_version = row_version + 1
WHERE id = :id AND row_version = :row_version
RETURNING *;

-- name: retry_hosts (changes all)
UPDATE connections SET
    last_error = NULL, row_version = row_version + 1,
    next_refresh_at = CASE WHEN next_refresh_at > :now THEN CAST(:now AS BIGINT) ELSE next_refresh_at END
WHERE status = 'active' AND last_error = 'host_not_allowed';

-- name: reactivate (changes connection)
UPDATE connections SET
    precedence = (SELECT min(precedence) FROM connections AS other WHERE other.account_id = connections.account_id) - 1,
    status = 'active', reason = NULL, last_error = NULL, failures = 0, needs_reauth_since = NULL, recheck_at = NULL,
    next_refresh_at = :next_refresh_at, row_version = row_version + 1
WHERE id = :id AND row_version = :row_version
RETURNING *;

-- name: freeze (changes connection)
UPDATE connections SET frozen_at = :at, row_version = row_version + 1
WHERE id = :id AND status <> 'disconnected' AND (frozen_at IS NULL) = (CAST(:at AS BIGINT) IS NOT NULL)
RETURNING *;

-- name: due_expiry_warnings (changes connection)
-- Selects connections whose refresh token (or, without a refresh token, access token) expires by `before`, and that
-- have no warning for `days` or fewer days yet.
UPDATE connections SET warned_days = :days, row_version = row_version + 1
WHERE id IN (
    SELECT id FROM connections
    WHERE status = 'active' AND (warned_days IS NULL OR warned_days > :days) AND (
        refresh_expires_at <= :before OR (refresh_expires_at IS NULL AND access_expires_at <= :before)
    )
    ORDER BY COALESCE(refresh_expires_at, access_expires_at)
    LIMIT :limit
) AND (warned_days IS NULL OR warned_days > :days)
RETURNING *;

-- name: missing_changes
-- Returns a row if one of the next two statements would change a row. The service runs this check every minute. It
-- starts a write transaction only if the check returns a row.
SELECT 1 AS found WHERE EXISTS (
    SELECT 1 FROM connections WHERE status = 'active' AND refresh_expires_at IS NULL AND access_expires_at <= :now
) OR EXISTS (
    SELECT 1 FROM connections
    WHERE status <> 'active' AND status = 'needs_reauth' AND reason = 'missing' AND access_expires_at > :now
);

-- name: expire_missing (changes connection)
-- Applies to connections without a refresh token. AMO has not rejected their tokens, so they do not count towards a
-- mass failure, and `needs_reauth_since` stays empty.
UPDATE connections SET
    status = 'needs_reauth', reason = 'missing', needs_reauth_since = NULL, recheck_at = NULL, row_version = row_version + 1
WHERE id IN (
    SELECT id FROM connections
    WHERE status = 'active' AND refresh_expires_at IS NULL AND access_expires_at <= :now
    ORDER BY access_expires_at
    LIMIT :limit
)
RETURNING *;

-- name: restore_missing (changes connection)
-- Reverts `expire_missing` if the access token is still valid: the clock was ahead when `expire_missing` ran.
UPDATE connections SET
    status = 'active', reason = NULL, row_version = row_version + 1,
    precedence = (SELECT min(precedence) FROM connections AS other WHERE other.account_id = connections.account_id) - 1
WHERE id IN (
    SELECT id FROM connections
    WHERE status <> 'active' AND status = 'needs_reauth' AND reason = 'missing' AND access_expires_at > :now
    LIMIT :limit
)
RETURNING *;

-- name: mark_in_doubt (changes connection)
-- Applies if an attempt with an unknown outcome may have spent the token of a connection in `needs_reauth`.
UPDATE connections SET reason = 'in_doubt', row_version = row_version + 1
WHERE id = :id AND row_version = :row_version
RETURNING *;

-- name: disconnect (changes connection, erases connection)
-- A refreshed pair that arrives later is not stored, because `pair_version` has changed. With `on_request`, the pair of
-- a grant claimed before the disconnect is not stored, either.
UPDATE connections SET
    status = 'disconnected', reason = NULL, last_error = NULL, sealed_pair = NULL,
    disconnect_no = CASE WHEN :on_request THEN CAST(:serial AS BIGINT) ELSE disconnect_no END, forgotten_no = :serial,
    access_issued_at = NULL, access_expires_at = NULL, refresh_expires_at = NULL, next_refresh_at = NULL,
    failures = 0, needs_reauth_since = NULL, recheck_at = NULL, frozen_at = NULL, warned_days = NULL,
    lease_owner = NULL, lease_until = NULL, attempt = NULL, presented_token = NULL, possibly_spent_token = NULL,
    refused_since = NULL, refusals = 0, suspended_reason = NULL, suspended_token = NULL,
    pair_version = pair_version + 1, row_version = row_version + 1
WHERE id = :id AND row_version = :row_version
RETURNING *;

-- name: record_disabled_hook (changes connection)
-- AMO's hook can be replayed, so several hooks cause only one recheck, after the pause since the last recheck. A
-- connection in `needs_reauth` keeps its daily recheck, except at the first hook since its last success. This statement
-- and the next two do not change `row_version`, because they do not affect tokens, and a flood of hooks must not make
-- claims fail.
UPDATE connections SET
    recheck_at = COALESCE(
        rechecked_at + COALESCE(CASE WHEN disabled_hook_at > :clock - :quiet THEN recheck_pause END, :shortest), :clock
    ),
    recheck_pause = CASE WHEN disabled_hook_at > :clock - :quiet THEN recheck_pause END,
    disabled_hook_at = :clock
WHERE account_id = :account_id AND (
    (status = 'active' AND (recheck_at IS NULL OR disabled_hook_at IS NULL OR disabled_hook_at <= rechecked_at))
    OR (status = 'needs_reauth' AND (disabled_hook_at IS NULL OR disabled_hook_at < COALESCE(refreshed_at, connected_at)))
)
RETURNING id;

-- name: repeat_disabled_hook (changes connection)
-- Records the hook for the account's other connections, whose recheck is already scheduled. A flood of hooks causes at
-- most one write per second.
UPDATE connections SET disabled_hook_at = :clock
WHERE account_id = :account_id AND status <> 'disconnected' AND disabled_hook_at <= :clock - :second
RETURNING id;

-- name: begin_recheck (changes connection)
-- Applies only if `recheck_at` is unchanged, so that only one of several processes begins the recheck. If that process
-- exits, the recheck is repeated.
UPDATE connections SET rechecked_at = :clock, recheck_at = :clock + :again_in
WHERE id = :id AND row_version = :row_version AND recheck_at = :recheck_at
RETURNING *, EXISTS (SELECT 1 FROM meta WHERE name = 'frozen') AS all_frozen, :clock AS clock;

-- name: schedule_recheck (changes connection)
-- If `recheck_at` has changed, a hook arrived during the recheck. In that case, the recheck is repeated after the
-- pause.
UPDATE connections SET
    recheck_at = CASE
        WHEN recheck_at IS :recheck_at THEN CAST(:at AS BIGINT)
        ELSE COALESCE(rechecked_at + CAST(:pause AS BIGINT), recheck_at) END,
    recheck_pause = COALESCE(CAST(:pause AS BIGINT), recheck_pause), row_version = row_version + 1
WHERE id = :id AND row_version = :row_version
RETURNING *;

-- name: save_connected (changes connection, changes owners)
INSERT INTO connections (
    id, account_id, user_id, domain, api_domain, client_id, status, sealed_pair, access_issued_at,
    access_expires_at, refresh_expires_at, refreshed_at, next_refresh_at, connected_at, grant_iat, precedence
)
SELECT
    :id, :account_id, :user_id, :domain, :api_domain, :client_id, 'active',
--sqlite     :sealed_pair,
--postgres     CAST(:sealed_pair AS BYTEA),
    CAST(:access_issued_at AS BIGINT), CAST(:access_expires_at AS BIGINT), CAST(:refresh_expires_at AS BIGINT), NULL,
    CAST(:next_refresh_at AS BIGINT), CAST(:connected_at AS BIGINT), CAST(:token_iat AS BIGINT),
    CAST(:precedence AS BIGINT)
-- If this grant's pair was stored before, it is not stored again, because its refresh token may have been spent since.
WHERE NOT EXISTS (
    SELECT 1 FROM grants WHERE code_hash = :code_hash AND attempt = :grant_attempt AND status = 'connected'
)
ON CONFLICT (id) DO UPDATE SET
    domain = excluded.domain, api_domain = excluded.api_domain, client_id = excluded.client_id,
    status = 'active', reason = NULL, last_error = NULL, failures = 0, sealed_pair = excluded.sealed_pair,
    needs_reauth_since = NULL, recheck_at = NULL, disabled_hook_at = NULL, rechecked_at = NULL, recheck_pause = NULL, warned_days = NULL,
    access_issued_at = excluded.access_issued_at, access_expires_at = excluded.access_expires_at,
    refresh_expires_at = excluded.refresh_expires_at, refreshed_at = NULL,
    next_refresh_at = excluded.next_refresh_at, connected_at = excluded.connected_at,
    grant_iat = excluded.grant_iat, precedence = excluded.precedence,
    lease_owner = NULL, lease_until = NULL, attempt = NULL, presented_token = NULL, possibly_spent_token = NULL,
    refused_since = NULL, refusals = 0, suspended_reason = NULL, suspended_token = NULL,
    pair_version = connections.pair_version + 1, row_version = connections.row_version + 1
-- The pair that AMO issued later replaces the other. If the issue times are equal or unknown, the times of the
-- responses decide. A repeated write of the same grant changes nothing.
WHERE (
        excluded.grant_iat > connections.grant_iat
        OR (
            COALESCE(excluded.grant_iat = connections.grant_iat, TRUE)
            AND excluded.connected_at > connections.connected_at
        )
    )
    AND (connections.disconnect_no IS NULL OR connections.disconnect_no <= :grant_no)
RETURNING *;

-- name: grant
SELECT *, :clock AS clock FROM grants WHERE code_hash = :code_hash;

-- name: grant_by_handle
SELECT *, :clock AS clock FROM grants WHERE handle_hash = :handle_hash;

-- name: claim_grant
-- A retry applies only if `over` is still the grant's attempt. The caller has checked that this attempt failed, or that
-- its lease expired.
INSERT INTO grants (code_hash, handle_hash, ticket_hash, sealed, status, attempt, lease_until, expires_at, no)
SELECT
    CAST(:code_hash AS TEXT), CAST(:handle_hash AS TEXT), CAST(:ticket_hash AS TEXT),
--sqlite     :sealed,
--postgres     CAST(:sealed AS BYTEA),
    'exchanging', CAST(:attempt AS TEXT), :clock + (CAST(:lease_until AS BIGINT) - CAST(:now AS BIGINT)),
    CAST(:expires_at AS BIGINT), (SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'serial')
WHERE NOT EXISTS (SELECT 1 FROM meta WHERE name = 'frozen')
ON CONFLICT (code_hash) DO UPDATE SET
    possibly_spent = grants.possibly_spent OR grants.status = 'exchanging',
    status = 'exchanging', error = NULL, attempt = excluded.attempt, lease_until = excluded.lease_until
WHERE grants.expires_at > :now
    AND grants.status IN ('failed', 'exchanging') AND grants.attempt = :over
RETURNING *, :clock AS clock;

-- name: claim_started_grant
-- The first code that returns with a state takes over the state's row, unless the code has already been claimed.
UPDATE grants SET
    code_hash = :code_hash, handle_hash = :handle_hash, ticket_hash = :ticket_hash, sealed = :sealed,
    status = 'exchanging', error = NULL, attempt = :attempt,
    lease_until = :clock + (CAST(:lease_until AS BIGINT) - CAST(:now AS BIGINT)),
    expires_at = :expires_at, no = (SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'serial')
WHERE state_hash = :state_hash AND code_hash IS NULL AND expires_at > :now
    AND NOT EXISTS (SELECT 1 FROM grants WHERE code_hash = :code_hash)
    AND NOT EXISTS (SELECT 1 FROM meta WHERE name = 'frozen')
RETURNING *, :clock AS clock;

-- name: finish_grant
UPDATE grants SET
    status = :status, error = :error, connection_id = :connection_id, possibly_spent = :possibly_spent,
    accepted_at = :accepted_at, connected_no = :connected_no
WHERE code_hash = :code_hash AND attempt = :attempt
RETURNING code_hash;

-- name: erase_grants
UPDATE grants SET sealed = NULL WHERE number IN (
    SELECT number FROM grants WHERE sealed IS NOT NULL AND expires_at <= :now LIMIT :limit
)
RETURNING number;

-- name: forget_grants
DELETE FROM grants WHERE number IN (SELECT number FROM grants WHERE expires_at <= :before LIMIT :limit)
RETURNING number;

-- name: grant_by_ticket
SELECT *, :clock AS clock FROM grants WHERE ticket_hash = :ticket_hash;

-- name: issue_state
INSERT INTO grants (state_hash, request_hash, sealed, expires_at)
VALUES (:state_hash, :request_hash, :sealed, :expires_at);

-- name: issued_state
SELECT * FROM grants WHERE state_hash = :state_hash;

-- name: latest_request
SELECT * FROM grants WHERE request_hash = :request_hash ORDER BY number DESC LIMIT 1;

-- name: record_refusal
-- The state stays valid, because the user may go back and allow access.
UPDATE grants SET error = :error WHERE state_hash = :state_hash AND code_hash IS NULL AND error IS NULL
RETURNING state_hash;

-- name: owners_of
SELECT connection_id, owner, bound_no FROM owners
WHERE connection_id IN (SELECT value FROM json_each(:ids)) AND left_no IS NULL
ORDER BY connection_id, bound_no, owner;

-- name: connections_named
-- The connection that `owner:` names comes first. Includes connections whose ownership AMO's hook has ended.
SELECT
    connections.*, hook_no, EXISTS (SELECT 1 FROM meta WHERE name = 'frozen') AS all_frozen, :clock AS clock
FROM owners
JOIN connections ON connections.id = owners.connection_id
WHERE owner = :owner AND (left_no IS NULL OR hook_no IS NOT NULL)
ORDER BY bound_no DESC, connection_id;

-- name: is_bound
-- Returns a row if the grant, or a later one, has made the user an owner.
SELECT 1 AS found FROM owners
WHERE connection_id = :connection_id AND owner = :owner AND left_no IS NULL
    AND bound_no >= (SELECT connected_no FROM grants WHERE code_hash = :code_hash);

-- name: bind_owner (changes connection, changes owners)
-- A grant claimed before the user left, or before all owners were removed, adds no owner.
INSERT INTO owners (connection_id, owner, bound_no)
SELECT id, :owner, CAST(:connected_no AS BIGINT) FROM connections
WHERE id = :connection_id AND status <> 'disconnected' AND (forgotten_no IS NULL OR forgotten_no <= :grant_no)
ON CONFLICT (connection_id, owner) DO UPDATE SET bound_no = excluded.bound_no, left_no = NULL, hook_no = NULL
WHERE owners.left_no <= :grant_no
RETURNING owner;

-- name: rebind_owner (changes connection, changes owners)
-- An earlier grant that is presented later changes nothing.
UPDATE owners SET bound_no = :connected_no
WHERE connection_id = :connection_id AND owner = :owner AND left_no IS NULL AND bound_no < :connected_no
RETURNING owner;

-- name: forget_ended (changes owners)
DELETE FROM owners WHERE owner = :owner AND hook_no IS NOT NULL
RETURNING connection_id AS id;

-- name: import_owner (changes connection, changes owners)
INSERT INTO owners (connection_id, owner, bound_no) VALUES (:connection_id, :owner, :bound_no)
ON CONFLICT (connection_id, owner) DO UPDATE SET bound_no = excluded.bound_no, left_no = NULL, hook_no = NULL;

-- name: unbind_owner (changes connection, changes owners)
UPDATE owners SET left_no = :serial WHERE connection_id = :connection_id AND owner = :owner;

-- name: forget_owners (changes connection, changes owners)
DELETE FROM owners WHERE connection_id = :connection_id;

-- name: end_ownerships (changes connection, changes owners)
UPDATE owners SET left_no = :serial, hook_no = :serial WHERE connection_id = :connection_id AND left_no IS NULL;

-- name: exchanging
SELECT *, :clock AS clock FROM grants WHERE status = 'exchanging' AND expires_at > :now;

-- name: save_event
INSERT INTO events (at, connection_id, name, process, details)
VALUES (:at, :connection_id, :name, :process, :details);

-- name: events
SELECT * FROM events WHERE id < :before ORDER BY id DESC LIMIT :limit;

-- name: events_of
SELECT * FROM events WHERE connection_id = :connection_id AND id < :before ORDER BY id DESC LIMIT :limit;

-- name: events_of_account
-- Includes events of disconnected connections.
SELECT * FROM events
WHERE connection_id IN (SELECT id FROM connections WHERE account_id = :account_id) AND id < :before
ORDER BY id DESC
LIMIT :limit;

-- name: events_of_owner
-- Includes only events of the user's current connections.
SELECT * FROM events
WHERE connection_id IN (SELECT connection_id FROM owners WHERE owner = :owner AND left_no IS NULL) AND id < :before
ORDER BY id DESC
LIMIT :limit;

-- name: events_among
SELECT * FROM events
WHERE connection_id IN (SELECT value FROM json_each(:ids))
    AND id < :before
    AND (CAST(:connection_id AS TEXT) IS NULL OR connection_id = :connection_id)
    AND (
        CAST(:account_id AS TEXT) IS NULL
        OR connection_id IN (SELECT id FROM connections WHERE account_id = :account_id)
    )
    AND (
        CAST(:owner AS TEXT) IS NULL
        OR connection_id IN (SELECT connection_id FROM owners WHERE owner = :owner AND left_no IS NULL)
    )
ORDER BY id DESC
LIMIT :limit;

-- name: prune_events
-- Deletes a batch, because a transaction that deletes years of history would take too long.
DELETE FROM events WHERE id IN (SELECT id FROM events WHERE at < :before ORDER BY at LIMIT :limit)
RETURNING id;

-- name: save_webhook
INSERT INTO webhooks (id, at, type, connection_id, data, next_try_at)
VALUES (
    :id, :at, :type, :connection_id,
--sqlite     json_set(:data, '$.owners', json((SELECT json_group_array(owner) FROM (
--postgres     CAST(jsonb_set(CAST(CAST(:data AS TEXT) AS JSONB), '{owners}', (SELECT COALESCE(jsonb_agg(owner), '[]') FROM (
        SELECT owner FROM owners WHERE connection_id = :connection_id AND left_no IS NULL ORDER BY bound_no, owner
--sqlite     )))),
--postgres     ) AS ordered)) AS TEXT),
    :at
);

-- name: webhooks
SELECT * FROM webhooks WHERE number > :after ORDER BY number LIMIT :limit;

-- name: webhooks_among
SELECT * FROM webhooks
WHERE connection_id IN (SELECT value FROM json_each(:ids)) AND number > :after
ORDER BY number
LIMIT :limit;

-- name: next_webhook
-- Considers, for each connection, the first webhook that is not dead-lettered. A leased webhook is due when its lease
-- ends.
SELECT min(at) AS at FROM (
    SELECT * FROM (
        SELECT next_try_at AS at FROM webhooks AS one
        WHERE dead_lettered_at IS NULL AND (lease_until IS NULL OR lease_until <= :clock OR lease_until > :clock + :length)
            AND id NOT IN (SELECT value FROM json_each(:exclude))
            AND NOT EXISTS (
                SELECT 1 FROM webhooks AS earlier
                WHERE earlier.connection_id = one.connection_id AND earlier.number < one.number
                    AND earlier.dead_lettered_at IS NULL
            )
        ORDER BY next_try_at, number
        LIMIT 1
    ) AS free
    UNION ALL
    SELECT min(lease_until) FROM webhooks WHERE lease_until > :clock AND lease_until <= :clock + :length
) AS times
WHERE NOT EXISTS (
    SELECT 1 FROM meta WHERE name = 'frozen'
--sqlite     AND json_extract(CAST(value AS TEXT), '$.may_be_copy')
--postgres     AND CAST(CAST(convert_from(value, 'UTF8') AS JSON) ->> 'may_be_copy' AS BOOLEAN)
);

-- name: webhook_delivered
-- Applies even if another process holds the lease.
DELETE FROM webhooks WHERE id = :id RETURNING id;

-- name: webhook_failed
UPDATE webhooks SET
    last_error = :error, next_try_at = COALESCE(CAST(:next_try_at AS BIGINT), next_try_at),
    dead_lettered_at = CASE WHEN CAST(:next_try_at AS BIGINT) IS NULL THEN CAST(:now AS BIGINT) END, lease = NULL, lease_until = NULL
WHERE id = :id AND lease = :lease
RETURNING id;

-- name: retry_webhooks
-- Makes one webhook due, or all dead-lettered webhooks if `id` is NULL. The tries of a dead-lettered webhook are
-- counted from zero again.
UPDATE webhooks SET
    next_try_at = :now, tries = CASE WHEN dead_lettered_at IS NULL THEN tries ELSE 0 END, dead_lettered_at = NULL
WHERE id = :id OR (CAST(:id AS TEXT) IS NULL AND dead_lettered_at IS NOT NULL)
RETURNING id;

-- name: shift_webhooks
UPDATE webhooks SET at = CASE WHEN at > :now THEN at - :by ELSE at END, next_try_at = CASE WHEN next_try_at > :now THEN :now ELSE next_try_at END;

-- name: prune_webhooks
DELETE FROM webhooks WHERE number IN (
    SELECT number FROM webhooks WHERE at < :before AND dead_lettered_at IS NULL ORDER BY at LIMIT :limit
);

-- name: prune_dead_lettered
DELETE FROM webhooks WHERE number IN (SELECT number FROM webhooks WHERE dead_lettered_at < :before ORDER BY dead_lettered_at LIMIT :limit);

-- name: count_sealed (slow)
SELECT (SELECT count(*) FROM connections WHERE sealed_pair IS NOT NULL)
    + (SELECT count(*) FROM grants WHERE sealed IS NOT NULL)
    + (SELECT count(*) FROM meta WHERE name = 'canary');

-- name: connections_by_id
SELECT *, :clock AS clock FROM connections WHERE id IN (SELECT value FROM json_each(:ids));

-- name: import_connections (changes connection, changes owners)
-- Replaces a row only if its pair, attempt and lease are unchanged since they were read. If the row has an attempt, the
-- import has waited until the attempt's lease expired, so the attempt is no longer in progress.
INSERT INTO connections (
    id, account_id, user_id, domain, api_domain, client_id, status, reason, sealed_pair, access_issued_at,
    access_expires_at, refresh_expires_at, refreshed_at, next_refresh_at, connected_at, grant_iat, possibly_spent_token, recheck_at,
    precedence, frozen_at
) VALUES (
    :id, :account_id, :user_id, :domain, :api_domain, :client_id, :status, :reason, :sealed_pair, :access_issued_at,
    :access_expires_at, :refresh_expires_at, :refreshed_at, :next_refresh_at, :connected_at, :grant_iat, :possibly_spent_token,
    :recheck_at, :precedence, CASE WHEN :frozen THEN CAST(:now AS BIGINT) END
)
ON CONFLICT (id) DO UPDATE SET
    domain = excluded.domain, api_domain = excluded.api_domain, client_id = excluded.client_id,
    status = excluded.status, reason = excluded.reason, last_error = NULL, failures = 0,
    sealed_pair = excluded.sealed_pair, access_issued_at = excluded.access_issued_at,
    access_expires_at = excluded.access_expires_at, refresh_expires_at = excluded.refresh_expires_at,
    refreshed_at = excluded.refreshed_at, next_refresh_at = excluded.next_refresh_at,
    connected_at = excluded.connected_at, grant_iat = excluded.grant_iat,
    precedence = excluded.precedence, possibly_spent_token = excluded.possibly_spent_token,
    lease_owner = NULL, lease_until = NULL, attempt = NULL, presented_token = NULL,
    recheck_at = excluded.recheck_at, needs_reauth_since = NULL, disabled_hook_at = NULL, rechecked_at = NULL, recheck_pause = NULL,
    warned_days = NULL,
    attempted_at = NULL, refused_since = NULL, refusals = 0, suspended_reason = NULL, suspended_token = NULL,
    frozen_at = COALESCE(connections.frozen_at, excluded.frozen_at),
    pair_version = connections.pair_version + 1, row_version = connections.row_version + 1
WHERE connections.pair_version = :over_version AND connections.sealed_pair IS :over_pair
    AND connections.attempt IS :over_attempt AND connections.lease_until IS :over_lease_until;

-- name: due
-- Returns due connections, and the connection that is due next. Connections with an attempt are included, because the
-- caller knows whether the attempt's lease has expired. Connections with impossible times come first. The others follow
-- by due time, which is the order of the index, so that a long backlog is read cheaply. On PostgreSQL, each connection
-- is assigned to one instance for the time `turn`, in which that instance is expected to claim the connection.
WITH refreshes AS
--postgres MATERIALIZED
(
    SELECT id FROM (
        SELECT * FROM (
            SELECT id, next_refresh_at, access_expires_at FROM connections
            WHERE status = 'active' AND frozen_at IS NULL AND failures = 0 AND access_issued_at > :impossible_after
                AND next_refresh_at IS NOT NULL AND id NOT IN (SELECT value FROM json_each(:exclude))
--postgres         AND NOT EXISTS (SELECT 1 FROM turns WHERE connection_id = id AND until > :clock AND process <> :process)
            LIMIT :limit
        ) AS issued_later
        UNION
        SELECT * FROM (
            SELECT id, next_refresh_at, access_expires_at FROM connections
--sqlite             INDEXED BY connections_due_too_late
            WHERE status = 'active' AND frozen_at IS NULL AND failures = 0 AND next_refresh_at > access_expires_at
                AND id NOT IN (SELECT value FROM json_each(:exclude))
--postgres         AND NOT EXISTS (SELECT 1 FROM turns WHERE connection_id = id AND until > :clock AND process <> :process)
            LIMIT :limit
        ) AS due_too_late
        UNION
        SELECT * FROM (
            SELECT id, next_refresh_at, access_expires_at FROM connections
            WHERE status = 'active' AND frozen_at IS NULL AND next_refresh_at <= :now
                AND id NOT IN (SELECT value FROM json_each(:exclude))
--postgres         AND NOT EXISTS (SELECT 1 FROM turns WHERE connection_id = id AND until > :clock AND process <> :process)
            ORDER BY next_refresh_at, access_expires_at
            LIMIT :limit
        ) AS due
    ) AS each_kind
    WHERE NOT EXISTS (SELECT 1 FROM meta WHERE name = 'frozen')
    ORDER BY next_refresh_at <= :now, next_refresh_at, access_expires_at
    LIMIT :limit
), rechecks AS
--postgres MATERIALIZED
(
    SELECT id FROM connections
    WHERE recheck_at <= :now AND id NOT IN (SELECT value FROM json_each(:exclude))
--postgres AND NOT EXISTS (SELECT 1 FROM turns WHERE connection_id = id AND until > :clock AND process <> :process)
    ORDER BY recheck_at
    LIMIT :rechecks
), next AS (
    SELECT id FROM connections
    WHERE status = 'active' AND frozen_at IS NULL AND next_refresh_at > :now AND attempt IS NULL
        AND NOT EXISTS (SELECT 1 FROM meta WHERE name = 'frozen')
        AND id NOT IN (SELECT value FROM json_each(:exclude))
--postgres AND NOT EXISTS (SELECT 1 FROM turns WHERE connection_id = id AND until > :clock AND process <> :process)
    ORDER BY next_refresh_at
    LIMIT 1
)
--postgres , given AS (
--postgres     INSERT INTO turns (connection_id, process, until)
--postgres     SELECT id, :process, :clock + :turn FROM (SELECT * FROM refreshes UNION SELECT * FROM rechecks) AS candidates
--postgres     ORDER BY id
--postgres     ON CONFLICT (connection_id) DO UPDATE SET process = excluded.process, until = excluded.until
--postgres     WHERE turns.until <= :clock OR turns.process = excluded.process
--postgres     RETURNING connection_id
--postgres )
SELECT connections.*, kind, :clock AS clock
FROM (
    SELECT id AS found, 'refresh' AS kind FROM refreshes
--postgres JOIN given ON connection_id = id
    UNION ALL SELECT id, 'recheck' FROM rechecks
--postgres JOIN given ON connection_id = id
    UNION ALL SELECT id, 'next' FROM next
) AS all_found
JOIN connections ON id = found
ORDER BY
    CASE WHEN kind = 'recheck' THEN recheck_at END,
    next_refresh_at <= :now, next_refresh_at, access_expires_at;

-- name: probe
-- Prefers connections without an attempt since their last success, the most recent success first. The other connections
-- follow, the oldest attempt first. Connections without a refresh token, or whose host is not allowed, are excluded. On
-- PostgreSQL, only one instance probes at a time.
--postgres WITH given AS (
--postgres     INSERT INTO turns (connection_id, process, until) VALUES ('probe', :process, :clock + :turn)
--postgres     ON CONFLICT (connection_id) DO UPDATE SET process = excluded.process, until = excluded.until
--postgres     WHERE turns.until <= :clock OR turns.process = excluded.process
--postgres     RETURNING connection_id
--postgres )
SELECT *, :clock AS clock FROM connections WHERE id = (
    SELECT id FROM connections
    WHERE status = 'active' AND frozen_at IS NULL AND next_refresh_at IS NOT NULL
        AND id NOT IN (SELECT value FROM json_each(:exclude))
        AND COALESCE(last_error, '') <> 'host_not_allowed'
        AND NOT EXISTS (SELECT 1 FROM meta WHERE name = 'frozen')
    ORDER BY
        CASE WHEN attempted_at > COALESCE(refreshed_at, connected_at) THEN attempted_at ELSE 0 END,
        COALESCE(refreshed_at, connected_at) DESC
    LIMIT 1
)
--postgres AND EXISTS (SELECT 1 FROM given)
;

-- name: forget_turns
-- Rows locked by another instance are skipped, because two instances that wait for each other's rows would deadlock.
--postgres DELETE FROM turns WHERE connection_id IN (
--postgres     SELECT connection_id FROM turns WHERE until <= :clock FOR UPDATE SKIP LOCKED
--postgres );

-- name: stats
-- Each count reads only an index. INDEXED BY names this index for SQLite, which might choose another one. Individually
-- frozen connections do not count as due, overdue or expired. While all connections are frozen, none is due or overdue.
SELECT * FROM (
    SELECT
        count(*) AS active,
        count(*) FILTER (WHERE access_expires_at > :now) AS fresh,
        min(COALESCE(refresh_expires_at, access_expires_at)) AS next_deadline
    FROM connections
--sqlite     INDEXED BY connections_by_deadline
    WHERE status = 'active'
) AS active_ones, (
    SELECT
        count(*) FILTER (WHERE access_expires_at <= :now) AS expired,
        min(access_expires_at) AS next_expiry,
        count(*) FILTER (WHERE next_refresh_at <= :now AND NOT all_frozen) AS due,
        count(*) FILTER (WHERE next_refresh_at <= :late AND NOT all_frozen) AS overdue
    FROM (SELECT EXISTS (SELECT 1 FROM meta WHERE name = 'frozen') AS all_frozen) AS meta_of_all, connections
--sqlite     INDEXED BY connections_by_due
    WHERE status = 'active' AND frozen_at IS NULL
) AS not_frozen, (
--sqlite     SELECT json_group_object(name, number) AS not_active FROM (
--postgres     SELECT COALESCE(CAST(json_object_agg(name, number) AS TEXT), '{}') AS not_active FROM (
        SELECT COALESCE(reason, status) AS name, count(*) AS number FROM connections
--sqlite         INDEXED BY connections_by_status
        WHERE status <> 'active' GROUP BY status, reason
    ) AS counted
) AS others, (
    SELECT count(*) AS mismatched FROM connections
--sqlite     INDEXED BY connections_by_client_mismatch
    WHERE last_error = 'client_mismatch'
) AS of_other_clients, (
    SELECT count(*) AS hosts_not_allowed FROM connections
--sqlite     INDEXED BY connections_by_host_not_allowed
    WHERE status = 'active' AND last_error = 'host_not_allowed'
) AS refused, (
    SELECT count(*) AS waiting, min(at) AS waiting_since FROM webhooks WHERE dead_lettered_at IS NULL
) AS undelivered, (
    SELECT count(*) AS dead_lettered FROM webhooks WHERE dead_lettered_at IS NOT NULL
) AS given_up;

-- name: successes
-- Reads only an index. Future times are ignored, because they come from an import or a wrong clock.
SELECT
    (
        SELECT count(*) FROM connections
--sqlite         INDEXED BY connections_by_due
        WHERE status = 'active' AND frozen_at IS NULL AND next_refresh_at IS NOT NULL
    ) AS refreshable,
    max(at) AS latest,
    count(*) FILTER (WHERE attempted_at > :since) AS attempted,
    count(*) FILTER (WHERE attempted_at > :since AND at > :since) AS succeeded
FROM (
    SELECT
        attempted_at,
        CASE WHEN COALESCE(refreshed_at, connected_at) <= :now THEN COALESCE(refreshed_at, connected_at) END AS at
    FROM connections
--sqlite     INDEXED BY connections_by_success
) AS each;

-- name: claim (changes connection)
-- Applies only if the row is unchanged since it was read. On PostgreSQL, the lease of an earlier attempt must have
-- expired by the database's clock. The token that the earlier attempt presented is recorded as possibly spent.
UPDATE connections SET
    lease_owner = :owner, lease_until = :clock + :lease, attempt = :attempt,
    possibly_spent_token = COALESCE(NULLIF(presented_token, ''), possibly_spent_token), presented_token = :fingerprint, attempted_at = :clock,
    row_version = row_version + 1
WHERE id = :connection_id AND row_version = :row_version AND status <> 'disconnected'
--postgres     AND (attempt IS NULL OR lease_until <= :clock)
    AND frozen_at IS NULL AND NOT EXISTS (SELECT 1 FROM meta WHERE name = 'frozen')
RETURNING *;

-- name: claim_webhooks
-- If a lease ends later than a lease that begins now, the clock was moved back, so the lease counts as expired.
-- A database that may be a copy delivers no webhooks, because the original delivers them.
UPDATE webhooks SET lease = :lease, lease_until = :clock + :length, tries = tries + 1
WHERE number IN (
    SELECT number FROM webhooks AS one
    WHERE dead_lettered_at IS NULL AND next_try_at <= :now
        AND (lease_until IS NULL OR lease_until <= :clock OR lease_until > :clock + :length)
        AND id NOT IN (SELECT value FROM json_each(:exclude))
        AND NOT EXISTS (
            SELECT 1 FROM webhooks AS earlier
            WHERE earlier.connection_id = one.connection_id AND earlier.number < one.number
                AND earlier.dead_lettered_at IS NULL
        )
        AND NOT EXISTS (
            SELECT 1 FROM meta WHERE name = 'frozen'
--sqlite             AND json_extract(CAST(value AS TEXT), '$.may_be_copy')
--postgres             AND CAST(CAST(convert_from(value, 'UTF8') AS JSON) ->> 'may_be_copy' AS BOOLEAN)
        )
    ORDER BY next_try_at, number
    LIMIT :limit
--postgres     FOR UPDATE SKIP LOCKED
)
RETURNING *;

-- name: lock_connection
-- Locks a row that the transaction reads and then updates.
--postgres SELECT 1 FROM connections WHERE id = :id FOR UPDATE;

-- name: lock_owned
--postgres SELECT 1 FROM connections WHERE id IN (SELECT connection_id FROM owners WHERE owner = :owner AND left_no IS NULL)
--postgres ORDER BY id
--postgres FOR UPDATE;

-- name: lock_for_spending
-- A freeze acquires the exclusive lock, so it waits for claims in progress, and every later claim sees the freeze.
--postgres SELECT pg_advisory_xact_lock_shared(hashtext(current_schema() || '.amo_callback.spending'));

-- name: lock_for_freezing
--postgres SELECT pg_advisory_xact_lock(hashtext(current_schema() || '.amo_callback.spending'));

-- name: lock_slots
--postgres SELECT *, CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) AS clock FROM slots
--postgres WHERE name = 'amo' FOR UPDATE;

-- name: make_slots
--postgres INSERT INTO slots (name, last, free_at, people_until, background_until) VALUES ('amo', 'background', 0, 0, 0)
--postgres ON CONFLICT (name) DO NOTHING;

-- name: save_slots
--postgres UPDATE slots SET
--postgres     last = :last, free_at = :free_at, people_until = :people_until, background_until = :background_until
--postgres WHERE name = 'amo';

-- name: forget_terminal_failures (changes all, slow)
UPDATE connections SET needs_reauth_since = NULL, row_version = row_version + 1 WHERE needs_reauth_since IS NOT NULL;
