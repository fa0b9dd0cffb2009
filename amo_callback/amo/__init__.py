"""AMO's protocol, a client, a rate limiter, and an AMO stand-in for tests and the demo."""
