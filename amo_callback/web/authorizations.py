"""The routes that start an authorization request: `POST /authorizations` of both APIs, and `GET {base}/connect`."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from aiohttp import web
from pydantic import ConfigDict, Field

from amo_callback.errors import InvalidRequest, RetryableError, TooManyAttempts
from amo_callback.grant import MAX_STATE, STATE_PREFIX, AuthorizationRequest, CallbackParams, WayBack, is_our_state
from amo_callback.identity import MAX_USER, Scope
from amo_callback.oauth.ownership import CHALLENGE
from amo_callback.web.parsing import Body, invalid, read_known_query, schema_of_texts
from amo_callback.web.private.rights import check_owner
from amo_callback.web.public.api import ERROR_PAGES, PREFETCHED, TO_APP, Success, head_route, is_prefetch
from amo_callback.web.public.return_response import choose, failed, known_error, redirect
from amo_callback.web.route import Jwt, Reply, Route, Time, shape, shaped

if TYPE_CHECKING:
    from amo_callback.config.settings import App
    from amo_callback.web.route import Call

_PKCE = ("code_challenge", "code_challenge_method")
_STATE_SCHEMA = {"pattern": f"^(?!{STATE_PREFIX.replace('.', '[.]')})[^\\ufffd]*$"}
"""The checks of `to_request` for a state, except its size in bytes, which a pattern cannot express."""

_State = Annotated[str, Field(max_length=MAX_STATE, json_schema_extra=_STATE_SCHEMA)]
_Challenge = Annotated[str, Field(pattern=CHALLENGE)]


class AuthorizationBody(Body):
    """The parameters of an authorization request."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={
            # If one of them is a text, both are.
            "if": {"anyOf": [schema_of_texts(name) for name in _PKCE]},
            "then": schema_of_texts(*_PKCE),
        },
    )

    wanted: ClassVar[str] = (
        'The body must be a JSON object with the optional strings "state", "code_challenge" and "deep_link"; '
        '"code_challenge" requires "code_challenge_method": "S256".'
    )
    names_field: ClassVar[bool] = False
    seconds: ClassVar[float] = 4.0

    state: Annotated[_State | None, Field(repr=False)] = None
    """The app's state, returned unchanged: at most 2048 bytes of UTF-8, without U+FFFD and the prefix `ac1.`."""
    code_challenge: Annotated[_Challenge | None, Field(repr=False)] = None
    """The PKCE challenge: the SHA-256 hash of the verifier, as 43 characters of base64url (RFC 7636)."""
    code_challenge_method: Literal["S256"] | None = None
    """Required with `code_challenge`, and allowed only with it."""
    deep_link: str | None = None
    """One of the deep links in `app.deep_link`, with which the user returns to the app; by default, the first one."""

    def to_request(
        self, app: App, *, user: str | None = None, asserted_by_backend: bool = False
    ) -> AuthorizationRequest:
        """Return the authorization request; raises `InvalidRequest`, whose message names the field.

        The challenge method must be S256, because `plain` would reveal the verifier to anyone who sees the link.
        """
        state = (self.state or "").encode(errors="surrogatepass")
        if len(state) > MAX_STATE or "\ufffd" in state.decode(errors="replace"):
            raise InvalidRequest(f"state: must be at most {MAX_STATE} bytes of UTF-8, without U+FFFD")
        if is_our_state(state):
            raise InvalidRequest(f'state: must not begin with "{STATE_PREFIX}", which is reserved for this service')
        if self.code_challenge is None and self.code_challenge_method is not None:
            raise InvalidRequest("code_challenge: required with code_challenge_method")
        if self.code_challenge is not None and self.code_challenge_method is None:
            raise InvalidRequest("code_challenge_method: must be S256")
        if self.deep_link is not None and self.deep_link not in app.deep_link:
            raise InvalidRequest("deep_link: must be one of the deep links in app.deep_link")
        return AuthorizationRequest(
            user=user,
            asserted_by_backend=asserted_by_backend,
            challenge=self.code_challenge,
            state=state or None,
            deep_link=self.deep_link,
        )


@shape
class AuthorizationStarted:
    """A started authorization request."""

    authorize_url: str = field(repr=False)
    """The URL of AMO's consent page, to be opened in a browser."""
    state: str = field(repr=False)
    """The state that the deep link will contain: the request's state if there is one, otherwise an issued state."""
    expires_at: Time


class OwnedAuthorizationBody(AuthorizationBody):
    """The parameters of an authorization request for one of the backend's users."""

    wanted: ClassVar[str] = (
        'the body must be {"owner": "…"} with the optional strings "state", "code_challenge" and "deep_link"; '
        '"code_challenge" requires "code_challenge_method": "S256"'
    )
    names_field: ClassVar[bool] = True

    owner: Annotated[str, Field(min_length=1, max_length=MAX_USER)] | int


async def start_authorization(call: Call[None, AuthorizationBody]) -> Success[AuthorizationStarted]:
    """Start an authorization request for an app user, and return the URL to open in a browser."""
    request = call.body.to_request(call.services.settings.app, user=call.caller)
    started = await call.services.oauth.authorizations.start(request)
    return Success(
        data=shaped(AuthorizationStarted, started, state=started.state.decode()),
        message="Open authorize_url in a browser.",
    )


async def start_owned_authorization(call: Call[None, OwnedAuthorizationBody]) -> AuthorizationStarted:
    """Start an authorization request for `owner`, who becomes an owner of the connection when the flow is complete."""
    owner = str(call.body.owner)
    if len(owner) > MAX_USER or not owner.isprintable():
        raise invalid("owner", f"must be at most {MAX_USER} printable characters")
    check_owner(call, owner)
    request = call.body.to_request(call.services.settings.app, user=owner, asserted_by_backend=True)
    started = await call.services.oauth.authorizations.start(request)
    call.services.log.info("grant.started", key=call.caller, owner=owner)
    return shaped(AuthorizationStarted, started, state=started.state.decode())


async def connect(call: Call[None, None]) -> web.Response:
    """Start an authorization request for a user who follows a plain link, and redirect to AMO's consent page."""
    if is_prefetch(call.request):
        return web.Response(status=204)
    back = WayBack()
    try:
        request = read_known_query(call.request, AuthorizationBody).to_request(call.services.settings.app)
        back = WayBack(deep_link=request.deep_link)
        started = await call.services.oauth.authorizations.start(request, address=call.address)
    except Exception as error:  # noqa: BLE001 -- a bug is logged, and the user still gets a page
        kind, known = choose(call, CallbackParams()), known_error(call, error)
        return failed(call, kind, error=known.deep_link_error, back=back, fields=known.fields)
    return redirect(303, started.authorize_url)


PRIVATE_ROUTES = (
    Route(
        "POST",
        "/authorizations",
        start_owned_authorization,
        Scope.TOKEN,
        body=OwnedAuthorizationBody,
        answer=AuthorizationStarted,
        errors=(RetryableError,),
        obeys_limits=True,
    ),
)
PUBLIC_ROUTES = (
    Route(
        "POST",
        "/authorizations",
        start_authorization,
        Jwt.REQUIRED,
        body=AuthorizationBody,
        answer=Success[AuthorizationStarted],
        errors=(TooManyAttempts, RetryableError),
    ),
    Route(
        "GET",
        "/connect",
        connect,
        unparsed_query=AuthorizationBody,
        replies={
            204: PREFETCHED,
            302: TO_APP,
            303: Reply(about="Redirects to AMO's consent page.", headers=("Location",)),
            **ERROR_PAGES,
        },
    ),
    head_route("/connect"),  # HEAD must not issue a state
)
