"""The checks of `amo-callback check`. Each yields findings; none changes or spends anything."""
