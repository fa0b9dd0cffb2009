"""Grants as they are stored, their secrets sealed, their results, and the rules that they follow."""

from __future__ import annotations

import secrets as randomness
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from amo_callback.errors import UnknownOutcome
from amo_callback.grant import Grant, GrantResult, GrantSecrets, GrantStatus, support_code
from amo_callback.model import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from amo_callback.core import Core
    from amo_callback.grant import AuthorizationRequest, CodePresentation


CODE_LIFE = timedelta(minutes=20)
"""How long AMO's codes live, and our memory of them."""


def _new_secret() -> str:
    """Return 128 random bits, as `[A-Za-z0-9_-]`: what links carry unharmed."""
    return randomness.token_urlsafe(16)


@dataclass(frozen=True, kw_only=True, slots=True)
class GrantRules:
    """Which grants are accepted, and how long a request waits for one."""

    issued_only: bool = False
    """Whether only states that were issued here are taken."""
    allowed_accounts: Collection[str] = ()
    default_domain: str | None = None
    patience: float = 8.0
    """Seconds after which a person is told that it takes longer; the exchange goes on."""
    new_secret: Callable[[], str] = _new_secret


class GrantRecords:
    """Creates grants, and reads them."""

    def __init__(self, core: Core, rules: GrantRules) -> None:
        self._cipher = core.cipher
        self._clock = core.clock
        self._lease = timedelta(seconds=core.rules.lease)
        self._new_secret = rules.new_secret

    def begin(
        self, presented: CodePresentation, *, domain: str, request: AuthorizationRequest | None
    ) -> tuple[Grant, GrantSecrets]:
        """Return the grant as it begins, with a handle and a ticket of its own, and what it keeps sealed."""
        secrets = GrantSecrets(
            handle=self._new_secret(),
            code=presented.code,
            state=presented.state,
            domain=domain,
            ticket=self._new_secret(),
            request=request,
        )
        now = self._clock.now()
        grant = Grant(
            code_hash=presented.code_hash,
            handle_hash=fingerprint(secrets.handle),
            ticket_hash=fingerprint(secrets.ticket),
            sealed=self._cipher.seal_grant(secrets, code_hash=presented.code_hash),
            status=GrantStatus.EXCHANGING,
            attempt=uuid.uuid4().hex,
            lease_until=now + self._lease,
            expires_at=now + CODE_LIFE,
        )
        return grant, secrets

    def secrets_of(self, grant: Grant) -> GrantSecrets:
        """Return what a grant keeps sealed; raises `DecryptionFailed`, also once that was erased."""
        return self._cipher.open_grant(grant.sealed or b"", code_hash=grant.code_hash)

    def to_result(self, grant: Grant, secrets: GrantSecrets | None = None) -> GrantResult:
        """Return a grant's result so far; its `secrets` are opened where they are not given."""
        secrets = secrets or self.secrets_of(grant)
        status, error = grant.status, grant.error
        if status is GrantStatus.EXCHANGING and grant.lease_left is not None and grant.lease_left <= 0:
            status, error = GrantStatus.FAILED, UnknownOutcome.deep_link_error  # the process that tried has died
        return GrantResult(
            status=status,
            error=error,
            code=secrets.code,
            state=secrets.state,
            handle=secrets.handle,
            ticket=secrets.ticket,
            request=secrets.request,
            domain=secrets.domain,
            support=support_code(grant.code_hash),
            connection_id=grant.connection_id,
            grant_no=grant.no,
        )
