"""The mobile app of one user, as a client of the service."""

import base64
import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import jwt

from tests.service import BASE, HOST, Answer, Running

SECRET = "jwt-secret-0123456789-0123456789-0123456789"
AUDIENCE = "amo-callback"
WITH_USERS = {"APP__JWT_SECRET": SECRET, "APP__JWT_AUDIENCE": AUDIENCE}
"""JWT settings for the app's users."""


def jwt_of(user: str, **more: Any) -> str:
    claims = {"sub": user, "aud": AUDIENCE, "exp": datetime.now(UTC) + timedelta(days=1), **more}
    return jwt.encode(claims, SECRET, algorithm="HS256")


def bearer(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {jwt_of(user)}"}


def challenge_of(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def of(link: str) -> dict[str, str]:
    """Return a link's query parameters."""
    return {name: values[0] for name, values in parse_qs(urlsplit(link).query, keep_blank_values=True).items()}


class Phone:
    """An instance of the app, with its user and its PKCE verifier."""

    def __init__(self, app: Running, user: str) -> None:
        self.app, self.user = app, user
        self.verifier = secrets.token_urlsafe(32)

    async def start(self, *, challenged: bool = True, **more: str) -> dict[str, str]:
        """Start an authorization request and return the response's data."""
        challenge = {"code_challenge": challenge_of(self.verifier), "code_challenge_method": "S256"}
        answer = await self.app.public(
            f"{BASE}/authorizations",
            method="POST",
            json={**(challenge if challenged else {}), **more},
            headers=bearer(self.user),
        )
        assert answer.status == 200, answer.text
        data: dict[str, str] = answer.json()["data"]
        return data

    async def connect(self, **more: Any) -> str:
        """Connect by an authorization request of this phone and return the deep link's code."""
        return of((await allow(self.app, (await self.start(**more))["authorize_url"])).location)["code"]

    async def exchange(self, code: str, *, verified: bool = True, signed: bool = True, **more: str) -> Answer:
        """Present the deep link's code to `exchange-code`."""
        verifier = {"code_verifier": self.verifier} if verified else {}
        return await self.app.public(
            f"{BASE}/exchange-code",
            method="POST",
            json={"code": code, **verifier, **more},
            headers=bearer(self.user) if signed else {},
        )

    async def status(self) -> dict[str, Any]:
        data: dict[str, Any] = (await self.app.public(f"{BASE}/status", headers=bearer(self.user))).json()["data"]
        return data

    async def is_connected(self) -> bool:
        return bool((await self.status())["connected"])


async def allow(app: Running, authorize_url: str, *, code: str | None = None, html: bool = False) -> Answer:
    """Follow AMO's redirect after the account's user has allowed access."""
    state = of(authorize_url)["state"]
    query = f"code={code or app.amo.code()}&state={quote(state, safe='')}&referer={HOST}"
    return await app.callback(query, html=html)


async def owners(app: Running) -> list[str]:
    """Return the owners of the account's connection."""
    [connection] = await app.service.services.store.connections_of(str(app.amo.account.id))
    return list((await app.service.services.store.owners_of([connection.id]))[connection.id])
