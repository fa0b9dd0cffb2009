"""Access tokens for backends, and the lifecycle of one process that keeps them fresh.

- `access_tokens`: hands out a token, refreshed first where it has to be.
- `lookup`: connections by selector. `cache`: connections with their access tokens in clear, for a second.
- `access_token_check`: whether a token is still usable.
- `lifecycle`: all parts of refreshing and of this package, put together.
"""
