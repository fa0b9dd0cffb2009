"""Access tokens for backends.

- `access_tokens`: the access-token hand-out, which refreshes a token first if necessary.
- `oauth_tokens`: the hand-out to standard OAuth clients, which do not say why they request a token.
- `lookup`: the look-up of connections by selector.
- `cache`: a cache of connections with decrypted access tokens.
- `access_token_check`: checks of access tokens in doubt.
- `lifecycle`: the composition of the components in this package and in `refresh`.
"""
