-- What PostgreSQL says in its own way: its clock tells leases, for all instances, and nobody waits for what another
-- instance holds.

-- name: due
-- Each is given to one instance at a time, for a turn: it keeps it apart from the others until the claim does. Whoever
-- asks again, or finds an open attempt, is told how much of its lease is left.
-- Earliest due first: that is the index's own order, so that a day's backlog costs little each time. Rows whose times
-- cannot be right come first.
WITH impossible AS MATERIALIZED (
    SELECT id, next_refresh_at, access_expires_at FROM connections
    WHERE status = 'active' AND frozen_at IS NULL AND failures = 0 AND access_issued_at > :impossible_after
        AND next_refresh_at IS NOT NULL
    UNION
    SELECT id, next_refresh_at, access_expires_at FROM connections
    WHERE status = 'active' AND frozen_at IS NULL AND failures = 0 AND next_refresh_at > access_expires_at
), due AS MATERIALIZED (
    SELECT id, next_refresh_at, access_expires_at FROM connections
    WHERE status = 'active' AND frozen_at IS NULL AND next_refresh_at <= :now
        AND id NOT IN (SELECT value FROM json_each(:apart_from))
        AND NOT EXISTS (
            SELECT 1 FROM turns WHERE connection_id = connections.id AND until > :clock AND process <> :process
        )
    ORDER BY next_refresh_at, access_expires_at
    LIMIT :limit
), candidates AS MATERIALIZED (
    SELECT id FROM (SELECT * FROM impossible UNION SELECT * FROM due) AS either_kind
    WHERE NOT EXISTS (SELECT 1 FROM meta WHERE name = 'frozen')
        AND id NOT IN (SELECT value FROM json_each(:apart_from))
        AND NOT EXISTS (
            SELECT 1 FROM turns WHERE connection_id = either_kind.id AND until > :clock AND process <> :process
        )
    ORDER BY next_refresh_at <= :now, next_refresh_at, access_expires_at
    LIMIT :limit
), given AS (
    INSERT INTO turns (connection_id, process, until)
    SELECT id, :process, :clock + :turn FROM candidates ORDER BY id
    ON CONFLICT (connection_id) DO UPDATE SET process = excluded.process, until = excluded.until
    WHERE turns.until <= :clock OR turns.process = excluded.process
    RETURNING connection_id
)
SELECT connections.*, :clock AS clock FROM connections JOIN given ON id = connection_id
ORDER BY next_refresh_at <= :now, next_refresh_at, access_expires_at;

-- name: next_due
SELECT next_refresh_at FROM connections
WHERE status = 'active' AND frozen_at IS NULL AND next_refresh_at IS NOT NULL AND attempt IS NULL
    AND NOT EXISTS (SELECT 1 FROM meta WHERE name = 'frozen')
    AND id NOT IN (SELECT value FROM json_each(:apart_from))
    AND NOT EXISTS (
        SELECT 1 FROM turns WHERE connection_id = connections.id AND until > :clock AND process <> :process
    )
ORDER BY next_refresh_at
LIMIT 1;

-- name: probe
-- First those that have not failed since their last success, the most recent success first; then the others, the one
-- first whose last attempt is the longest ago. Without a refresh token nothing is ever due. One instance probes at a time.
-- Nothing is sent to a host that is not allowed.
WITH given AS (
    INSERT INTO turns (connection_id, process, until) VALUES ('probe', :process, :clock + :turn)
    ON CONFLICT (connection_id) DO UPDATE SET process = excluded.process, until = excluded.until
    WHERE turns.until <= :clock OR turns.process = excluded.process
    RETURNING connection_id
)
SELECT *, :clock AS clock FROM connections WHERE EXISTS (SELECT 1 FROM given) AND id = (
    SELECT id FROM connections
    WHERE status = 'active' AND frozen_at IS NULL AND next_refresh_at IS NOT NULL
        AND id NOT IN (SELECT value FROM json_each(:apart_from))
        AND COALESCE(last_error, '') <> 'host_not_allowed'
        AND NOT EXISTS (SELECT 1 FROM meta WHERE name = 'frozen')
    ORDER BY
        CASE WHEN attempted_at > COALESCE(refreshed_at, connected_at) THEN attempted_at ELSE 0 END,
        COALESCE(refreshed_at, connected_at) DESC
    LIMIT 1
);

-- name: look_ups
WITH candidates AS MATERIALIZED (
    SELECT id, look_up_at FROM connections
    WHERE look_up_at <= :now AND id NOT IN (SELECT value FROM json_each(:apart_from))
        AND NOT EXISTS (
            SELECT 1 FROM turns WHERE connection_id = connections.id AND until > :clock AND process <> :process
        )
    ORDER BY look_up_at
    LIMIT :limit
), given AS (
    INSERT INTO turns (connection_id, process, until)
    SELECT id, :process, :clock + :turn FROM candidates ORDER BY id
    ON CONFLICT (connection_id) DO UPDATE SET process = excluded.process, until = excluded.until
    WHERE turns.until <= :clock OR turns.process = excluded.process
    RETURNING connection_id
)
SELECT id FROM candidates JOIN given ON id = connection_id ORDER BY look_up_at;

