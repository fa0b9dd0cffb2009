"""The OAuth flow: from an authorization request to a stored pair.

- `authorization`: authorization requests, and the check of a code's state.
- `grant_service`: one exchange per code, shared by concurrent callers; its result is stored.
- `grants`: stored grants and the rules for them.
- `code_exchange`: the exchange of a code; no other module spends authorization codes.
- `redemption`: redemption of a code or ticket by the app; the app's user may become an owner.
- `ownership`: the rules for becoming an owner.
- `limits`: limits on codes and authorization requests, per address and in total.
- `flow`: the composition of these parts.
"""
