"""The custody of token pairs: the rules by which no connection is lost through our fault.

A refresh spends a credential: AMO's refresh tokens work once, and the answer that brings the next one can be lost.

- `keeper`: when a pair is refreshed, and for whom; callers at the same moment make one refresh.
- `attempt`: one refresh, from claim to stored pair; the only place where a refresh token is spent.
- `judge`, with `verdict`: what a refresh without a pair means for its connection.
- `breaker`: when nothing may be refreshed at all, the fault not being each connection's own.
- `leases`: how long another process's attempt is left alone.
- `inquiry`: what can be asked of AMO without spending anything; `checks` and `liveness` ask it.
- `unsaved`, with `paid` and `rescue`: pairs that the store does not take.
- `refresher`: the loop. `handout`: tokens for whoever may have them.
- `build` puts it all together.
"""
