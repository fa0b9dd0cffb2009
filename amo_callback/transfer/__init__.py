"""Export and import of connections.

A refresh token works once, so only one place may use a pair. An export freezes its source and waits for what is in
flight; an import changes nothing unless the whole file is valid, and replaces nothing that is newer.
"""
