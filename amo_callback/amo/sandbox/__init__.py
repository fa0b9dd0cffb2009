"""A stand-in for AMO that follows AMO's rules strictly, so that it hides no bug."""
