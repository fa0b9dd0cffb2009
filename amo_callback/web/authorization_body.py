"""Starting an authorization: what both APIs take and answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from amo_callback.errors import InvalidRequest
from amo_callback.grant import MAX_STATE, STATE_PREFIX, AuthorizationRequest, is_issued
from amo_callback.oauth.ownership import CHALLENGE
from amo_callback.web.parsing import Body
from amo_callback.web.route import Time, shape

if TYPE_CHECKING:
    from amo_callback.oauth.authorization import StartedAuthorization

_PKCE = ("code_challenge", "code_challenge_method")
_STATE_SCHEMA = {"pattern": f"^(?!{STATE_PREFIX.replace('.', '[.]')})[^\\ufffd]*$"}
"""The rules of `to_request` for a state, but for the number of its bytes, which no pattern can count."""

_State = Annotated[str, Field(max_length=MAX_STATE, json_schema_extra=_STATE_SCHEMA)]
_Challenge = Annotated[str, Field(pattern=CHALLENGE)]


class AuthorizationBody(Body):
    """The app's part of an authorization request."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={
            "anyOf": [
                {"required": [*_PKCE], "properties": {name: {"type": "string"} for name in _PKCE}},
                {"properties": {name: {"type": "null"} for name in _PKCE}},
            ]
        },
    )

    wanted: ClassVar[str] = (
        'The body may hold "state" and, together, "code_challenge" and "code_challenge_method": "S256"; each is text.'
    )
    names_field: ClassVar[bool] = False
    seconds: ClassVar[float] = 4.0

    state: Annotated[_State | None, Field(repr=False)] = None
    """Any text of at most 2048 bytes of UTF-8: it comes back unchanged."""
    code_challenge: Annotated[_Challenge | None, Field(repr=False)] = None
    """The SHA-256 of the verifier, 43 characters of base64url (RFC 7636)."""
    code_challenge_method: Literal["S256"] | None = None
    """Present together with the challenge, or not at all."""

    def to_request(self, *, user: str | None = None, vouched: bool = False) -> AuthorizationRequest:
        """Return the authorization request; raises `InvalidRequest`, which names the field.

        The challenge method is S256: `plain` would show the verifier to everybody who sees the link.
        """
        state = (self.state or "").encode(errors="surrogatepass")
        if len(state) > MAX_STATE or "\ufffd" in state.decode(errors="replace"):
            raise InvalidRequest(f"state: at most {MAX_STATE} bytes of UTF-8")
        if is_issued(state):
            raise InvalidRequest("state: this form is for the states that are issued here")
        if self.code_challenge is None and self.code_challenge_method is not None:
            raise InvalidRequest("code_challenge: is missing, there is a code_challenge_method")
        if self.code_challenge is not None and self.code_challenge_method is None:
            raise InvalidRequest("code_challenge_method: S256, no other")
        return AuthorizationRequest(user=user, vouched=vouched, challenge=self.code_challenge, state=state or None)


@shape
class AuthorizationStarted:
    """An authorization request that was started."""

    authorize_url: str
    """AMO's consent page, to be opened in a browser."""
    state: str
    """The state that the deep link will carry: the one that was sent, else an issued one."""
    expires_at: Time


def show_started(started: StartedAuthorization) -> AuthorizationStarted:
    """Return a started authorization as both APIs show it."""
    return AuthorizationStarted(
        authorize_url=started.authorize_url, state=started.state.decode(), expires_at=started.expires_at
    )
