"""A stand-in for AMO that enforces AMO's rules strictly, so that it does not hide bugs of the service."""
