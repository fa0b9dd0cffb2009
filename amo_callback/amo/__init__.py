"""The vendor: its protocol, its client, its rate limit, and a stand-in for it."""
