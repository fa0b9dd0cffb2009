-- What SQLite says in its own way.

-- name: due
-- Those with an open attempt, too: whether its lease has ended is told by the observer's own clock.
-- Earliest due first: that is the index's own order, so that a day's backlog costs little each time. Rows whose times
-- cannot be right come first.
SELECT *, :clock AS clock FROM connections
WHERE id IN (
    SELECT id FROM (
        SELECT id FROM connections
        WHERE status = 'active' AND frozen_at IS NULL AND failures = 0 AND access_issued_at > :impossible_after
            AND next_refresh_at IS NOT NULL
            AND id NOT IN (SELECT value FROM json_each(:apart_from))
        LIMIT :limit
    )
    UNION
    SELECT id FROM (
        SELECT id FROM connections
        WHERE status = 'active' AND frozen_at IS NULL AND failures = 0 AND next_refresh_at > access_expires_at
            AND id NOT IN (SELECT value FROM json_each(:apart_from))
        LIMIT :limit
    )
    UNION
    SELECT id FROM (
        SELECT id FROM connections
        WHERE status = 'active' AND frozen_at IS NULL AND next_refresh_at <= :now
            AND id NOT IN (SELECT value FROM json_each(:apart_from))
        ORDER BY next_refresh_at, access_expires_at
        LIMIT :limit
    )
) AND NOT EXISTS (SELECT 1 FROM meta WHERE name = 'frozen')
ORDER BY next_refresh_at <= :now, next_refresh_at, access_expires_at
LIMIT :limit;

-- name: next_due
SELECT next_refresh_at FROM connections
WHERE status = 'active' AND frozen_at IS NULL AND next_refresh_at IS NOT NULL AND attempt IS NULL
    AND NOT EXISTS (SELECT 1 FROM meta WHERE name = 'frozen')
    AND id NOT IN (SELECT value FROM json_each(:apart_from))
ORDER BY next_refresh_at
LIMIT 1;

-- name: probe
-- First those that have not failed since their last success, the most recent success first; then the others, the one
-- first whose last attempt is the longest ago. Without a refresh token nothing is ever due. Nothing is sent to a host that is
-- not allowed.
SELECT *, :clock AS clock FROM connections WHERE id = (
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
SELECT id FROM connections
WHERE look_up_at <= :now AND id NOT IN (SELECT value FROM json_each(:apart_from))
ORDER BY look_up_at
LIMIT :limit;

-- name: survey
-- Each count is made in an index alone: no connection is read, however many there are. The engine is told which, where
-- it would choose another. What is frozen is not due, and nobody wonders that its access token has expired.
SELECT * FROM (
    SELECT
        count(*) AS active,
        count(*) FILTER (WHERE access_expires_at > :now) AS fresh,
        min(COALESCE(refresh_expires_at, access_expires_at)) AS next_deadline
    FROM connections INDEXED BY connections_by_deadline WHERE status = 'active'
), (
    SELECT
        count(*) FILTER (WHERE access_expires_at <= :now) AS expired,
        min(access_expires_at) AS next_expiry,
        count(*) FILTER (WHERE next_refresh_at <= :now AND NOT all_frozen) AS due,
        count(*) FILTER (WHERE next_refresh_at <= :late AND NOT all_frozen) AS overdue
    FROM (SELECT EXISTS (SELECT 1 FROM meta WHERE name = 'frozen') AS all_frozen),
        connections INDEXED BY connections_by_due
    WHERE status = 'active' AND frozen_at IS NULL
), (
    SELECT json_group_object(name, number) AS not_active FROM (
        SELECT COALESCE(reason, status) AS name, count(*) AS number
        FROM connections INDEXED BY connections_by_status WHERE status <> 'active' GROUP BY status, reason
    )
), (
    SELECT count(*) AS mismatched FROM connections INDEXED BY connections_by_client_mismatch
    WHERE last_error = 'client_mismatch'
), (
    SELECT count(*) AS hosts_not_allowed FROM connections INDEXED BY connections_by_host_not_allowed
    WHERE status = 'active' AND last_error = 'host_not_allowed'
), (
    SELECT count(*) AS waiting, min(at) AS waiting_since FROM outbox WHERE parked_at IS NULL
), (
    SELECT count(*) AS parked FROM outbox WHERE parked_at IS NOT NULL
);

-- name: successes
-- Of all connections, in their index alone; a time that is yet to come is an imported one's, or a wrong clock's.
SELECT
    (
        SELECT count(*) FROM connections INDEXED BY connections_by_due
        WHERE status = 'active' AND frozen_at IS NULL AND next_refresh_at IS NOT NULL
    ) AS refreshable,
    max(at) AS latest,
    count(*) FILTER (WHERE attempted_at > :since) AS attempted,
    count(*) FILTER (WHERE attempted_at > :since AND at > :since) AS succeeded
FROM (
    SELECT
        attempted_at,
        CASE WHEN COALESCE(refreshed_at, connected_at) <= :now THEN COALESCE(refreshed_at, connected_at) END AS at
    FROM connections INDEXED BY connections_by_success
) AS each;

-- name: claim
-- Of the very row that was read. What an open attempt was spending whose lease has ended may be spent.
UPDATE connections SET
    lease_owner = :owner, lease_until = :clock + :lease, attempt = :attempt,
    doubtful = COALESCE(NULLIF(spending, ''), doubtful), spending = :fingerprint, attempted_at = :clock,
    row_version = row_version + 1
WHERE id = :connection_id AND row_version = :row_version AND status <> 'disconnected'
    AND frozen_at IS NULL AND NOT EXISTS (SELECT 1 FROM meta WHERE name = 'frozen')
RETURNING *;

-- name: claim_notices
-- A lease that ends later than one that begins now was written by a clock that has gone back since: it is over, too.
-- What may live elsewhere is delivered there: no process can miss that here.
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
            SELECT 1 FROM meta WHERE name = 'frozen' AND json_extract(CAST(value AS TEXT), '$.elsewhere')
        )
    ORDER BY next_try_at, number
    LIMIT :limit
)
RETURNING *;

-- name: lock_connection
-- A transaction here is the only one that writes: there is nothing to lock, here and below, and nothing is run.

-- name: lock_owned

-- name: lock_for_spending

-- name: lock_for_freezing