-- name: forget_turns
-- What another instance is at is left for the next time: two that wait for each other's rows would wait for ever.
DELETE FROM turns WHERE connection_id IN (
    SELECT connection_id FROM turns WHERE until <= :clock FOR UPDATE SKIP LOCKED
);

-- name: survey
-- Each count is made in an index alone, where the engine's own upkeep lets it.
-- What is frozen is not due, and nobody wonders that its access token has expired.
SELECT * FROM (
    SELECT
        count(*) AS active,
        count(*) FILTER (WHERE access_expires_at > :now) AS fresh,
        min(COALESCE(refresh_expires_at, access_expires_at)) AS next_deadline
    FROM connections WHERE status = 'active'
) AS living, (
    SELECT
        count(*) FILTER (WHERE access_expires_at <= :now) AS expired,
        min(access_expires_at) AS next_expiry,
        count(*) FILTER (WHERE next_refresh_at <= :now AND NOT all_frozen) AS due,
        count(*) FILTER (WHERE next_refresh_at <= :late AND NOT all_frozen) AS overdue
    FROM (SELECT EXISTS (SELECT 1 FROM meta WHERE name = 'frozen') AS all_frozen) AS mark, connections
    WHERE status = 'active' AND frozen_at IS NULL
) AS thawed, (
    SELECT COALESCE(CAST(json_object_agg(name, number) AS TEXT), '{}') AS not_active FROM (
        SELECT COALESCE(reason, status) AS name, count(*) AS number
        FROM connections WHERE status <> 'active' GROUP BY status, reason
    ) AS counted
) AS others, (
    SELECT count(*) AS mismatched FROM connections WHERE last_error = 'client_mismatch'
) AS of_other_clients, (
    SELECT count(*) AS hosts_not_allowed FROM connections WHERE status = 'active' AND last_error = 'host_not_allowed'
) AS refused, (
    SELECT count(*) AS waiting, min(at) AS waiting_since FROM outbox WHERE parked_at IS NULL
) AS undelivered, (
    SELECT count(*) AS parked FROM outbox WHERE parked_at IS NOT NULL
) AS given_up;

-- name: successes
-- Of all connections, in their index alone; a time that is yet to come is an imported one's, or a wrong clock's.
SELECT
    (
        SELECT count(*) FROM connections
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
) AS each;

-- name: claim
-- Of the very row that was read, and over an open attempt only once the database's own clock says that its lease has
-- ended. What that was spending may be spent.
UPDATE connections SET
    lease_owner = :owner, lease_until = :clock + :lease, attempt = :attempt,
    doubtful = COALESCE(NULLIF(spending, ''), doubtful), spending = :fingerprint, attempted_at = :clock,
    row_version = row_version + 1
WHERE id = :connection_id AND row_version = :row_version AND status <> 'disconnected'
    AND (attempt IS NULL OR lease_until <= :clock)
    AND frozen_at IS NULL AND NOT EXISTS (SELECT 1 FROM meta WHERE name = 'frozen')
RETURNING *;

-- name: claim_notices
-- What another instance is at is skipped. What may live elsewhere is delivered there: no process can miss that here.
UPDATE outbox SET lease = :lease, lease_until = :clock + :length, tries = tries + 1
WHERE number IN (
    SELECT number FROM outbox AS one
    WHERE parked_at IS NULL AND next_try_at <= :now
        AND (lease_until IS NULL OR lease_until <= :clock OR lease_until > :clock + :length)
        AND id NOT IN (SELECT value FROM json_each(:apart_from))
        AND NOT EXISTS (
            SELECT 1 FROM outbox AS earlier
            WHERE earlier.connection_id = one.connection_id AND earlier.number < one.number
                AND earlier.parked_at IS NULL
        )
        AND NOT EXISTS (
            SELECT 1 FROM meta
            WHERE name = 'frozen' AND CAST(CAST(convert_from(value, 'UTF8') AS json) ->> 'elsewhere' AS BOOLEAN)
        )
    ORDER BY next_try_at, number
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
)
RETURNING *;

-- name: lock_connection
-- What a transaction reads first and then writes by, nobody changes in between.
SELECT 1 FROM connections WHERE id = :id FOR UPDATE;

-- name: lock_owned
SELECT 1 FROM connections WHERE id IN (SELECT connection_id FROM owners WHERE owner = :owner AND left_no IS NULL)
ORDER BY id
FOR UPDATE;

-- name: lock_for_spending
-- Whoever freezes waits for the claims that are under way, and each claim after that sees it.
SELECT pg_advisory_xact_lock_shared(hashtext(current_schema() || '.amo_callback.spending'));

-- name: lock_for_freezing
SELECT pg_advisory_xact_lock(hashtext(current_schema() || '.amo_callback.spending'));

-- name: lock_slots
SELECT *, CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) AS clock FROM slots
WHERE name = 'amo' FOR UPDATE;

-- name: make_slots
INSERT INTO slots (name, last, free_at, people_until, background_until) VALUES ('amo', 'background', 0, 0, 0)
ON CONFLICT (name) DO NOTHING;

-- name: save_slots
UPDATE slots SET
    last = :last, free_at = :free_at, people_until = :people_until, background_until = :background_until
WHERE name = 'amo';
