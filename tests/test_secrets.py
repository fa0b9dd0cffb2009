"""Secrets in outputs: the whole flow runs, and every output is searched."""

import json
import secrets
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from amo_callback.amo.sandbox.app import Fault
from tests.service import ADMIN_KEY, API_KEY, BASE, HOST, Answer, Running
from tests.web.phone import SECRET, WITH_USERS, Phone, allow, challenge_of, jwt_of, of
from tests.web.public.test_callback import BROKEN

STATE = "the-state-of-the-app-1f9d"
WRONG_KEY = "a-wrong-key-that-is-somebody-elses-4711-4711"


async def test_outputs_of_whole_flow_contain_no_secret(run: Any, encryption_key: str) -> None:
    """After every kind of request and fault of AMO, no log, error, answer or database contains a secret."""
    lifetimes = {"access": 1000}
    settings = {"AMO__TIMEOUT": "2", "LOG__LEVEL": "debug", "LIMITS__FAILED_CODES": "1000", **WITH_USERS}
    async with run(lifetimes=lifetimes, **settings) as app:
        lived = await _live(app)
        begun = await _begin(app)
        app.clock.advance(600)  # every connection is due and refreshed
        await app.witness.until("refresh.succeeded")
    kept = {
        "client secret": {app.settings.amo.client_secret.get_secret_value()},
        "encryption key": {encryption_key},
        "api key": {API_KEY, WRONG_KEY},
        "state": {STATE},
        "handle": lived.handles,
        "code": {entry.presented for entry in app.amo.fake.ledger.exchanges() if len(entry.presented) > 20},
        "refresh token": set(app.amo.fake.ledger.issued),
        "access token": lived.tokens,
        "JWT secret": {SECRET},
        **begun,
    }
    assert all(kept.values())
    written = {
        "log": app.log.getvalue(),
        "events": "\n".join(repr(event) for event in app.witness.events),
        "settings": repr(app.settings),
        "errors": "\n".join(lived.errors),
        "database": "".join(file.read_bytes().decode("latin-1") for file in app.folder.glob("*.db*")),
    }
    assert all(written[where] for where in ("log", "events", "settings", "database"))
    for where, text in written.items():
        for what, values in kept.items():
            for value in values:
                for form in {value, quote(value, safe=""), json.dumps(value)[1:-1]}:
                    assert form not in text, f"a {what} is in the {where}"
    assert "Traceback" not in app.log.getvalue()
    events = {line["event"] for line in app.lines()}
    assert {"http.request", "grant.failed", "connection.connected", "refresh.succeeded", "token.handed_out"} <= events


async def _begin(app: Running) -> dict[str, set[str]]:
    """Begin and end grants of users, valid and invalid, and return their secrets."""
    phone, own = Phone(app, "42"), "the-own-state-of-the-app-77aa"
    started = await phone.start(state=own)
    issued = of(started["authorize_url"])["state"]
    ticket = secrets.token_urlsafe(16)
    await phone.exchange(ticket, referer=HOST)
    await app.callback(f"error=access_denied&state={issued}")
    await app.callback(app.query(state=issued + "x"))
    await phone.exchange(of((await allow(app, started["authorize_url"])).location)["code"])
    await Phone(app, "17").exchange(ticket, verified=False)
    unsigned = jwt_of("42").rpartition(".")[0] + ".AAAA"
    for token in (unsigned, "x" * 9000):
        await app.public(f"{BASE}/status", headers={"Authorization": f"Bearer {token}"})
    await app.private("/authorizations", key=ADMIN_KEY, method="POST", json={"owner": "42", "state": own})
    await app.public(f"{BASE}/connect?state={own}&code_challenge=x")
    return {
        "issued state": {issued},
        "app's own state": {own},
        "verifier": {phone.verifier},
        "challenge": {challenge_of(phone.verifier)},
        "ticket": {ticket},
        "JWT": {unsigned, jwt_of("42")},
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Lived:
    errors: list[str]
    handles: set[str]
    tokens: set[str]


async def _live(app: Running) -> Lived:
    answers: list[Answer] = []
    answers.extend(
        [await app.callback(f"{query}&state={STATE}", html=html) for query, *_ in BROKEN for html in (True, False)]
    )
    for fault in Fault:
        if fault is not Fault.SLOW:
            app.amo.sandbox.faults.add(fault)
            answers.append(await app.callback(app.query(state=STATE)))
            app.clock.advance(2)
    answers.append(await app.callback(app.query(code="junk-" * 20, state=STATE)))
    answers.append(await app.callback("code=" + "junk" * 20_000))
    answers.append(await app.public(f"{BASE}/exchange-code", method="POST", data=b"{" + STATE.encode()))
    answers.append(await app.public(f"{BASE}/{STATE}?code={app.amo.code()}"))
    code = app.amo.code()
    returned = await app.callback(app.query(code=code, state=STATE), html=True)
    handle = returned.location.rpartition("/")[2]
    assert (await app.public(returned.location)).status == 200
    assert (await app.public(f"{BASE}/exchange-code", method="POST", json={"code": code})).status == 200
    answers.append(await app.public(f"{BASE}/exchange-code", method="POST", json={"code": STATE, "referer": HOST}))
    token = (await app.private(f"/connections/account:{app.amo.account.id}/token")).json()["access_token"]
    answers.append(await app.private(f"/connections/{STATE}/token?min_ttl={STATE}"))
    answers.append(await app.private("/nowhere", key=WRONG_KEY))
    errors = [answer for answer in answers if answer.status >= 400]
    assert len(errors) > 25
    pages = [answer.text for answer in errors if "text/html" in answer.headers["Content-Type"]]
    assert pages
    assert all(f"&amp;state={STATE}" in page or "state=" not in page for page in pages)
    return Lived(
        errors=[answer.text for answer in errors if answer.text not in pages], handles={handle}, tokens={token}
    )
