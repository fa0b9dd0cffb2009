"""Access tokens for backends, and the lifecycle of one process that keeps them fresh.

- `access_tokens`: hands out a token, refreshed first where it has to be.
- `lookup`: connections by their names. `cache`: what was read, for as long as it is certain.
- `decrypted_pairs`: pairs that were decrypted for a hand-out. `access_token_check`: whether a token is still usable.
- `lifecycle`: all parts of refreshing and of this package, put together.
"""
