"""How accounts are connected: a grant is started, its code exchanged once, and its result given to who may know it.

- `authorization`: a state is issued, for whom and with which challenge; which codes are taken, by their state.
- `grant_service`: one code, many callers, one exchange; its result is remembered while AMO's codes live.
- `grants`: grants as they are stored, their results, and the rules that they follow.
- `code_exchange`: the only place where a code is spent.
- `redemption`: the app presents what its deep link brought, and its user becomes an owner.
- `ownership`: the rules by which a user becomes one.
- `limits`: how many codes and authorization requests may be in flight, of one address and of all.
- `flow`: all of it, put together.
"""
