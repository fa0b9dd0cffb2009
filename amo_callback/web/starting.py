"""What is told where a grant is started, on either door."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from amo_callback.clock import rfc3339
from amo_callback.connect.proof import CHALLENGE
from amo_callback.errors import InvalidRequest
from amo_callback.grant import MAX_STATE, STATE_PREFIX, AuthorizationRequest, is_issued
from amo_callback.web.operation import Time

if TYPE_CHECKING:
    from amo_callback.connect.authorization import Started

_TOGETHER = ("code_challenge", "code_challenge_method")
_SHOWN = {"pattern": f"^(?!{STATE_PREFIX.replace('.', '[.]')})[^\\ufffd]*$"}
"""What `read_request` asks of a state, as far as a pattern can say it: it counts bytes, which none can."""

_State = Annotated[str, Field(max_length=MAX_STATE, json_schema_extra=_SHOWN)]
_Challenge = Annotated[str, Field(pattern=CHALLENGE)]


class StartBody(BaseModel):
    """What the app may send; what else it sends is ignored."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        json_schema_extra={
            "anyOf": [
                {"required": [*_TOGETHER], "properties": {name: {"type": "string"} for name in _TOGETHER}},
                {"properties": {name: {"type": "null"} for name in _TOGETHER}},
            ]
        },
    )

    state: Annotated[_State | None, Field(repr=False)] = None
    """Any text of at most 2048 bytes of UTF-8: it comes back as it is."""
    code_challenge: Annotated[_Challenge | None, Field(repr=False)] = None
    """The SHA-256 of the verifier, 43 characters of base64url (RFC 7636)."""
    code_challenge_method: Literal["S256"] | None = None
    """There together with the challenge, or not at all."""


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
    if given.code_challenge is not None and given.code_challenge_method is None:
        raise InvalidRequest("code_challenge_method: S256, no other")
    return AuthorizationRequest(user=user, vouched=vouched, challenge=given.code_challenge, state=state or None)


@with_config(ConfigDict(use_attribute_docstrings=True))
class StartedShape(TypedDict):
    """A grant that was started."""

    authorize_url: str
    """Where the person allows access, in a browser."""
    state: str
    """What the deep link will carry: the state that was sent, else an issued one."""
    expires_at: Time


STARTED: StartedShape = {
    "authorize_url": "https://www.amocrm.ru/oauth?client_id=6ca5af66-2b5a-4a4f-9b53-5d9a6c0b6f5e&state=ac1.…&mode=popup",
    "state": "ac1.AbCdEfGhIjKlMnOpQrStUv",
    "expires_at": "2026-11-24T12:30:00Z",
}
"""An example."""


def started_shape(started: Started) -> StartedShape:
    """Return a started grant as JSON tells it."""
    return {
        "authorize_url": started.authorize_url,
        "state": started.state.decode(),
        "expires_at": rfc3339(started.expires_at),
    }
