-- Those who are not kept fresh are counted in this index alone; the others are in those that they have.
CREATE INDEX connections_by_status ON connections (status, reason) WHERE status <> 'active';
