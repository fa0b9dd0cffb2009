"""Export and import of connections.

A refresh token works once, so a pair must be in use in one place. An export freezes its source and waits for what is in
flight; an import changes nothing unless the whole file is valid, and replaces nothing that is newer.
"""
