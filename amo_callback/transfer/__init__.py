"""Export and import of connections.

A refresh token can be used only once, so only one host may use a pair. An export freezes its source database and waits
for refreshes and code exchanges in progress. An import changes nothing unless the whole file is valid, and never
replaces newer tokens of an active connection.
"""
