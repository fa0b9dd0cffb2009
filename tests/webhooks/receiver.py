"""A webhook receiver on a socket, with answers set by a test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.wait_limit import WAIT_LIMIT

SECRET = "whsec_" + "Zm9yIHRlc3RzIG9ubHksIG5vIHNlY3JldCA="
OTHER_SECRET = "whsec_" + "YW5vdGhlciBvbmUsIGFsc28gZm9yIHRlc3Rz"
HANG_UP = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """A received request."""

    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def content(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """A receiver that answers with the statuses set by a test, then with `always` or 200."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.statuses: list[int] = []
        """The statuses of the first answers, in order."""
        self.always: int | None = None
        self.headers: dict[str, str] = {}
        self.body = b""
        self.open = asyncio.Event()
        self.open.set()
        self._came = asyncio.Event()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._server = TestServer(app)

    @property
    def types(self) -> list[str]:
        return [delivery.content["type"] for delivery in self.deliveries]

    @property
    def url(self) -> str:
        return str(self._server.make_url("/hook"))

    @property
    def ids(self) -> list[str]:
        return [delivery.id for delivery in self.deliveries]

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Receiver]:
        async with self._server:
            try:
                yield self
            finally:
                self.open.set()

    async def until_came(self, times: int) -> None:
        while len(self.deliveries) < times:
            self._came.clear()
            await asyncio.wait_for(self._came.wait(), WAIT_LIMIT)

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.deliveries.append(Delivery(path=request.path, headers=headers, body=body))
        status = self.statuses.pop(0) if self.statuses else self.always
        self._came.set()
        await self.open.wait()
        if status == HANG_UP and request.transport is not None:
            request.transport.close()
        return web.Response(status=status or 200, headers=self.headers, body=self.body)
