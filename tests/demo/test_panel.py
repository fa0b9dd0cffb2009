"""The demo's panel: its content and its access control."""

import re

from amo_callback.demo.environment import DemoSecrets
from tests.demo.walkthrough import TOKEN_LIFE, Walkthrough


async def test_panel_snapshot_contains_no_token(show: Walkthrough) -> None:
    """The snapshot has the connection's lifetime and the lines after a number, and no token."""
    one = await show.connect()
    async with show.http.get(f"http://{show.addresses.panel}/snapshot") as response:
        result = await response.json()
    assert [seen["id"] for seen in result["connections"]] == [one.id]
    assert 0 < result["connections"][0]["left"] <= TOKEN_LIFE
    assert result["not_ready"] == []
    assert [line["who"] for line in result["lines"]] == ["amoCRM", "service"]
    assert not re.search("eyJ|def502", str(result))
    last = result["lines"][-1]["number"]
    async with show.http.get(f"http://{show.addresses.panel}/snapshot?after={last}") as response:
        assert (await response.json())["lines"] == []


async def test_panel_names_next_commands(show: Walkthrough) -> None:
    """The page ends with the commands to continue with."""
    html = await show.page(f"http://{show.addresses.panel}/")
    for command in ("amo-callback init", "amo-callback check", "amo-callback serve", "amo-callback systemd install"):
        assert command in html


async def test_panel_serves_listed_files_only(show: Walkthrough) -> None:
    """A file that is not listed is not found."""
    for name in ("panel.html", "phone.html", "..%2Fenvironment.py"):
        async with show.http.get(f"http://{show.addresses.panel}/static/{name}") as response:
            assert response.status == 404


async def test_demo_repr_contains_no_secret(show: Walkthrough) -> None:
    """The repr of the secrets and of the running demo shows no secret."""
    made = DemoSecrets()
    for secret in (made.api_key, made.jwt_secret, made.encryption_key):
        assert secret not in repr(made)
    for command in (show.demo.curl, show.demo.backend):
        assert command not in repr(show.demo)
