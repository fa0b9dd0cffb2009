"""The demo: the whole service with a stand-in for AMO, a phone, a backend, and a panel that shows all events."""
