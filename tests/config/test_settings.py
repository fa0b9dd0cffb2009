"""The configuration: the sources of a value, and the errors of an invalid one."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, SecretStr

from amo_callback.config.loader import find_config, load_settings, rescue_folder, storage_folder
from amo_callback.config.settings import App, Settings
from amo_callback.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
KEY = "tQRvEK4i32xUy-FfF4sxzkorot4eA0h7hCH2cGQzfk4="
NEW = "whsec_" + "A" * 32
"""A webhook secret."""
IOS_APP = "ABCDE12345.com.example.app"
FINGERPRINT = ":".join(f"{number:02X}" for number in range(0xA0, 0xC0))
REQUIRED = {
    "AMO_CALLBACK_AMO__CLIENT_ID": "c619",
    "AMO_CALLBACK_AMO__CLIENT_SECRET": "the-client-secret",
    "AMO_CALLBACK_AMO__REDIRECT_URI": "https://admin.example.com/api/amo-crm/callback",
    "AMO_CALLBACK_STORAGE__ENCRYPTION_KEYS": KEY,
}


def _problems(environ: Mapping[str, str], path: Path | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as raised:
        load_settings(path, {**REQUIRED, **environ})
    return list(raised.value.problems)


def _written(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- example file --------------------------------------------------------------------------------


def _plain(value: object) -> object:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return list(value) if isinstance(value, tuple) else value


def test_example_config_has_every_setting_with_its_default() -> None:
    """`config.example.toml` and the model agree on every key; a key without default is a comment."""
    text = EXAMPLE.read_text(encoding="utf-8")
    example = tomllib.loads(text)
    assert set(example) == set(Settings.model_fields)
    for section, field in Settings.model_fields.items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, BaseModel)
        part = text.partition(f"\n[{section}]\n")[2].partition("\n[")[0]
        for key, setting in field.annotation.model_fields.items():
            if setting.is_required():
                [line] = [line for line in part.splitlines() if line.removeprefix("# ").startswith(f"{key} = ")]
                assert line.endswith("required"), f"{section}.{key} is required, and the example says so"
                assert ("(secret)" in line) == line.startswith("# "), f"{section}.{key}: a secret is no example"
            elif setting.default is None:
                assert f"\n# {key} = " in f"\n{part}", f"{section}.{key} has no default: a comment shows it"
            else:
                assert example[section][key] == _plain(setting.default), f"{section}.{key}"
        assert set(example[section]) <= set(field.annotation.model_fields)


def test_example_config_loads_with_secrets_from_environment(tmp_path: Path) -> None:
    """A copy of the file works with the secrets from the environment."""
    path = _written(tmp_path, EXAMPLE.read_text(encoding="utf-8"))
    secrets = {"AMO_CALLBACK_STORAGE__ENCRYPTION_KEYS": KEY, "AMO_CALLBACK_AMO__CLIENT_SECRET": "s"}
    settings = load_settings(path, secrets)
    assert settings.refresh.lease == 60


# --- sources of values ----------------------------------------------------------------------------


def test_load_settings_prefers_environment_credentials_secrets_toml(tmp_path: Path) -> None:
    """Each value comes from the first of environment, credentials, secret files and TOML that has it."""
    for folder, names in (("credentials", "123"), ("secrets", "23")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / {"1": "amo.client_id", "2": "amo.client_secret", "3": "app.name"}[name]).write_text(
                f"{folder}\n", encoding="utf-8"
            )
    (tmp_path / "secrets" / "log.level").write_text("error\n", encoding="utf-8")
    (tmp_path / "secrets" / "README").write_text("not a setting", encoding="utf-8")
    path = _written(
        tmp_path,
        '[server]\nsecrets = "secrets"\nbase_path = "/x"\n[amo]\nclient_id = "toml"\nclient_secret = "toml"\n'
        '[app]\nname = "toml"\n[log]\nlevel = "debug"\nformat = "json"\n',
    )
    settings = load_settings(
        path,
        {
            "AMO_CALLBACK_AMO__REDIRECT_URI": "https://a.example/callback",
            "AMO_CALLBACK_STORAGE__ENCRYPTION_KEYS": KEY,
            "amo_callback_app__name": "environment",
            "CREDENTIALS_DIRECTORY": str(tmp_path / "credentials"),
        },
    )
    assert settings.app.name == "environment"
    assert settings.amo.client_id == "credentials"
    assert settings.amo.client_secret.get_secret_value() == "credentials"
    assert settings.log.level == "error"
    assert (settings.log.format, settings.server.base_path) == ("json", "/x")
    assert settings.log.access is True


def test_load_settings_reads_credentials_directory(tmp_path: Path) -> None:
    """`LoadCredential=` of a folder prefixes its file names; the database's URL may be a credential."""
    (tmp_path / "amo-callback_amo.client_secret").write_text("credentials\n", encoding="utf-8")
    (tmp_path / "storage.url").write_text("postgresql://u:sekret@h/d\n", encoding="utf-8")
    environ = {name: value for name, value in REQUIRED.items() if not name.endswith("SECRET")}
    settings = load_settings(None, {**environ, "CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert settings.amo.client_secret.get_secret_value() == "credentials"
    assert settings.storage.url.get_secret_value() == "postgresql://u:sekret@h/d"


def test_load_settings_does_not_read_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings come from the `environ` argument, not from the process's environment."""
    monkeypatch.setenv("AMO_CALLBACK_APP__NAME", "leaked")
    assert load_settings(None, REQUIRED).app.name == "For You"


def test_load_settings_splits_environment_lists_at_commas_or_spaces(tmp_path: Path) -> None:
    """A list is one line in the environment; account ids may be numbers in TOML."""
    settings = load_settings(
        None,
        {
            **REQUIRED,
            "AMO_CALLBACK_SERVER__TRUSTED_PROXIES": "10.0.0.1, ::ffff:10.0.0.2 ::1, ::ffff:10.1.0.0/112,",
            "AMO_CALLBACK_AMO__ALLOWED_ACCOUNTS": "",
        },
    )
    assert settings.server.trusted_proxies == ("10.0.0.1", "10.0.0.2/32", "::1", "10.1.0.0/16")
    assert settings.amo.allowed_accounts == ()
    path = _written(tmp_path, "[amo]\nallowed_accounts = [31920194]")
    assert load_settings(path, REQUIRED).amo.allowed_accounts == ("31920194",)
    path = _written(tmp_path, '[amo]\nallowed_accounts = [""]')  # would allow accounts that AMO does not name
    assert _problems({}, path) == ["amo.allowed_accounts.0: '': string should match pattern '^[0-9]{1,20}$'"]


def test_find_config_uses_option_environment_or_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--config` precedes `AMO_CALLBACK_CONFIG`, which precedes `./config.toml`."""
    monkeypatch.chdir(tmp_path)
    assert find_config(None, {}) is None
    _written(tmp_path, "")
    assert find_config(None, {}) == Path("config.toml")
    assert find_config(None, {"AMO_CALLBACK_CONFIG": "b.toml"}) == Path("b.toml")
    assert find_config("a.toml", {"AMO_CALLBACK_CONFIG": "b.toml"}) == Path("a.toml")


def test_storage_folder_is_state_directory_or_config_folder(tmp_path: Path) -> None:
    """Relative paths start in the first of systemd's state directories, otherwise in the configuration's folder."""
    path = tmp_path / "config.toml"
    assert storage_folder(path, {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}) == Path("/var/lib/a")
    assert storage_folder(path, {}) == tmp_path


# --- errors ---------------------------------------------------------------------------------------


def test_load_settings_reports_every_problem_with_key_value_and_fix() -> None:
    """All problems are reported at once, one line each."""
    with pytest.raises(ConfigurationError) as raised:
        load_settings(
            None,
            {
                "AMO_CALLBACK_AMO__CLIENT_ID": "c619",
                "AMO_CALLBACK_AMO__TIMEOUT": "soon",
                "AMO_CALLBACK_SERVER__COLOUR": "red",
                "AMO_CALLBACK_LOGS__LEVEL": "info",
                "AMO_CALLBACK_STORAGE__ENCRYPTION_KEYS": KEY,
            },
        )
    assert sorted(raised.value.problems) == [
        (
            "AMO_CALLBACK_LOGS__LEVEL: unknown variable; use AMO_CALLBACK_SECTION__KEY, where SECTION is one of "
            "server, amo, app, limits, refresh, storage, api, webhook, log"
        ),
        (
            "amo.client_secret is required: set it in the configuration file, in a secret file named "
            "amo.client_secret, or in the variable AMO_CALLBACK_AMO__CLIENT_SECRET"
        ),
        (
            "amo.redirect_uri is required: set it in the configuration file, in a secret file named amo.redirect_uri, "
            "or in the variable AMO_CALLBACK_AMO__REDIRECT_URI"
        ),
        "amo.timeout: 'soon': input should be a valid number, unable to parse string as a number",
        "server.colour: unknown setting (see `amo-callback config example`)",
    ]


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("[amo]\nredirect_url = 1", "amo.redirect_url: unknown setting (did you mean amo.redirect_uri?)"),
        ("[sever]", "sever: unknown setting (did you mean server?)"),
        ("[amo]\nzzz = 1", "amo.zzz: unknown setting (see `amo-callback config example`)"),
    ],
)
def test_load_settings_unknown_setting_suggests_nearest(text: str, nearest: str, tmp_path: Path) -> None:
    """A misspelt key is reported with the nearest known one."""
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigurationError) as raised:
        load_settings(tmp_path / "config.toml", {})
    assert nearest in raised.value.problems


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("SERVER__PUBLIC", "8080", """server.public: '8080': must be "host:port" or "unix:/path\""""),
        ("SERVER__PUBLIC", "h:70000", """server.public: 'h:70000': must be "host:port" or "unix:/path\""""),
        *(
            ("SERVER__BASE_PATH", path, f"server.base_path: {path!r}: must be a path such as")
            for path in ("api/", "/", "//evil.example", "/a//b", "/../x", "/a/./b", "/a b", "/a?b")
        ),
        ("AMO__ALLOWED_ACCOUNTS", "[31920194]", "amo.allowed_accounts.0: '[31920194]': string should match pattern"),
        ("AMO__ENDPOINT", "https://{domain}:99999", "amo.endpoint: "),
        ("AMO__REDIRECT_URI", "https://a.example/x/callback#y", "amo.redirect_uri: "),
        ("AMO__REDIRECT_URI", "https://a.example/x\n/callback", "amo.redirect_uri: "),
        ("APP__DEEP_LINK", "http://a.example/x", "app.deep_link: "),
        ("AMO__REDIRECT_URI", "http://a.example/callback", "amo.redirect_uri: 'http://a.example/callback': must begin"),
        ("AMO__REDIRECT_URI", "https://a.example/cb", "the path of amo.redirect_uri must end in /callback"),
        ("AMO__ENDPOINT", "https://a.example", "amo.endpoint: 'https://a.example': must contain {domain}"),
        ("AMO__ENDPOINT", "http://a.example/{domain}", "amo.endpoint: 'http://a.example/{domain}': must begin"),
        ("AMO__ENDPOINT", "https://u:p@{domain}", "amo.endpoint: must not contain a user name or password"),
        ("AMO", '{"x', "AMO_CALLBACK_AMO: unknown variable; use AMO_CALLBACK_SECTION__KEY, where SECTION is one of"),
        (
            "AMO__DEFAULT_DOMAIN",
            "evil.com",
            "amo: default_domain 'evil.com' is neither a host of AMO nor in allowed_domains",
        ),
        ("AMO__ALLOWED_DOMAINS", ".com", "amo.allowed_domains: '.com': '.com' must be"),
        ("AMO__ALLOWED_DOMAINS", "https://a.example", "amo.allowed_domains: 'https://a.example': 'https"),
        ("SERVER__TRUSTED_PROXIES", "10.0.0.0/8 nginx", "server.trusted_proxies: "),
        ("SERVER__MAX_CONNECTIONS", "0", "server.max_connections: '0': input should be greater than 0"),
        ("SERVER__SOCKET_MODE", "rw-rw----", "server.socket_mode: 'rw-rw----': must be an octal mode in quotes"),
        ("SERVER__SOCKET_MODE", "4660", "server.socket_mode: '4660': must be an octal mode in quotes"),
        ("AMO__TIMEOUT", "60", "refresh.lease must be greater than amo.timeout"),
        ("AMO__TIMEOUT", "nan", "amo.timeout: 'nan': input should be"),
        ("AMO__REQUESTS_PER_SECOND", "0", "amo.requests_per_second: '0': input should be greater than 0"),
        ("APP__DEEP_LINK", "javascript:alert(1)", "app.deep_link: 'javascript:alert(1)': must be a URL"),
        ("APP__DEEP_LINK", "foryoure://a?b=c", "app.deep_link: 'foryoure://a?b=c': must be a URL such as"),
        ("APP__DEEP_LINK", "", "app.deep_link: '': must be a URL, or a list of different URLs"),
        ("APP__DEEP_LINK", "a:b c:d a:b", "app.deep_link: 'a:b c:d a:b': must be a URL, or a list of different URLs"),
        (
            "APP__DEEP_LINK",
            "a:b data:c",
            "app.deep_link: 'a:b data:c': 'data:c' must be a URL with the app's own scheme",
        ),
        *(
            ("APP__DEEP_LINK", link, f"app.deep_link: {link!r}: must have a host name and no port other than 443")
            for link in (
                "https://app.example.com:8443/x",
                "https:/x",
                "https:x",
                "https://localhost/x",
                "https://a.example.com.:443/x",
                "https://[::1]/x",
                "HTTPS://a.example.com:/x",
            )
        ),
        *(
            (
                "APP__DEEP_LINK",
                f"https://app.example.com{path}",
                f"app.deep_link: 'https://app.example.com{path}': must have a path",
            )
            for path in ("", "/", "/x/", "//x", "/x/../y", "/x*", "/$(lang)", "/{x}", "/%41", "/x;y")
        ),
        *(
            ("APP__DEEP_LINK", link, f"app.deep_link: {link!r} must have another host than amo.redirect_uri")
            for link in ("https://admin.example.com/x", "HTTPS://ADMIN.example.com:443/x")
        ),
        *(
            (
                "APP__DEEP_LINK",
                f"https://app.example.com{path}",
                f"app.deep_link: the path of 'https://app.example.com{path}' must not",
            )
            for path in ("/healthz", "/api/amo-crm", "/api/amo-crm/callback", "/.well-known", "/.well-known/x")
        ),
        (
            "APP__IOS_APP_IDS",
            IOS_APP,
            f"app.ios_app_ids: {IOS_APP!r}: has no effect without an https link in app.deep_link",
        ),
        (
            "APP__ANDROID_CERT_FINGERPRINTS",
            FINGERPRINT,
            f"app.android_cert_fingerprints: {FINGERPRINT!r}: has no effect without an https link in app.deep_link",
        ),
        ("APP__ANDROID_PACKAGE", "app", "app.android_package: 'app': string should match pattern"),
        ("APP__ANDROID_PACKAGE", "a.b;end", "app.android_package: 'a.b;end': string should match pattern"),
        ("APP__RETURN_MODE", "popup", "app.return_mode: 'popup': input should be 'redirect', 'page' or 'auto'"),
        ("REFRESH__AT", "1.5", "refresh.at: '1.5': input should be less than 1"),
        ("REFRESH__CONCURRENCY", "0", "refresh.concurrency: '0': input should be greater than 0"),
        ("WEBHOOK__URL", "http://a.example/hook", "webhook.url: 'http://a.example/hook': must begin with https://"),
        ("WEBHOOK__URL", "https://a.example/hook", "webhook.secret: required with webhook.url"),
        ("LOG__LEVEL", "loud", "log.level: 'loud': input should be 'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_load_settings_invalid_value_is_reported_with_key(key: str, value: str, expected: str) -> None:
    """The error has key, value and the expected form."""
    [problem] = _problems({f"AMO_CALLBACK_{key}": value})
    assert problem.startswith(expected)


def test_deep_link_is_string_or_list_with_default_first(tmp_path: Path) -> None:
    """One deep link is a string in TOML, several are a list; in the environment, spaces or commas separate them."""
    links = ("foryoure://a", "foryoure-dev://b", "https://app.example.com/amo-crm_1.~x")
    one = load_settings(_written(tmp_path, '[app]\ndeep_link = "foryoure://a"'), REQUIRED).app
    assert (one.deep_link, one.default_deep_link, one.https_links) == (links[:1], links[0], ())
    several = load_settings(_written(tmp_path, f"[app]\ndeep_link = {list(links)}"), REQUIRED).app
    assert (several.deep_link, several.default_deep_link, several.https_links) == (links, links[0], links[2:])
    assert load_settings(None, {**REQUIRED, "AMO_CALLBACK_APP__DEEP_LINK": ", ".join(links)}).app == several
    [problem] = _problems({}, _written(tmp_path, "[app]\ndeep_link = []"))
    assert problem == "app.deep_link: []: must be a URL, or a list of different URLs"


def test_known_deep_link_falls_back_to_default() -> None:
    """A deep link that is not configured, such as one stored before a change of the setting, is replaced."""
    app = App(deep_link=("a:b", "c:d"))
    wanted: list[Any] = [None, "", "c:d", "c:", "C:D", "a:b,c:d", 7, ["c:d"], {}]
    assert [app.known_deep_link(each) for each in wanted] == ["a:b", "a:b", "c:d", *["a:b"] * 6]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("IOS_APP_IDS", "com.example.app", "'com.example.app': string should match pattern"),
        ("IOS_APP_IDS", "ABCDE12345", "'ABCDE12345': string should match pattern"),
        ("IOS_APP_IDS", "abcde12345.com.example", "'abcde12345.com.example': string should match pattern"),
        ("IOS_APP_IDS", "ABCDE12345.com.*", "'ABCDE12345.com.*': string should match pattern"),
        ("ANDROID_CERT_FINGERPRINTS", FINGERPRINT, f"{FINGERPRINT!r}: has no effect without app.android_package"),
        *(
            ("ANDROID_CERT_FINGERPRINTS", value, f"{value!r}: {value.upper()!r} must be a SHA-256")
            for value in (FINGERPRINT[:-3], f"{FINGERPRINT}:AB", FINGERPRINT.replace(":", ""), f"{FINGERPRINT[:-2]}XY")
        ),
    ],
)  # fmt: skip
def test_app_link_setting_invalid_is_reported(key: str, value: str, expected: str) -> None:
    """The apps of an https link need complete ids, SHA-256 fingerprints, and a package for the fingerprints."""
    link = {"AMO_CALLBACK_APP__DEEP_LINK": "https://app.example.com/amo-crm"}
    [problem] = _problems({**link, f"AMO_CALLBACK_APP__{key}": value})
    assert re.match(rf"app\.{key.lower()}(?:\.0)?: {re.escape(expected)}", problem)


def test_android_fingerprints_are_converted_to_upper_case() -> None:
    """A fingerprint in lower case is accepted, because some tools print it so, and Android requires upper case."""
    app = App(
        deep_link=("https://app.example.com/x",),
        android_package="com.example.app",
        android_cert_fingerprints=(FINGERPRINT.lower(),),
    )
    assert app.android_cert_fingerprints == (FINGERPRINT,)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "STORAGE__ENCRYPTION_KEYS",
            "sekret-not-a-key",
            "storage.encryption_keys: line 1 is not a key; `amo-callback keygen`",
        ),
        ("STORAGE__ENCRYPTION_KEYS", f"{KEY}\nsekret!", "storage.encryption_keys: line 2 is not a key"),
        ("STORAGE__ENCRYPTION_KEYS", " ", "storage.encryption_keys: must contain at least one key"),
        (
            "WEBHOOK__SECRET",
            "whsec_sekret",
            "webhook.secret: line 1 must be whsec_ followed by the base64 encoding of 24 to 64 bytes",
        ),
        ("WEBHOOK__SECRET", f"{NEW}\nsekret" + "A" * 32, "webhook.secret: line 2 must be whsec_"),
        ("WEBHOOK__SECRET", f"{NEW}é", "webhook.secret: line 1 must be whsec_"),
        ("WEBHOOK__SECRET", "whsec_" + "A" * 28, "webhook.secret: line 1 must be whsec_"),
        ("WEBHOOK__SECRET", " ", "webhook.secret: must contain at least one secret"),
        ("WEBHOOK__SECRET", NEW, "webhook.secret: has no effect without webhook.url"),
        ("STORAGE__URL", "mysql://u:sekret@a/b", "storage.url: must begin with sqlite:/// and name a file"),
        ("STORAGE__URL", "postgresql://u:sekret@a", "storage.url: must name a database"),
        ("API__KEYS", "name:sekret", "api.keys: the key in line 1 is shorter than 32 characters"),
        ("AMO__CLIENT_SECRET", "", "amo.client_secret: value should have at least 1"),
    ],
)
def test_load_settings_invalid_secret_is_reported_without_value(key: str, value: str, expected: str) -> None:
    """No message contains a secret's value."""
    [problem] = _problems({f"AMO_CALLBACK_{key}": value})
    assert problem.startswith(expected)
    assert "sekret" not in problem


JWT_SECRET = "APP__JWT_SECRET=" + "sekret" * 6
JWKS_URL = "APP__JWKS_URL=https://a.example/keys"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((JWT_SECRET,), ['app.jwt_audience: required with app.jwt_secret or app.jwks_url; the "aud" of']),
        ((JWKS_URL,), ['app.jwt_audience: required with app.jwt_secret or app.jwks_url; the "aud" of']),
        (
            (JWT_SECRET, JWKS_URL, "APP__JWT_AUDIENCE=a"),
            ["app.jwks_url: 'https://a.example/keys': cannot be combined"],
        ),
        (("APP__JWT_AUDIENCE=a",), ["app.jwt_audience: 'a': has no effect without app.jwt_secret or app.jwks_url"]),
        (
            ("APP__JWT_ISSUER=a", "APP__JWT_USER_CLAIM=id"),
            ["app.jwt_issuer: 'a': has no effect without", "app.jwt_user_claim: 'id': has no effect without"],
        ),
        (("APP__JWT_SECRET=sekret", "APP__JWT_AUDIENCE=a"), ["app.jwt_secret: must have at least 32 bytes"]),
        (
            ('APP__JWT_SECRET={"kty":"RSA","n":"sekret","e":"AQAB"}', "APP__JWT_AUDIENCE=a"),
            ["app.jwt_secret: must be a shared secret, not a PEM, SSH or JWK key; for public keys"],
        ),
        (
            ("APP__JWKS_URL=http://a.example/keys", "APP__JWT_AUDIENCE=a"),
            ["app.jwks_url: 'http://a.example/keys': must begin with https://"],
        ),
        ((JWT_SECRET, "APP__JWT_AUDIENCE="), ["app.jwt_audience: '': string should have at least 1"]),
        ((JWT_SECRET, "APP__JWT_AUDIENCE=a", "APP__JWT_ISSUER="), ["app.jwt_issuer: '': string should have at"]),
        ((JWT_SECRET, "APP__JWT_AUDIENCE=a", "APP__JWT_USER_CLAIM="), ["app.jwt_user_claim: '': string should have"]),
    ],
)
def test_load_settings_incomplete_jwt_settings_are_reported(given: tuple[str, ...], expected: list[str]) -> None:
    """Missing, conflicting, invalid and unused JWT settings are reported, without the secret."""
    environ = {f"AMO_CALLBACK_{name}": value for name, _, value in (setting.partition("=") for setting in given)}
    problems = _problems(environ)
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.startswith(start)
        assert "sekret" not in problem


@pytest.mark.parametrize("key", [JWT_SECRET, JWKS_URL, "APP__JWKS_URL=http://127.0.0.1:9100/keys"])
def test_load_settings_accepts_jwt_secret_or_key_set(key: str) -> None:
    """Either kind of key allows the other JWT settings, and no repr shows the secret."""
    name, _, value = key.partition("=")
    more = {"APP__JWT_AUDIENCE": "a", "APP__JWT_ISSUER": "b", "APP__JWT_USER_CLAIM": "c", name: value}
    settings = load_settings(None, {**REQUIRED, **{f"AMO_CALLBACK_{key}": value for key, value in more.items()}})
    assert (settings.app.jwt_audience, settings.app.jwt_issuer, settings.app.jwt_user_claim) == ("a", "b", "c")
    assert "sekret" not in repr(settings)


def test_load_settings_unreadable_file_is_reported_without_content(tmp_path: Path) -> None:
    """The error of a missing, invalid or binary file quotes nothing, because the line may hold a secret."""
    assert _problems({}, tmp_path / "none.toml") == [f"cannot read {tmp_path / 'none.toml'}: No such file or directory"]
    path = _written(tmp_path, '[amo]\nclient_secret = "sekret\n')
    [problem] = _problems({}, path)
    assert problem == f"{path}: invalid TOML (at line 2, column 24)"
    path.write_bytes(b"\xff")
    assert _problems({}, path) == [f"{path}: not valid UTF-8"]
    path = _written(tmp_path, f"[amo]\nclient_id = {'9' * 5000}")  # more digits than Python reads
    assert _problems({}, path) == [f"{path}: a number has too many digits"]


def test_load_settings_unreadable_secrets_folder_is_reported(tmp_path: Path) -> None:
    """A missing folder, or a secret that is not text, is named."""
    [problem] = _problems({"CREDENTIALS_DIRECTORY": str(tmp_path / "none")})
    assert problem == f"cannot read the secrets in {tmp_path / 'none'}: No such file or directory"
    (tmp_path / "amo.client_secret").write_bytes(b"\xff\xfe")
    [problem] = _problems({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert problem.endswith("amo.client_secret: not valid UTF-8")


def test_settings_repr_shows_no_secret() -> None:
    """Settings may be logged by accident."""
    more = {"AMO_CALLBACK_API__KEYS": "a:" + "k" * 40, "AMO_CALLBACK_STORAGE__URL": "postgresql://u:sekret@h/d"}
    shown = repr(load_settings(None, {**REQUIRED, **more}))
    assert "sekret" not in shown
    assert "the-client-secret" not in shown
    assert KEY not in shown
    assert "k" * 40 not in shown


@pytest.mark.parametrize(
    ("url", "rescue", "state", "expected"),
    [
        ("sqlite:///a.db", None, None, "/etc/app/rescue"),
        ("sqlite:////data/a.db", None, None, "/data/rescue"),
        ("sqlite:////data/a.db", None, "/var/lib/app", "/var/lib/app/rescue"),
        ("sqlite:///a.db", "kept", "/var/lib/app", "/var/lib/app/kept"),
        ("sqlite:///a.db", "/mnt/kept", None, "/mnt/kept"),
        ("postgresql://h/d", None, None, "/etc/app/rescue"),
        ("postgresql://h/d", None, "/var/lib/app", "/var/lib/app/rescue"),
        ("postgresql://h/d", "kept", "/var/lib/app", "/var/lib/app/kept"),
    ],
)
def test_rescue_folder_is_setting_state_directory_or_beside_database(
    url: str, rescue: str | None, state: str | None, expected: str
) -> None:
    """The folder is as set, otherwise in the state directory, otherwise beside the database or configuration."""
    environ = {"AMO_CALLBACK_STORAGE__URL": url}
    if rescue:
        environ["AMO_CALLBACK_STORAGE__RESCUE"] = rescue
    if state:
        environ["STATE_DIRECTORY"] = state
    settings = load_settings(None, {**REQUIRED, **environ})
    assert rescue_folder(settings, Path("/etc/app/config.toml"), environ) == Path(expected)
