"""Who tells the app's users, as the configuration says."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from amo_callback.identity.users import UserRules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pydantic import SecretStr

    from amo_callback.clock import Clock
    from amo_callback.event import Observer
    from amo_callback.identity.users import Users


class JwtSettings(Protocol):
    """What `[app]` says of JWTs."""

    @property
    def jwt_secret(self) -> SecretStr | None:
        """The secret of HS256, or ..."""

    @property
    def jwks_url(self) -> str | None:
        """... where the keys of RS256 and ES256 are; not both."""

    @property
    def jwt_audience(self) -> str | None:
        """What `aud` has to name: required with either."""

    @property
    def jwt_issuer(self) -> str | None:
        """What `iss` has to be, where that matters."""

    @property
    def jwt_user_claim(self) -> str:
        """The claim that is the user's id."""


@asynccontextmanager
async def open_users(app: JwtSettings, *, clock: Clock, observer: Observer) -> AsyncIterator[Users | None]:
    """Open what tells the app's users; `None` where no JWT is configured."""
    if app.jwt_audience is None:
        yield None
        return
    rules = UserRules(audience=app.jwt_audience, issuer=app.jwt_issuer, user_claim=app.jwt_user_claim)
    if app.jwt_secret is not None:
        from amo_callback.identity.signatures import SharedSecret  # noqa: PLC0415 -- because few have JWTs

        yield SharedSecret(app.jwt_secret.get_secret_value(), rules=rules, clock=clock)
    elif app.jwks_url is not None:
        from amo_callback.identity.key_set import open_key_set  # noqa: PLC0415 -- likewise

        async with open_key_set(app.jwks_url, rules=rules, clock=clock, observer=observer) as key_set:
            yield key_set
    else:
        yield None
