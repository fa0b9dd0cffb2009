"""Call the private API with the client that openapi-python-client generated, and print the results as JSON."""

import json
import os
from datetime import timedelta

from generated import AuthenticatedClient, Client  # type: ignore[import-not-found]  # reason: the test generates it
from generated.api.private import (  # type: ignore[import-not-found]  # reason: the same
    import_connections,
    issue_token,
    list_connections,
    refresh_token,
    start_owned_authorization,
    take_authorization,
    take_token,
)
from generated.models import (  # type: ignore[import-not-found]  # reason: the same
    ImportBody,
    ImportEntry,
    OwnedAuthorizationBody,
    Problem,
    RefreshBody,
    TokenRequest,
)

client = AuthenticatedClient(os.environ["AMO_CALLBACK"], os.environ["API_KEY"], raise_on_unexpected_status=True)
page = list_connections.sync(client=client, limit=10)
connection = page.items[0].id
token = take_token.sync(connection, client=client)
refreshed = refresh_token.sync(connection, client=client, body=RefreshBody(rejected_access_token=token.access_token))
authorization = take_authorization.sync_detailed(connection, client=client)
request = TokenRequest("refresh_token", connection, client_secret=os.environ["API_KEY"])
issued = issue_token.sync(client=Client(os.environ["AMO_CALLBACK"]), body=request)
unknown = take_token.sync_detailed("unknown", client=client)
assert isinstance(unknown.parsed, Problem)
entry = ImportEntry(
    access_token="opaque", domain="second.amocrm.ru", account_id="77", user_id=5, expires_at=os.environ["EXPIRES_AT"]
)
imported = import_connections.sync(client=client, body=ImportBody(connections=[entry]))
reauth = refresh_token.sync_detailed("account:77", client=client, body=RefreshBody())
assert isinstance(reauth.parsed, Problem)
started = start_owned_authorization.sync(client=client, body=OwnedAuthorizationBody(owner="42"))
print(
    json.dumps(
        {
            "listed": [one.id for one in page.items],
            "token": token.access_token,
            "lifetime": (token.expires_at - token.issued_at) / timedelta(seconds=1),
            "refreshed": refreshed.access_token,
            "authorization": [authorization.status_code, authorization.headers["X-Amo-Authorization"]],
            "issued": issued.access_token,
            "unknown": [unknown.status_code, unknown.parsed.status, unknown.parsed.code],
            "imported": imported.new,
            "needs_reauth": [reauth.status_code, reauth.parsed.code, reauth.parsed.reason],
            "authorize_url": started.authorize_url,
        }
    )
)
