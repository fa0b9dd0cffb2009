"""The demo: the real service, a stand-in for AMO, a phone page, a backend, and a panel with an event feed."""
