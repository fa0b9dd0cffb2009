"""What is told where a grant is started, on either door."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from amo_callback.clock import rfc3339
from amo_callback.connect.proof import is_challenge
from amo_callback.errors import InvalidRequest
from amo_callback.grant import MAX_STATE, AuthorizationRequest, is_issued

if TYPE_CHECKING:
    from amo_callback.connect.authorization import Started

_Text = Annotated[str, Field(max_length=MAX_STATE)]


class StartBody(BaseModel):
    """What the app may send; what else it sends is ignored."""

    model_config = ConfigDict(frozen=True, strict=True, hide_input_in_errors=True)

    state: _Text | None = None
    code_challenge: _Text | None = None
    code_challenge_method: _Text | None = None


def read_request(given: StartBody, *, user: str | None = None, vouched: bool = False) -> AuthorizationRequest:
    """Return the request to start a grant; raises `InvalidRequest`, which names the field.

    The challenge is one of the method S256 (RFC 7636): the other one would show the verifier to whoever sees the link.
    """
    state = (given.state or "").encode(errors="surrogatepass")
    if len(state) > MAX_STATE or "\ufffd" in state.decode(errors="replace"):
        raise InvalidRequest(f"state: at most {MAX_STATE} bytes of UTF-8")
    if is_issued(state):
        raise InvalidRequest("state: this form is for the states that are issued here")
    if given.code_challenge is None and given.code_challenge_method is not None:
        raise InvalidRequest("code_challenge: is missing, there is a code_challenge_method")
    if given.code_challenge is not None and not is_challenge(given.code_challenge):
        raise InvalidRequest("code_challenge: 43 characters of base64url, the SHA-256 of the verifier")
    if given.code_challenge is not None and given.code_challenge_method != "S256":
        raise InvalidRequest("code_challenge_method: S256, no other")
    return AuthorizationRequest(user=user, vouched=vouched, challenge=given.code_challenge, state=state or None)


def started_shape(started: Started) -> dict[str, object]:
    """Return a started grant as JSON tells it."""
    return {
        "authorize_url": started.authorize_url,
        "state": started.state.decode(),
        "expires_at": rfc3339(started.expires_at),
    }
