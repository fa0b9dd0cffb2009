"""How accounts are connected: a grant is started, its code exchanged once, and its end told to who may know it.

- `authorization`: a state is issued, for whom and with which challenge.
- `admission`: which codes are exchanged at all, by the state that they come with.
- `completion`: one code, many callers, one exchange; what became of it is remembered while AMO's codes live.
- `records`: grants as they are written down, and as they are told.
- `exchange`: the only place where a code is spent.
- `redemption`: the app presents what its deep link brought, and its user becomes an owner.
- `proof`: the rules by which somebody does.
- `limits`: how many codes and grants may be on their way, of one address and of all.
- `build`: all of it, put together.
"""
