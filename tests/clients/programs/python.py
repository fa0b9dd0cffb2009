"""Call the private API with the client that OpenAPI Generator's `python` generated, and print the results as JSON."""

import json
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from generated import (  # type: ignore[import-not-found]  # reason: the test generates it
    ApiClient,
    ApiException,
    Configuration,
    ImportBody,
    ImportEntry,
    ImportEntryAccountId,
    ImportEntryExpiresAt,
    ImportEntryUserId,
    OwnedAuthorizationBody,
    OwnedAuthorizationBodyOwner,
    PrivateApi,
    Problem,
    RefreshBody,
)


def problem_of(call: Callable[..., object], *arguments: object) -> tuple[int, Any]:
    """Return the status and the problem details of a call that fails."""
    try:
        call(*arguments)
    except ApiException as error:
        if isinstance(error.data, Problem):
            return error.status, error.data
        raise
    raise RuntimeError("the call succeeded")


api = PrivateApi(ApiClient(Configuration(host=os.environ["AMO_CALLBACK"], access_token=os.environ["API_KEY"])))
page = api.list_connections(limit=10)
connection = page.items[0].id
token = api.take_token(connection)
refreshed = api.refresh_token(connection, RefreshBody(rejected_access_token=token.access_token))
authorization = api.take_authorization_with_http_info(connection)
issued = api.issue_token("refresh_token", connection, client_secret=os.environ["API_KEY"])
unknown_status, unknown = problem_of(api.take_token, "unknown")
entry = ImportEntry(
    access_token="opaque",
    domain="second.amocrm.ru",
    account_id=ImportEntryAccountId("77"),
    user_id=ImportEntryUserId(5),
    expires_at=ImportEntryExpiresAt(os.environ["EXPIRES_AT"]),
)
imported = api.import_connections(ImportBody(connections=[entry]))
reauth_status, reauth = problem_of(api.refresh_token, "account:77", RefreshBody())
started = api.start_owned_authorization(OwnedAuthorizationBody(owner=OwnedAuthorizationBodyOwner("42")))
print(
    json.dumps(
        {
            "listed": [one.id for one in page.items],
            "token": token.access_token,
            "lifetime": (token.expires_at - token.issued_at) / timedelta(seconds=1),
            "refreshed": refreshed.access_token,
            "authorization": [authorization.status_code, authorization.headers["X-Amo-Authorization"]],
            "issued": issued.access_token,
            "unknown": [unknown_status, unknown.status, unknown.code],
            "imported": imported.new,
            "needs_reauth": [reauth_status, reauth.code, reauth.reason],
            "authorize_url": started.authorize_url,
        }
    )
)
