"""A stand-in for AMO that keeps AMO's rules strictly: what it forgives, it would hide."""
