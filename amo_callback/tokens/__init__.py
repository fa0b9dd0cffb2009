"""Access tokens for backends.

- `access_tokens`: access-token hand-out, with a refresh first if necessary.
- `lookup`: connections by selector. `cache`: connections with decrypted access tokens.
- `access_token_check`: whether an access token is still valid.
- `lifecycle`: composition of this package and of refreshing.
"""
