"""Refreshing: keeping every stored token pair valid without losing a connection.

An AMO refresh token works once, and the response with the next token can be lost.

- `scheduler`: the background loop that starts due refreshes.
- `coordinator`: one refresh at a time per connection, shared by concurrent callers.
- `decision`: the rules that decide whether a token is presented now, later or not at all. `gate`: the facts for them.
- `slots`: slots of AMO's rate limit.
- `attempt`: one refresh, from the claim to the stored pair; the only module that spends a refresh token.
- `failure_recorder`, with `failure_policy`: the result of a refresh attempt without a pair.
- `breaker`: the circuit breaker, for faults that are not specific to one connection.
- `credentials`: the client credentials, before the first pair proves them.
- `address_block`: AMO's block of this server's IP address.
- `stored_hosts`: the stored hosts of connections, checked against the allow list.
- `leases`: the remaining lease time of refresh attempts in progress.
- `introspector`: introspection, which spends nothing. `rechecks`: due introspections.
- `pending_writes`, with `pending_pair` and `rescue`: pairs that the store has not committed.
- `raw_answers`: successful token responses without a readable pair.
- `maintenance`: clock steps, expiry warnings and cleanup.
- `freeze`: freeze and thaw. `disconnection`: disconnecting on request.
- `stats_poller`: statistics about all connections, for monitoring.

The columns of a row during refresh attempts:

- No attempt: `attempt`, `presented_token` and `possibly_spent_token` are null.
- Claimed: `attempt` and its lease are set; `presented_token` is the fingerprint of the presented token (empty if no key
  decrypts the pair).
- A stored pair clears all of them. A refusal clears `attempt` and `presented_token`, but not `possibly_spent_token`.
- Unknown outcome, or the process died: `attempt` and `presented_token` remain, and other processes wait for the lease.
- The next claim moves `presented_token` to `possibly_spent_token`, which only a stored pair clears. If AMO rejects that
  token, the reason is `in_doubt`, because this service may have spent it; otherwise it is `revoked`.
"""
