-- What keeps several instances out of each other's way. None of it is worth a write to the log (UNLOGGED): after a
-- crash of the database it begins empty.
-- turns: which instance is to refresh, or look up, a connection next. Only a courtesy: what holds is the claim.
CREATE UNLOGGED TABLE turns (
    connection_id TEXT COLLATE "C" PRIMARY KEY,
    process       TEXT NOT NULL,
    until         BIGINT NOT NULL
);

-- slots: one row, the rate limit towards AMO. free_at: when the next slot is. last: who had the last one. And until when
-- people, and background, are taken to wait: while both do, they take turns.
CREATE UNLOGGED TABLE slots (
    name             TEXT PRIMARY KEY,
    last             TEXT NOT NULL,
    free_at          BIGINT NOT NULL,
    people_until     BIGINT NOT NULL,
    background_until BIGINT NOT NULL
);

-- places: when each place was taken of those that one address, or user, may hold without having proved himself.
CREATE UNLOGGED TABLE places (
    name  TEXT COLLATE "C" PRIMARY KEY,
    taken BIGINT[] NOT NULL,
    until BIGINT NOT NULL
);

CREATE INDEX places_by_end ON places (until);
