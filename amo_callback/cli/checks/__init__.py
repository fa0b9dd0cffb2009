"""What `amo-callback check` looks at. Each check yields findings; none of them changes or spends anything."""
