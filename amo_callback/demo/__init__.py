"""The demonstration: the whole service, a stand-in for AMO, a phone, a backend, and a panel that shows what happens."""
