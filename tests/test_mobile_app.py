"""The mobile developer's document: its JSON examples and its Expo recipe, run against the service."""

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import pytest

from amo_callback.amo.sandbox.app import Fault
from tests.documents import blocks_of, json_examples, openapi_paths, read_document, validate_example
from tests.service import BASE, HOST, LINK, Running
from tests.web.phone import WITH_USERS, Phone, allow, jwt_of, of

DOCUMENT = read_document("mobile-app.md")
EXAMPLES = json_examples(DOCUMENT)
PHONE = Path(__file__).parent / "mobile_phone.mjs"
OTHER_HOST = "second.amocrm.ru"
DISMISSED = {"type": "dismiss"}


# --- the examples -----------------------------------------------------------------------------


def test_mobile_app_each_json_block_is_an_example() -> None:
    """Each block of JSON names the operation that it belongs to."""
    assert len(EXAMPLES) == DOCUMENT.count("```json") > 8


@pytest.mark.parametrize(("operation", "part", "value"), EXAMPLES)
def test_mobile_app_example_matches_openapi_document(operation: str, part: str, value: Any) -> None:
    """Each request and response validates against the schema of its operation in the OpenAPI document."""
    validate_example(operation, part, value, base=BASE)


def test_mobile_app_names_each_route_of_the_app() -> None:
    """Each public route that an app calls has a place in the document."""
    paths = openapi_paths()
    routes = {
        f"{method.upper()} {{base}}{path.removeprefix(BASE)}"
        for path, item in paths.items()
        for method, operation in item.items()
        if operation["security"] in ([{"jwt": []}], [{}, {"jwt": []}])
        or (path == f"{BASE}/connect" and method == "get")
    }
    assert len(routes) == 5
    assert {route for route in routes if f"`{route}`" not in DOCUMENT} == set()


def test_mobile_app_errors_of_lost_link_are_documented() -> None:
    """Each status and error in the table of a lost link is one of `exchange-code` in the OpenAPI document."""
    responses = openapi_paths()[f"{BASE}/exchange-code"]["post"]["responses"]
    table = DOCUMENT.partition("### A lost link")[2].partition("###")[0]
    named = re.findall(r"(\d{3}) `(\w+)`", table)
    assert len(named) == 5
    for status, error in named:
        rule = responses[status]["content"]["application/json"]["schema"]["dependentSchemas"]["error"]
        assert error in rule["properties"]["error"]["enum"]


async def test_mobile_app_responses_are_as_in_examples(app: Running) -> None:
    """The service's responses have the members and the messages of the examples."""
    answers = await _answers(app)
    for operation, part, value in EXAMPLES:
        if part != "request":
            assert _form(value) in [_form(answer) for name, answer in answers if name == f"{operation} {part}"]


async def _answers(app: Running) -> list[tuple[str, Any]]:
    """Return the responses of the service in the examples' situations."""
    phone, found = Phone(app, "42"), []

    async def ask(method: str, path: str, body: object = None) -> Any:
        headers = {"Authorization": f"Bearer {jwt_of('42')}"}
        answer = await app.public(BASE + path, method=method, headers=headers, json=body)
        found.append((f"{method} {path} {answer.status}", answer.json()))
        return answer.json()

    await ask("GET", "/status")
    started = await phone.start()
    await ask("POST", "/authorizations", {})
    lost = {"state": started["state"], "code_verifier": phone.verifier}
    await ask("POST", "/exchange-code", lost)
    code = of((await allow(app, started["authorize_url"])).location)["code"]
    await ask("POST", "/exchange-code", {"code": code, "code_verifier": phone.verifier})
    refused = await phone.start()
    await app.callback(f"code=c&state={of(refused['authorize_url'])['state']}&referer=evil.example")
    app.clock.advance(2)
    await ask("POST", "/exchange-code", {**lost, "state": refused["state"]})
    await _connect_other(app, Phone(app, "42"))
    await ask("POST", "/disconnect", {"accountId": str(app.amo.account.id)})
    return found


