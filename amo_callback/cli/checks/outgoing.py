"""Proxies for outgoing requests, as the environment names them: the service does not use any."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.cli.checks.finding import Finding, warn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_NAMES = frozenset({"http_proxy", "https_proxy", "all_proxy"})
WHY = (
    "ignored: every request leaves directly, so that tokens and secrets go only where the configuration says, and not "
    "where a variable does"
)
_FIX = (
    "unset it for the service; where requests must not leave directly, run a proxy on this host that passes them on to "
    "AMO, and name it in amo.endpoint"
)


def proxy_variables(environ: Mapping[str, str]) -> Sequence[str]:
    """Return the names of the variables that name a proxy; never a value, which may hold a password."""
    return sorted(name for name, value in environ.items() if name.lower() in _NAMES and value.strip())


def check_outgoing(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Look whether the environment names a proxy that others would use."""
    if names := proxy_variables(environ):
        yield warn("outgoing_proxy", f"{', '.join(names)}: {WHY}", fix=_FIX)
