"""The OAuth flow: from an authorization request to a stored pair.

- `authorization`: authorization requests, and the check of a code's state.
- `grant_service`: one exchange per code, shared by concurrent callers, with a stored result.
- `grants`: stored grants and the rules for them.
- `code_exchange`: the only module that spends an authorization code.
- `redemption`: the app presents the code or ticket of its deep link, and its user becomes an owner.
- `ownership`: the rules for becoming an owner.
- `limits`: limits on codes and authorization requests, per address and in total.
- `flow`: composition of these parts.
"""
