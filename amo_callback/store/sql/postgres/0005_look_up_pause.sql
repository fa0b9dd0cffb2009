ALTER TABLE connections ADD COLUMN looked_up_at BIGINT;
ALTER TABLE connections ADD COLUMN look_up_pause BIGINT;
