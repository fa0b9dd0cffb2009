-- died_at: when a connection was given up. look_up_at: when its tokens are to be looked up, unspent.
-- disconnected_at: when a person disconnected it; a pair granted before does not come back.
-- hook_at: when AMO's hook last said that the integration was switched off in its account.
ALTER TABLE connections ADD COLUMN died_at INTEGER;
ALTER TABLE connections ADD COLUMN disconnected_at INTEGER;
ALTER TABLE connections ADD COLUMN look_up_at INTEGER;
ALTER TABLE connections ADD COLUMN hook_at INTEGER;

DROP INDEX connections_by_due;
CREATE INDEX connections_by_due ON connections (next_refresh_at, access_expires_at, id) WHERE status = 'active';
CREATE INDEX connections_by_look_up ON connections (look_up_at) WHERE look_up_at IS NOT NULL;
CREATE INDEX connections_by_death ON connections (died_at) WHERE died_at IS NOT NULL;