async def _connect_other(app: Running, phone: Phone) -> None:
    url = (await phone.start())["authorize_url"]
    answer = await phone.exchange(of(await _allow_other(app, url))["code"])
    assert answer.json()["data"]["domain"] == OTHER_HOST


def _form(value: Any) -> Any:
    """Return a response in which values that differ from one account or attempt to the next are replaced by types."""
    if value.get("data") is None:
        return value
    data = {name: one if isinstance(one, bool) else type(one).__name__ for name, one in value["data"].items()}
    return {**value, "data": data}


# --- the recipe -------------------------------------------------------------------------------


class RecipeApp:
    """The recipe under Node, as the app of one user; its storage outlives the process."""

    def __init__(self, app: Running, folder: Path, *, user: str = "42", deep_link: str = LINK) -> None:
        self.app, self.user = app, user
        self.stored: str | None = None
        self.slept: list[float] = []
        self.returned: list[str] = []
        """The deep links without their parameters by which the browser has returned."""
        self.on_open: Callable[[str], Coroutine[Any, Any, Any]] = self.come_back
        self.on_sleep: Callable[[], Coroutine[Any, Any, Any]] = self.let_time_pass
        self._folder, self._deep_link = folder, deep_link
        self._numbers = count()
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._process: asyncio.subprocess.Process | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Run the app's process until the block ends."""
        recipe = dict(blocks_of(DOCUMENT, "recipe"))["amo.js"]
        (self._folder / "amo.mjs").write_text(recipe, encoding="utf-8")
        shutil.copy(PHONE, self._folder)
        base = f"http://{self.app.service.public}{BASE}"
        process = self._process = await asyncio.create_subprocess_exec(
            "node",
            str(self._folder / PHONE.name),
            env={"PATH": os.environ["PATH"], "BASE": base, "DEEP_LINK": self._deep_link},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        reading = asyncio.create_task(self._read(process))
        try:
            yield self
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await reading

    def kill(self) -> None:
        """End the process at once, as a system does that needs memory."""
        assert self._process is not None
        self._process.kill()

    def call(self, name: str, *args: object) -> asyncio.Future[Any]:
        """Call a function of the recipe, and return a future of its result."""
        number = next(self._numbers)
        self._calls[number] = asyncio.get_running_loop().create_future()
        self._write({"call": number, "name": name, "args": args})
        return self._calls[number]

    async def come_back(self, url: str) -> Any:
        """Allow access in the browser, and return with the link."""
        link = (await allow(self.app, url)).location
        self.returned.append(link.partition("?")[0])
        return {"type": "success", "url": link}

    async def let_time_pass(self) -> None:
        self.app.clock.advance(self.slept[-1] / 1000)

    def _write(self, message: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            message = json.loads(line)
            if "ask" in message:
                task = asyncio.create_task(self._answer(**message))
                self._tasks.add(task)
                task.add_done_callback(self._answered)
            elif "done" in message:
                self._calls[message["done"]].set_result(message.get("value"))
            else:
                self._calls[message["failed"]].set_exception(RuntimeError(message["text"]))
        self._fail(EOFError("the app's process has ended"))

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Let each call that waits for its result raise an error."""
        for call in self._calls.values():
            if not call.done():
                call.set_exception(error)

    async def _answer(self, ask: int, name: str, args: list[Any]) -> None:
        value: Any = None
        if name == "jwt":
            value = jwt_of(self.user) if self.user else "junk"
        elif name == "openAuthSession":
            assert args[1] == self._deep_link
            value = await self.on_open(args[0])
        elif name == "sleep":
            self.slept.append(args[0])
            value = await self.on_sleep()
        elif name == "load":
            value = self.stored
        else:
            self.stored = args[0] if name == "save" else None
        self._write({"answer": ask, "value": value})


def _require_node() -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")


@pytest.fixture
async def app(run: Any) -> AsyncIterator[Running]:
    """Run the service with JWT settings, which accepts only its own states."""
    async with run(**WITH_USERS, APP__STATE="issued") as running:
        yield running


@pytest.fixture
async def phone(app: Running, tmp_path: Path) -> AsyncIterator[RecipeApp]:
    _require_node()
    async with RecipeApp(app, tmp_path).running() as running:
        yield running


def _connected(app: Running) -> dict[str, Any]:
    return {"connected": True, "hasTokens": True, "domain": HOST, "accountId": str(app.amo.account.id)}


async def _allow_other(app: Running, url: str) -> str:
    """Allow access to another account, and return the deep link."""
    code = app.amo.fake.allow(app.amo.fake.open_account(OTHER_HOST))
    state = quote(of(url)["state"], safe="")
    return (await app.callback(f"code={code}&state={state}&referer={OTHER_HOST}")).location


@pytest.mark.parametrize("hand_back", ["code", "ticket", "none"])
async def test_recipe_connects_account_and_forgets_attempt(run: Any, tmp_path: Path, hand_back: str) -> None:
    """With each kind of link, the recipe connects the account and removes the verifier from the storage."""
    _require_node()
    async with (
        run(**WITH_USERS, APP__STATE="issued", APP__HAND_BACK=hand_back) as app,
        RecipeApp(app, tmp_path).running() as phone,
    ):
        answer = await phone.call("connect")
        assert (answer["success"], answer["data"]) == (True, _connected(app))
        assert phone.stored is None
        assert (await phone.call("status"))["data"] == _connected(app)


async def test_recipe_app_killed_during_browser_claims_result_at_start(app: Running, phone: RecipeApp) -> None:
    """After the system has ended the app, and the link is lost, the next start claims the result by the state."""
    returned = asyncio.Event()

    async def end_app(url: str) -> None:
        phone.kill()
        await allow(app, url)
        returned.set()

    phone.on_open = end_app
    connecting = phone.call("connect")
    with pytest.raises(EOFError):
        await connecting
    await returned.wait()
    async with phone.running():
        assert (await phone.call("claim"))["data"] == _connected(app)
        assert await phone.call("claim") is None


async def test_recipe_dismiss_after_success_claims_result(app: Running, phone: RecipeApp) -> None:
    """If the browser reports `dismiss` and no link arrives, the result is claimed by the state."""

    async def lose_link(url: str) -> Any:
        await allow(app, url)
        return DISMISSED

    phone.on_open = lose_link
    assert (await phone.call("connect"))["data"] == _connected(app)
    assert phone.slept == []


async def test_recipe_session_with_bare_link_claims_result(app: Running, phone: RecipeApp) -> None:
    """If the browser returns by a link that only opens the app, `connect` asks for the result by the state."""

    async def return_by_bare_link(url: str) -> Any:
        await phone.come_back(url)
        return {"type": "success", "url": LINK}

    phone.on_open = return_by_bare_link
    assert (await phone.call("connect"))["data"] == _connected(app)
    assert phone.stored is None


async def test_recipe_dismiss_before_callback_waits_for_result(app: Running, phone: RecipeApp) -> None:
    """While the user has not come back from AMO, the recipe asks again after the seconds in `Retry-After`."""
    opened = asyncio.get_running_loop().create_future()

    async def close_browser(url: str) -> Any:
        opened.set_result(url)
        return DISMISSED

    async def return_late() -> None:
        app.clock.advance(2)
        await allow(app, await opened)

    phone.on_open, phone.on_sleep = close_browser, return_late
    assert (await phone.call("connect"))["data"] == _connected(app)
    assert phone.slept == [2000]


async def test_recipe_unfinished_attempt_is_kept_and_claimed_later(app: Running, phone: RecipeApp) -> None:
    """If the user stays in the browser, the attempt is reported as pending, and a later claim completes it."""
    opened = asyncio.get_running_loop().create_future()

    async def close_browser(url: str) -> Any:
        opened.set_result(url)
        return DISMISSED

    phone.on_open = close_browser
    assert (await phone.call("connect"))["error"] == "pending"
    assert len(phone.slept) == 2
    await allow(app, await opened)
    app.clock.advance(2)
    assert (await phone.call("openLink", LINK))["data"] == _connected(app), "a link without parameters opens the app"


async def test_recipe_link_delivered_twice_returns_result_once(app: Running, phone: RecipeApp) -> None:
    """Of two deliveries of one link, also with `&n=2`, one returns the result, and the other one `null`."""
    second: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def deliver_twice(url: str) -> Any:
        link = (await allow(app, url)).location
        phone.call("openLink", f"{link}&n=2").add_done_callback(lambda done: second.set_result(done.result()))
        return {"type": "success", "url": link}

    phone.on_open = deliver_twice
    answers = [await phone.call("connect"), await second]
    assert [answer["data"] for answer in answers if answer is not None] == [_connected(app)]
    assert len(app.amo.fake.ledger.entries) == 1


async def test_recipe_foreign_link_is_ignored(app: Running, phone: RecipeApp) -> None:
    """A link of another attempt, of another part of the app or of an earlier start changes nothing."""
    link = (await allow(app, (await Phone(app, "7").start(challenged=False))["authorize_url"])).location

    async def receive_foreign_links(url: str) -> Any:
        attempt = phone.stored
        for foreign in (link, f"{LINK}?error=access_denied&state=other", f"{LINK}s", "foryoure://home"):
            assert await phone.call("openLink", foreign) is None
        assert attempt == phone.stored is not None
        return await phone.come_back(url)

    phone.on_open = receive_foreign_links
    assert (await phone.call("connect"))["data"] == _connected(app)
    assert await phone.call("openLink", link) is None


@pytest.mark.parametrize("is_lost", [False, True])
async def test_recipe_declined_access_returns_error_word(app: Running, phone: RecipeApp, *, is_lost: bool) -> None:
    """The error reaches the app once, by the link or the state; a later link with a code still connects."""
    opened: list[str] = []

    async def decline(url: str) -> Any:
        opened.append(url)
        link = (await app.callback(f"error=access_denied&state={of(url)['state']}")).location
        return DISMISSED if is_lost else {"type": "success", "url": link}

    phone.on_open = decline
    answer = await phone.call("connect")
    assert (answer["success"], answer["error"]) == (False, "access_denied")
    assert await phone.call("claim") is None
    link = (await allow(app, opened[0])).location  # the user goes back in the browser
    app.clock.advance(1)
    assert (await phone.call("openLink", link))["data"] == _connected(app)
    assert phone.stored is None


async def test_recipe_error_link_after_success_returns_success(app: Running, phone: RecipeApp) -> None:
    """If a second code of another account has the attempt's state, its error link does not end the attempt."""

    async def allow_twice(url: str) -> Any:
        await allow(app, url)
        code = app.amo.fake.allow(app.amo.fake.open_account("second.amocrm.ru"))
        query = f"code={code}&state={of(url)['state']}&referer=second.amocrm.ru"
        link = (await app.callback(query)).location
        assert of(link)["error"] == "invalid_state"
        return {"type": "success", "url": link}

    phone.on_open = allow_twice
    assert (await phone.call("connect"))["data"] == _connected(app)
    assert phone.stored is None


async def test_recipe_temporary_failure_keeps_attempt(app: Running, phone: RecipeApp) -> None:
    """After `amo_unavailable`, the return page's next link, with the same code, completes the attempt."""
    codes: list[str] = []

    async def fail_once(url: str) -> Any:
        app.amo.sandbox.faults.add(Fault.HTTP_500)
        codes.append(app.amo.code())
        return {"type": "success", "url": (await allow(app, url, code=codes[0])).location}

    phone.on_open = fail_once
    assert (await phone.call("connect"))["error"] == "amo_unavailable"
    assert phone.stored is not None
    state = json.loads(phone.stored)["state"]
    link = (await app.callback(f"code={codes[0]}&state={state}&referer={HOST}")).location
    assert (await phone.call("openLink", link))["data"] == _connected(app)


@pytest.mark.parametrize(
    ("change", "error", "keeps"),
    [
        ({"user": "43"}, "not_found", False),
        ({"user": ""}, "unauthorized", True),
        ({"stored": {"verifier": "v" * 64}}, "forbidden", False),
        ({"seconds": 31 * 60}, "code_expired", False),
    ],
)
async def test_recipe_claim_failure_ends_attempt_unless_user_must_sign_in(
    app: Running, phone: RecipeApp, change: dict[str, Any], error: str, *, keeps: bool
) -> None:
    """Another user, a wrong verifier and an expired attempt end it; without a valid JWT it is kept."""

    async def change_something(_url: str) -> Any:
        phone.user = change.get("user", phone.user)
        phone.stored = json.dumps({**json.loads(phone.stored or ""), **change.get("stored", {})})
        app.clock.advance(change.get("seconds", 0))
        return DISMISSED

    phone.on_open = change_something
    assert (await phone.call("connect"))["error"] == error
    assert (phone.stored is not None) is keeps


async def test_recipe_wrong_account_is_replaced_by_right_one(app: Running, phone: RecipeApp) -> None:
    """A user who chose a wrong account connects the right one and disconnects the wrong one by its `accountId`."""

    async def choose_wrong_account(url: str) -> Any:
        return {"type": "success", "url": await _allow_other(app, url)}

    phone.on_open = choose_wrong_account
    wrong = (await phone.call("connect"))["data"]
    assert wrong["domain"] == OTHER_HOST
    phone.on_open = phone.come_back
    assert (await phone.call("connect"))["data"] == _connected(app)
    assert (await phone.call("disconnect", wrong["accountId"]))["data"] == _connected(app)
    nothing = {"connected": False, "hasTokens": False, "domain": None, "accountId": None}
    assert (await phone.call("disconnect"))["error"] == "invalid_request"  # no account is not all accounts
    assert (await phone.call("disconnectAll"))["data"] == nothing


async def test_recipe_late_result_keeps_newer_attempt(app: Running, phone: RecipeApp) -> None:
    """If the user has started again, the result of the earlier attempt does not remove the newer attempt."""
    newer = json.dumps({"state": "newer", "verifier": "v" * 64})

    async def start_again(url: str) -> Any:
        phone.on_sleep = partial(return_late, url)
        return DISMISSED

    async def return_late(url: str) -> None:
        app.clock.advance(2)
        phone.stored = newer
        await allow(app, url)

    phone.on_open = start_again
    assert (await phone.call("connect"))["data"] == _connected(app)
    assert phone.stored == newer


async def test_recipe_claim_during_connect_asks_nothing(app: Running, phone: RecipeApp) -> None:
    """When the app becomes active while `connect` runs, only `connect` asks for the result."""

    async def become_active(url: str) -> Any:
        assert [await phone.call("claim"), await phone.call("openLink", LINK)] == [None, None]
        return await phone.come_back(url)

    phone.on_open = become_active
    assert (await phone.call("connect"))["data"] == _connected(app)
    assert await phone.call("claim") is None


async def test_recipe_development_build_returns_by_its_own_deep_link(run: Any, tmp_path: Path) -> None:
    """A build with another scheme returns by its own deep link; one that is not configured is refused at the start."""
    _require_node()
    link = "foryoure-dev://amo-crm/callback"
    async with run(**WITH_USERS, APP__DEEP_LINK=f"{LINK} {link}") as app:
        async with RecipeApp(app, tmp_path, deep_link=link).running() as phone:
            assert (await phone.call("connect"))["data"] == _connected(app)
            assert phone.returned == [link]
        async with RecipeApp(app, tmp_path, deep_link="other://callback").running() as phone:
            assert (await phone.call("connect"))["error"] == "invalid_request"
