-- What each column means stands in the migration of SQLite.
ALTER TABLE connections ADD COLUMN attempted_at BIGINT;
ALTER TABLE connections ADD COLUMN refused_since BIGINT;
ALTER TABLE connections ADD COLUMN refusals BIGINT NOT NULL DEFAULT 0;
ALTER TABLE connections ADD COLUMN suspended_reason TEXT;
ALTER TABLE connections ADD COLUMN suspended_token TEXT;

CREATE INDEX connections_by_success ON connections (refreshed_at, connected_at, attempted_at);
CREATE INDEX connections_by_client_mismatch ON connections (id) WHERE last_error = 'client_mismatch';
