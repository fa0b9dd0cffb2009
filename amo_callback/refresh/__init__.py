"""Refreshing of stored token pairs before they expire.

An AMO refresh token works only once, and the response that contains the next token pair can be lost.

- `scheduler`: the background loop that starts due refreshes.
- `coordinator`: one refresh at a time per connection, shared by concurrent callers.
- `decision`: the rules for presenting a token now, later or not at all. `gate`: the facts to which these rules apply.
- `slots`: rate-limit slots for requests to AMO.
- `attempt`: one refresh, from the claim to the stored pair; the only module that spends a refresh token.
- `failure_recorder`, with `failure_policy`: the results of refresh attempts that yield no pair.
- `breaker`: the circuit breaker, for faults that are not specific to one connection.
- `credentials`: detection of wrong client credentials before the first pair.
- `address_block`: AMO's block of this server's IP address.
- `stored_hosts`: a check of stored hosts against the allow list.
- `leases`: the remaining lease time of refresh attempts in progress.
- `introspector`: introspection, which spends no token. `rechecks`: scheduled introspections.
- `pending_writes`, with `pending_pair` and `rescue`: pairs that the store has not committed.
- `raw_answers`: successful token responses from which no pair could be read.
- `maintenance`: clock steps, expiry warnings and cleanup.
- `freeze`: freeze and thaw. `disconnection`: disconnecting on request.
- `stats_poller`: statistics about all connections, for monitoring.

A refresh attempt changes the columns of a connection's row as follows:

- Before the first attempt, `attempt`, `presented_token` and `possibly_spent_token` are null.
- A claim sets `attempt` and its lease. `presented_token` is the fingerprint of the token to be presented (empty if no
  key decrypts the pair).
- A stored pair clears all three columns. A refusal clears `attempt` and `presented_token`, but not
  `possibly_spent_token`.
- If the outcome is unknown or the process exits, `attempt` and `presented_token` remain, and other processes wait until
  the lease expires.
- The next claim moves `presented_token` to `possibly_spent_token`, which only a stored pair clears. If AMO rejects that
  token, the reason is `in_doubt`, because this service may have spent the token; for any other rejected token, the
  reason is `revoked` or `expired`.
"""
