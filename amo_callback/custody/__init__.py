"""The custody of token pairs: the rules by which no connection is lost through our fault.

A refresh spends a credential: AMO's refresh tokens work once, and the answer that brings the next one can be lost.

- `keeper`: when a pair is refreshed, and for whom; callers at the same moment make one refresh.
- `attempt`: one refresh, from claim to stored pair; the only place where a refresh token is spent.
- `judge`, with `verdict`: what a refresh without a pair means for its connection.
- `breaker`: when nothing may be refreshed at all, the fault not being each connection's own.
- `credentials`: whether AMO accepts our client id, secret and redirect URI, before the first pair.
- `address_block`: when AMO blocks our address, and nothing but a probe may be refreshed.
- `hosts`: whether requests may go to the stored host of a connection.
- `leases`: how long another process's attempt is left alone.
- `inquiry`: what can be asked of AMO without spending anything; `checks` and `liveness` ask it.
- `unsaved`, with `paid` and `rescue`: pairs that the store does not take.
- `refresher`: the loop. `handout`: tokens for whoever may have them, found by `selection`.
- `memory`: what was read for a hand-out, for as long as it is certain; `opened`: the pairs that were opened for one.
- `freezer`: when nothing may be spent, because a copy may be at work elsewhere. `deadlines`: clocks that were stepped,
  and refresh tokens whose three months run out.
- `farewell`: a connection is forgotten on request. `surveyor`: how all of them do, for monitoring.
- `remember`: what happened outside of any write. `build` puts it all together.

The life of doubt, as a row tells it:

- clean: no `attempt`, nothing `doubtful`.
- claimed: `attempt` and its lease; `spending` names the token that goes out (nothing where no key opens the pair).
- answered: a pair clears all four; a refusal clears `attempt` and `spending`, and leaves what was doubtful before.
- open: no answer, or a process that died: `attempt` and `spending` stay, and others leave it alone for a lease.
- taken over: the next claim moves what was `spending` into `doubtful`, and only a stored pair clears that. AMO's
  "revoked" of a doubtful token is our loss, `in_doubt`; of any other it is `revoked`.
"""
