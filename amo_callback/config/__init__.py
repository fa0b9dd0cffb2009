"""The configuration: `settings` has its shape, `loader` reads it, `template` writes a new one."""

from amo_callback.config.settings import DEFAULT_AMO_TIMEOUT, PREFIX, Amo, App, Server, Settings

__all__ = ["DEFAULT_AMO_TIMEOUT", "PREFIX", "Amo", "App", "Server", "Settings"]
