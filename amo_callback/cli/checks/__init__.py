"""The checks of `amo-callback check`. Each check yields findings. No check changes data or spends a token or code."""
