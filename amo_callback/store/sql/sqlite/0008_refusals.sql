-- attempted_at: when its refresh was last claimed.
-- refused_since: since when AMO refuses it without a hint and its introspection is rejected; refusals: how often in a row.
-- suspended_reason, suspended_token: a terminal answer that a mass failure has suspended, and the fingerprint of the
-- refresh token that was answered so.
ALTER TABLE connections ADD COLUMN attempted_at INTEGER;
ALTER TABLE connections ADD COLUMN refused_since INTEGER;
ALTER TABLE connections ADD COLUMN refusals INTEGER NOT NULL DEFAULT 0;
ALTER TABLE connections ADD COLUMN suspended_reason TEXT;
ALTER TABLE connections ADD COLUMN suspended_token TEXT;

-- The successes of all connections are read in this index alone.
CREATE INDEX connections_by_success ON connections (refreshed_at, connected_at, attempted_at);
CREATE INDEX connections_by_client_mismatch ON connections (id) WHERE last_error = 'client_mismatch';
