-- looked_up_at: when the last look-up of its tokens began. look_up_pause: how long a further hook waits after that.
ALTER TABLE connections ADD COLUMN looked_up_at INTEGER;
ALTER TABLE connections ADD COLUMN look_up_pause INTEGER;
