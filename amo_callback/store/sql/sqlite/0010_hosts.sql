CREATE INDEX connections_by_host_not_allowed ON connections (id)
WHERE status = 'active' AND last_error = 'host_not_allowed';
