"""The configuration: `settings` defines it, `loader` reads it, `template` writes a new one."""
