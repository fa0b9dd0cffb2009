-- counters: `serial` is counted up by each disconnect. What decides whether a pair or an owner came before or after one
-- are its values, never times: two processes do not agree on the time.
-- grants.no: the value when the code was first claimed; it stays when the code is tried again.
-- connections.disconnect_no: of the last disconnect on request; the pair of a grant from before is not stored.
-- connections.forgotten_no: of the last time its owners were forgotten; a grant from before adds no owner.
-- owners.left_no: of the time when the user left; a grant from before does not make them an owner again.
CREATE TABLE counters (
    name  TEXT COLLATE "C" PRIMARY KEY,
    value BIGINT NOT NULL
);

INSERT INTO counters (name, value) VALUES ('serial', 1);

ALTER TABLE grants ADD COLUMN no BIGINT NOT NULL DEFAULT 0;
ALTER TABLE connections RENAME COLUMN disconnected_at TO disconnect_no;
ALTER TABLE connections RENAME COLUMN forgotten_at TO forgotten_no;
ALTER TABLE owners RENAME COLUMN left_at TO left_no;
UPDATE connections SET disconnect_no = LEAST(disconnect_no, 1), forgotten_no = LEAST(forgotten_no, 1);
UPDATE owners SET left_no = LEAST(left_no, 1);

-- Rows whose times cannot be right are due now: issued in the future, or due after they expire. Rows that back off may
-- be due after they expire.
CREATE INDEX connections_by_issue ON connections (access_issued_at)
    WHERE status = 'active' AND frozen_at IS NULL AND failures = 0;
CREATE INDEX connections_due_too_late ON connections (id)
    WHERE status = 'active' AND frozen_at IS NULL AND failures = 0 AND next_refresh_at > access_expires_at;
