"""Look-ups: what is asked of a token without spending it, and which answers tell anything."""

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


def test_the_questions_go_to_hosts_of_amos_and_carry_one_token_each() -> None:
    """A refresh token is asked about at its own API host, an access token at the vendor's front door."""
    refresh = refresh_token_request(INTEGRATION, refresh_token="the-token", api_domain="api-b.amocrm.ru")
    access = access_token_request(INTEGRATION, access_token="the-token", domain="a.kommo.com")
    assert refresh is not None
    assert access is not None
    assert refresh.url == "https://api-b.amocrm.ru/oauth2/account/current/subdomain"
    assert access.url == "https://www.kommo.com/oauth2/account/subdomain"
    assert (refresh.headers["X-Refresh-Token"], refresh.body) == ("the-token", None)
    assert (access.headers["Authorization"], access.body) == ("Bearer the-token", None)


@pytest.mark.parametrize("host", ["evil.com", "api-b.amocrm.ru@evil.com", "\ud800.amocrm.ru", "API-B.amocrm.ru"])
def test_nobody_else_is_asked(host: str) -> None:
    """There is no request that carries a token to a host that is not allowed."""
    with pytest.raises(HostNotAllowed):
        refresh_token_request(INTEGRATION, refresh_token="t", api_domain=host)
    with pytest.raises(HostNotAllowed):
        access_token_request(INTEGRATION, access_token="t", domain=host)


@pytest.mark.parametrize("host", [None, ""])
def test_without_an_api_host_there_is_no_question(host: str | None) -> None:
    """Access tokens from before 2024-08-21 do not tell it."""
    assert refresh_token_request(INTEGRATION, refresh_token="t", api_domain=host) is None


def test_without_a_front_door_there_is_no_question() -> None:
    """A host that the operator has allowed need not have one."""
    integration = dataclasses.replace(INTEGRATION, allowed_domains=["crm.example.com"])
    assert access_token_request(integration, access_token="t", domain="crm.example.com") is None


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_problem_in_json_is_amos_refusal(status: int) -> None:
    """These statuses refuse a refresh token; of an access token only 401 does."""
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
def test_whatever_else_is_answered_tells_nothing(status: int, body: bytes) -> None:
    """A proxy's page, an illness, another account's whereabouts: the token is neither good nor refused."""
    assert _read(status, body) == IntrospectionResult(state=TokenState.UNKNOWN)


@pytest.mark.parametrize(
    ("domain", "host"), [("A.amocrm.ru", "a.amocrm.ru"), ("evil.com", None), ("\ud800.amocrm.ru", None), (5, None)]
)
def test_a_good_token_tells_where_its_account_lives(domain: object, host: str | None) -> None:
    """The host is kept only where our secrets may go there."""
    body = json.dumps({"id": 7, "domain": domain}).encode()
    assert _read(200, body) == IntrospectionResult(state=TokenState.VALID, domain=host)
