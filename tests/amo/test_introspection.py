"""Introspection: requests that spend nothing, and the meaning of their answers."""

import dataclasses
import json

import pytest

from amo_callback.amo.introspection import (
    ACCESS_TOKEN_DEAD,
    REFRESH_TOKEN_REFUSED,
    access_token_request,
    read_introspection,
    refresh_token_request,
)
from amo_callback.amo.protocol import AmoResponse, Integration
from amo_callback.errors import HostNotAllowed
from amo_callback.model import IntrospectionResult, TokenState

INTEGRATION = Integration(client_id="c619", client_secret="the-secret", redirect_uri="https://a.example/cb")
PROBLEM = json.dumps({"title": "Unauthorized", "status": 401}).encode()


def _read(status: int, body: bytes, *, refusals: frozenset[int] = REFRESH_TOKEN_REFUSED) -> IntrospectionResult:
    return read_introspection(AmoResponse(status=status, body=body), account_id="7", refusals=refusals)


def test_introspection_requests_carry_one_token_to_amo_host() -> None:
    """A refresh token is sent to its own API host, an access token to AMO's shared host."""
    refresh = refresh_token_request(INTEGRATION, refresh_token="the-token", api_domain="api-b.amocrm.ru")
    access = access_token_request(INTEGRATION, access_token="the-token", domain="a.kommo.com")
    assert refresh is not None
    assert access is not None
    assert refresh.url == "https://api-b.amocrm.ru/oauth2/account/current/subdomain"
    assert access.url == "https://www.kommo.com/oauth2/account/subdomain"
    assert (refresh.headers["X-Refresh-Token"], refresh.body) == ("the-token", None)
    assert (access.headers["Authorization"], access.body) == ("Bearer the-token", None)


@pytest.mark.parametrize("host", ["evil.com", "api-b.amocrm.ru@evil.com", "\ud800.amocrm.ru", "API-B.amocrm.ru"])
def test_introspection_disallowed_host_gets_no_request(host: str) -> None:
    """No request carries a token to a host that is not allowed."""
    with pytest.raises(HostNotAllowed):
        refresh_token_request(INTEGRATION, refresh_token="t", api_domain=host)
    with pytest.raises(HostNotAllowed):
        access_token_request(INTEGRATION, access_token="t", domain=host)


@pytest.mark.parametrize("host", [None, ""])
def test_introspection_without_api_host_is_impossible(host: str | None) -> None:
    """Access tokens issued before 2024-08-21 do not contain the API host, so there is no request."""
    assert refresh_token_request(INTEGRATION, refresh_token="t", api_domain=host) is None


def test_introspection_without_shared_host_is_impossible() -> None:
    """A host allowed by the operator may have no shared host, so there is no request."""
    integration = dataclasses.replace(INTEGRATION, allowed_domains=["crm.example.com"])
    assert access_token_request(integration, access_token="t", domain="crm.example.com") is None


@pytest.mark.parametrize("status", [400, 401, 404])
def test_introspection_json_problem_rejects_token(status: int) -> None:
    """These statuses reject a refresh token; only 401 rejects an access token."""
    assert _read(status, PROBLEM).state is TokenState.REJECTED
    expected = TokenState.REJECTED if status == 401 else TokenState.UNKNOWN
    assert _read(status, PROBLEM, refusals=ACCESS_TOKEN_DEAD).state is expected


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b"<h1>401 Authorization Required</h1>"),
        (404, b""),
        (403, PROBLEM),
        (429, b""),
        (500, PROBLEM),
        (200, b"<h1>Maintenance</h1>"),
        (200, b'{"id": 8, "domain": "a.amocrm.ru"}'),
        (200, b'{"domain": "a.amocrm.ru"}'),
        (200, b'{"id": true, "domain": "a.amocrm.ru"}'),
    ],
)
def test_introspection_other_answer_leaves_token_unknown(status: int, body: bytes) -> None:
    """A proxy's page, a server error or another account's answer neither accepts nor rejects the token."""
    assert _read(status, body) == IntrospectionResult(state=TokenState.UNKNOWN)


@pytest.mark.parametrize(
    ("domain", "host"), [("A.amocrm.ru", "a.amocrm.ru"), ("evil.com", None), ("\ud800.amocrm.ru", None), (5, None)]
)
def test_introspection_valid_token_returns_allowed_host(domain: object, host: str | None) -> None:
    """The account's host is returned only if secrets may be sent to it."""
    body = json.dumps({"id": 7, "domain": domain}).encode()
    assert _read(200, body) == IntrospectionResult(state=TokenState.VALID, domain=host)
