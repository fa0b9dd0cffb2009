"""Refreshing: the rules by which no connection is lost through our own fault.

A refresh spends a credential: AMO's refresh tokens work once, and the answer that brings the next one can be lost.

- `scheduler`: the loop, which starts what is due.
- `coordinator`: when a pair is refreshed, and for whom; concurrent callers cause one refresh.
- `decision`: the rules by which a token is presented now, later or not at all. `gate`: the facts that they need.
- `slots`: slots at AMO's rate limit.
- `attempt`: one refresh, from claim to stored pair; the only place where a refresh token is spent.
- `failure_recorder`, with `failure_policy`: what a refresh without a pair means for its connection.
- `breaker`: when nothing may be refreshed at all, the fault not being each connection's own.
- `credentials`: whether AMO accepts our client id, secret and redirect URI, before the first pair.
- `address_block`: when AMO blocks our address, and nothing but a probe may be refreshed.
- `stored_hosts`: whether requests may go to the stored host of a connection.
- `leases`: how long another process's attempt is left alone.
- `introspector`: what can be asked of AMO without spending anything. `rechecks`: the look-ups that are due.
- `pending_writes`, with `pending_pair` and `rescue`: pairs that the store has not taken.
- `raw_answers`: good answers without a readable pair.
- `maintenance`: stepped clocks, refresh tokens that end soon, and what has expired.
- `freeze`: when nothing may be spent, because a copy may be at work elsewhere. `disconnection`: on request.
- `stats_poller`: how all connections do, for monitoring.

The life of doubt, as a row tells it:

- clean: no `attempt`, nothing `doubtful`.
- claimed: `attempt` and its lease; `spending` names the token that goes out (nothing where no key opens the pair).
- answered: a pair clears all four; a refusal clears `attempt` and `spending`, and leaves what was doubtful before.
- open: no answer, or a process that died: `attempt` and `spending` stay, and others leave it alone for a lease.
- taken over: the next claim moves what was `spending` into `doubtful`, and only a stored pair clears that. AMO's
  "revoked" of a doubtful token is our loss, `in_doubt`; of any other it is `revoked`.
"""
