"""Checks of the configuration: who can read its secrets, and settings that contradict each other or have no effect."""

from __future__ import annotations

import stat
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from amo_callback.cli.checks.finding import Finding, fail, ok, warn
from amo_callback.config.loader import SECRETS, secret_folders, secrets_in
from amo_callback.deeplink import success_link
from amo_callback.identity import Scope, key_with, read_api_keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from amo_callback.config.settings import Settings

_NO_APPS = frozenset({"intent", "market", "mailto", "tel", "sms", "ftp", "ws", "wss", "view-source", "chrome"})
"""Schemes with which phones do not open a custom app."""
_WIDE = {4: 8, 6: 16}
"""Prefix lengths, by IP version, below which a network is too large to consist of trusted proxies."""
_PROXY_NAMES = frozenset({"http_proxy", "https_proxy", "all_proxy"})
PROXY_IGNORED = "ignored: requests are sent directly, so that tokens and secrets go only where the configuration says"
_PROXY_FIX = (
    "unset it for the service; if direct requests are not possible, run a proxy on this host that forwards "
    "them to AMO, and set amo.endpoint to it"
)


def check_secrets(config: Path | None, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Check who can read secrets in the configuration file and in separate files."""
    found: list[Finding] = []
    if config is not None:
        found += _changeable(config)
        if held := secrets_in(config):
            found += _readable(config, f"it contains {', '.join(held)}", fix="or put each of them into its own file")
    for folder in secret_folders(config, environ):
        for file in sorted(folder.iterdir()):
            if file.name in SECRETS and file.is_file():
                found += [*_readable(file, "it is a secret"), *_changeable(file)]
    yield from found or [ok("secrets", "no other user can read or change the files that contain them")]


def _readable(file: Path, why: str, *, fix: str = "") -> Iterator[Finding]:
    if open_to_others(file, stat.S_IROTH):
        mend = f"chmod o-rwx {file}{f', {fix}' if fix else ''}"
        yield fail("secrets", f"{file} can be read by every user of this machine, and {why}", fix=mend)


def _changeable(file: Path) -> Iterator[Finding]:
    if open_to_others(file, stat.S_IWOTH):
        yield fail("secrets", f"{file} can be changed by every user of this machine", fix=f"chmod o-w {file}")


def open_to_others(file: Path, permission: int) -> bool:
    """Return whether every user has this permission for a file and can enter its parent folders."""
    real = file.resolve()
    if not real.stat().st_mode & permission:
        return False
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in real.parents)


# --- settings ------------------------------------------------------------------------------------


def check_settings(settings: Settings) -> Iterator[Finding]:
    yield _redirect_uri(settings)
    yield _deep_link(settings)
    yield _api_keys(settings)
    yield from _proxies(settings)
    yield _private_address(settings)


def _redirect_uri(settings: Settings) -> Finding:
    parts = urlsplit(settings.amo.redirect_uri)
    wanted = f"{settings.server.base_path}/callback"
    if not parts.path.endswith(wanted):
        return fail(
            "redirect_uri",
            f"{settings.amo.redirect_uri} does not end in {wanted}, where the service listens",
            fix="make server.base_path and amo.redirect_uri match, and register the same address in AMO",
        )
    if parts.query or parts.fragment:
        return fail(
            "redirect_uri",
            "must have no query or fragment, because AMO adds its own",
            fix="register and set it without",
        )
    if parts.scheme != "https":
        return warn("redirect_uri", f"{parts.scheme}: works only on this machine", fix="use an https:// address")
    return ok("redirect_uri", settings.amo.redirect_uri)


def _deep_link(settings: Settings) -> Finding:
    app = settings.app
    scheme, _, rest = app.deep_link.partition(":")
    if scheme.lower() in _NO_APPS:
        return fail(
            "deep_link",
            f"{app.deep_link}: {scheme}: not a scheme of an app",
            fix="set app.deep_link to the app's address",
        )
    host = rest[2:].partition("/")[0] if rest.startswith("//") else ""
    if scheme != scheme.lower() or host != host.lower():
        return warn(
            "deep_link",
            f"{app.deep_link}: Android compares scheme and host case-sensitively",
            fix="write app.deep_link, and the app's intent filter, in lower case",
        )
    if scheme == "http":
        return warn("deep_link", f"{app.deep_link}: http: opens a browser", fix="use the app's scheme, or https")
    example = success_link(app.deep_link, hand_back=app.hand_back, code=b"CODE", state=b"STATE")
    return ok("deep_link", f"the deep link is {example}")


def _api_keys(settings: Settings) -> Finding:
    text = settings.api.keys.get_secret_value()
    known = read_api_keys(text)
    if not known:
        return warn(
            "api_keys",
            "api.keys is empty: no backend can get a token",
            fix='add a line "name:key" (openssl rand -hex 32), and reload',
        )
    missing = [scope for scope in (Scope.TOKEN, Scope.READ) if key_with(text, scope) is None]
    if missing:
        return warn(
            "api_keys", f"no key has the scope {missing[0]}", fix=f'add a key with this scope: "name:{missing[0]}:key"'
        )
    return ok("api_keys", ", ".join(f"{key.name} ({'+'.join(sorted(key.scopes))})" for key in known))


def _proxies(settings: Settings) -> Iterator[Finding]:
    networks = [ip_network(text, strict=False) for text in settings.server.trusted_proxies]
    wide = [str(network) for network in networks if network.prefixlen < _WIDE[network.version]]
    if wide:
        yield warn(
            "trusted_proxies",
            f"{', '.join(wide)}: almost any client can forge its own address and evade [limits]",
            fix="name the proxy's own address in server.trusted_proxies",
        )


def _private_address(settings: Settings) -> Finding:
    address = settings.server.private
    host = address.rpartition(":")[0].strip("[]")
    try:
        given = ip_address(host)
        is_open = given.is_unspecified or given.is_global
    except ValueError:  # a Unix socket or a host name
        is_open = False
    if is_open:
        return warn(
            "private_address",
            f"{address} can be reached from other machines unless a firewall prevents it, and hands out tokens",
            fix='set server.private to "127.0.0.1:8081", an address on your private network, or "unix:/path"',
        )
    return ok("private_address", address)


def proxy_variables(environ: Mapping[str, str]) -> Sequence[str]:
    """Return the names of variables that configure a proxy, without their values, which may contain a password."""
    return sorted(name for name, value in environ.items() if name.lower() in _PROXY_NAMES and value.strip())


def check_outgoing(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Check whether the environment configures a proxy, which the service ignores."""
    if names := proxy_variables(environ):
        yield warn("outgoing_proxy", f"{', '.join(names)}: {PROXY_IGNORED}", fix=_PROXY_FIX)
