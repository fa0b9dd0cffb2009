"""Checks of the configuration: file permissions, settings that are unsafe or do not work, and proxy variables."""

from __future__ import annotations

import stat
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from amo_callback.cli.checks.finding import Finding, fail, ok, warn
from amo_callback.config.loader import SECRETS, secret_folders, secrets_in
from amo_callback.deeplink import success_link
from amo_callback.identity import Scope, read_api_keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from amo_callback.config.settings import App, Settings
    from amo_callback.identity import ApiKey

_NO_APPS = frozenset({"intent", "market", "mailto", "tel", "sms", "ftp", "ws", "wss", "view-source", "chrome"})
"""URL schemes that do not open a custom app on phones."""
_WIDE = {4: 8, 6: 16}
"""Minimum prefix lengths by IP version. A network with a shorter prefix cannot consist of trusted proxies only."""
_PROXY_NAMES = frozenset({"http_proxy", "https_proxy", "all_proxy"})
PROXY_IGNORED = (
    "proxy variables are ignored; requests are sent directly, so that tokens and secrets go only to hosts in the "
    "configuration"
)
_PROXY_FIX = (
    "unset the proxy variables for the service. If direct requests are impossible, run a proxy on this host that "
    "forwards requests to AMO, and set amo.endpoint to the URL of that proxy"
)


def check_secrets(config: Path | None, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Check the file permissions of the configuration file and of secret files."""
    found: list[Finding] = []
    if config is not None:
        found += _changeable(config)
        if held := secrets_in(config):
            found += _readable(config, f"it contains {', '.join(held)}", fix="or move each secret into its own file")
    for folder in secret_folders(config, environ):
        for file in sorted(folder.iterdir()):
            if file.name in SECRETS and file.is_file():
                found += [*_readable(file, "it contains a secret"), *_changeable(file)]
    yield from found or [
        ok("secrets", "configuration and secret files: only owner and group can read the secrets or change the files")
    ]


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
    yield from (_deep_link(settings.app, link) for link in settings.app.deep_link)
    yield _api_keys(settings)
    yield from _proxies(settings)
    yield _private_address(settings)


def _redirect_uri(settings: Settings) -> Finding:
    parts = urlsplit(settings.amo.redirect_uri)
    wanted = f"{settings.server.base_path}/callback"
    if not parts.path.endswith(wanted):
        return fail(
            "redirect_uri",
            f"{settings.amo.redirect_uri} does not end in {wanted}, the path at which the service receives callbacks",
            fix="make server.base_path and amo.redirect_uri match, and register the same redirect URI in AMO",
        )
    if parts.query or parts.fragment:
        return fail(
            "redirect_uri",
            "amo.redirect_uri must have no query or fragment, because AMO appends its own query",
            fix="remove the query and fragment from amo.redirect_uri, and register the same redirect URI in AMO",
        )
    if parts.scheme != "https":
        return warn(
            "redirect_uri", f"{settings.amo.redirect_uri} works only on this machine", fix="use an https:// URI"
        )
    return ok("redirect_uri", settings.amo.redirect_uri)


def _deep_link(app: App, link: str) -> Finding:
    scheme, _, rest = link.partition(":")
    if scheme.lower() in _NO_APPS:
        return fail(
            "deep_link",
            f"{link}: the scheme {scheme} does not open the app on phones",
            fix="set app.deep_link to the app's deep link",
        )
    host = rest[2:].partition("/")[0] if rest.startswith("//") else ""
    if scheme != scheme.lower() or host != host.lower():
        return warn(
            "deep_link",
            f"{link}: the scheme or the host contains capital letters, and Android matches case-sensitively",
            fix="write the scheme and the host in lower case in app.deep_link, and in the app's intent filter",
        )
    if scheme == "http":
        return warn(
            "deep_link",
            f"{link}: an http link opens the browser instead of the app",
            fix="use the app's scheme, or https",
        )
    example = success_link(link, hand_back=app.hand_back, code=b"CODE", state=b"STATE")
    return ok("deep_link", f"the deep link is {example}")


def _api_keys(settings: Settings) -> Finding:
    known = read_api_keys(settings.api.keys.get_secret_value())
    if not known:
        return warn(
            "api_keys",
            "api.keys is empty: no backend can get a token",
            fix='add a line "name:key" to api.keys (`openssl rand -hex 32` generates a key), and reload the service',
        )
    missing = [scope for scope in (Scope.TOKEN, Scope.READ) if all(scope not in key.scopes for key in known)]
    if missing:
        return warn(
            "api_keys",
            f"no API key has the scope {missing[0]}",
            fix=f'add a key with this scope: "name:{missing[0]}:key"',
        )
    return ok("api_keys", ", ".join(f"{key.name} ({_rights_of(key)})" for key in known))


def _rights_of(key: ApiKey) -> str:
    scopes = "+".join(sorted(key.scopes))
    return scopes if key.limits is None else f"{scopes}, limited to some connections"


def _proxies(settings: Settings) -> Iterator[Finding]:
    networks = [ip_network(text, strict=False) for text in settings.server.trusted_proxies]
    wide = [str(network) for network in networks if network.prefixlen < _WIDE[network.version]]
    if wide:
        yield warn(
            "trusted_proxies",
            f"too many trusted addresses ({', '.join(wide)}): clients can forge their addresses and evade [limits]",
            fix="list only the address of the proxy in server.trusted_proxies",
        )


def _private_address(settings: Settings) -> Finding:
    address = settings.server.private
    host = address.rpartition(":")[0].strip("[]")
    try:
        given = ip_address(host)
        is_open = given.is_unspecified or given.is_global
    except ValueError:  # raised for a Unix socket and for a host name
        is_open = False
    if is_open:
        return warn(
            "private_address",
            f"{address}: other machines can reach the private API unless a firewall prevents it",
            fix='set server.private to "127.0.0.1:8081", an address on your private network, or "unix:/path"',
        )
    return ok("private_address", address)


def proxy_variables(environ: Mapping[str, str]) -> Sequence[str]:
    """Return the names of the variables that configure a proxy, without their values, which may contain a password."""
    return sorted(name for name, value in environ.items() if name.lower() in _PROXY_NAMES and value.strip())


def check_outgoing(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield a warning if the environment configures a proxy, because the service ignores it."""
    if names := proxy_variables(environ):
        yield warn("outgoing_proxy", f"{', '.join(names)}: {PROXY_IGNORED}", fix=_PROXY_FIX)
