"""Connections on their way: out of this store, into another one, and in from another system.

A refresh token works once, so a pair must have one home. An export freezes its source and waits for what is under way;
an import changes nothing unless all of it is good, and replaces nothing that is newer.
"""
