"""The configuration: `settings` has its shape, `loader` reads it, `template` writes a new one."""
