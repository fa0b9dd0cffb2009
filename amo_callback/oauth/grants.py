"""Stored grants with their encrypted secrets, and the rules for accepting grants."""

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
    from amo_callback.grant import AuthorizationRequest, CodePresentation, IssuedState


CODE_LIFETIME = timedelta(minutes=20)
"""The lifetime of AMO's authorization codes, and of grants in the store."""


def _new_secret() -> str:
    """Return 128 random bits in URL-safe base64, which needs no escaping in links."""
    return randomness.token_urlsafe(16)


@dataclass(frozen=True, kw_only=True, slots=True)
class GrantRules:
    """Rules for accepting grants, and the time limit of waiting requests."""

    issued_only: bool = False
    """Whether only states issued by this service are accepted."""
    allowed_accounts: Collection[str] = ()
    default_domain: str | None = None
    wait_limit: float = 8.0
    """Seconds after which the user sees a waiting page while the exchange continues."""
    new_secret: Callable[[], str] = _new_secret


class GrantRecords:
    """Creates grants, and decrypts stored ones."""

    def __init__(self, core: Core, rules: GrantRules) -> None:
        self._cipher = core.cipher
        self._clock = core.clock
        self._lease = timedelta(seconds=core.rules.lease)
        self._new_secret = rules.new_secret

    def begin(
        self, presented: CodePresentation, *, domain: str, request: AuthorizationRequest | None
    ) -> tuple[Grant, GrantSecrets]:
        """Return a new grant and its secrets, which include a new return handle and a new ticket."""
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
            expires_at=now + CODE_LIFETIME,
        )
        return grant, secrets

    def secrets_of(self, grant: Grant) -> GrantSecrets:
        """Decrypt the secrets of a grant; raises `DecryptionFailed`, also if the secrets were erased."""
        return self._cipher.open_grant(grant.sealed or b"", code_hash=grant.code_hash)

    def request_of(self, issued: IssuedState) -> AuthorizationRequest:
        """Decrypt the authorization request of a state without a code; raises `DecryptionFailed`."""
        return self._cipher.open_request(issued.sealed or b"", state_hash=issued.state_hash)

    def to_result(self, grant: Grant, secrets: GrantSecrets | None = None) -> GrantResult:
        """Return the current result of a grant; the secrets are decrypted unless they are passed in."""
        secrets = secrets or self.secrets_of(grant)
        status, error = grant.status, grant.error
        abandoned = status is GrantStatus.EXCHANGING and grant.lease_left is not None and grant.lease_left <= 0
        if abandoned:
            status, error = GrantStatus.FAILED, UnknownOutcome.deep_link_error
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
            abandoned=abandoned,
        )
