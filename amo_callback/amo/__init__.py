"""AMO: its protocol, a client, the rate limiter, and a stand-in for tests and the demo."""
