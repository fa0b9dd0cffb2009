"""Whatever shape a good answer takes on its way, the pair in it is found: it has been paid for."""

import asyncio
import json
import math
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from trustme import CA

from amo_callback.amo.client import AmoClient
from amo_callback.amo.transport import tls_context
from amo_callback.errors import RequestNotSent, UnknownOutcome
from amo_callback.model import TokenResponse
from tests.amo.body_shapes import NO_PAIRS, PAIRS, Shape
from tests.fakes import FakeClock
from tests.service import HOST, Amo, amo_client

End = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]


_UNACKNOWLEDGED = slice(24, 28)
"""Where Linux tells in `tcp_info` how many segments the other side has not acknowledged."""
CODE, REFRESH_TOKEN = "a code", "a refresh token"


@pytest.fixture(scope="session")
def authority() -> CA:
    return CA()


def _client_tls(trusted: CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    trusted.configure_trust(context)
    return context


def _server_tls(authority: CA, host: str = "localhost", *, days: int = 1) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    end = datetime.now(UTC) + timedelta(days=days)
    authority.issue_cert(host, not_before=end - timedelta(days=2), not_after=end).configure_cert(context)
    return context


class Shaped:
    """AMO behind something that gives its good answers a shape; it keeps what was presented, and what was issued."""

    def __init__(self, amo: Amo, shape: Shape, end: End) -> None:
        self.requests: list[bytes] = []
        self.issued: dict[str, Any] = {}
        self._amo, self._shape, self._end = amo, shape, end

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)\r\n", head.lower())
        assert length is not None
        body = await reader.readexactly(int(length[1]))
        self.requests.append(head + body)
        reply = self._amo.fake.token(HOST, body=body, content_type="application/json")
        assert reply.status == 200
        asked = json.loads(body)
        self.issued = {**reply.content, "presented": asked.get("refresh_token") or asked["code"]}
        try:
            await self._end(reader, writer, self._shape(self.issued))
        except ConnectionError:
            pass  # the client has read enough
        finally:
            writer.close()


@asynccontextmanager
async def _shaped(
    amo: Amo, shape: Shape, end: End | None = None, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Shaped]:
    """Serve AMO's answers in a shape; where `tls` is given, over TLS."""
    shaped = Shaped(amo, shape, end or _close)
    server = await asyncio.start_server(shaped.serve, "127.0.0.1", 0, ssl=tls)
    amo.address = f"localhost:{server.sockets[0].getsockname()[1]}"
    amo.scheme = "http" if tls is None else "https"
    async with server:
        yield shaped


async def _close(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes) -> None:
    writer.write(answer)
    await writer.drain()


async def _stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes) -> None:
    await _close(reader, writer, answer)
    await reader.read()


async def _drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes) -> None:
    for byte in answer:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)


async def _reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes) -> None:
    """Write an answer and reset the connection behind it, once it has been read."""
    await _close(reader, writer, answer)
    connection = writer.get_extra_info("socket")
    while connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[_UNACKNOWLEDGED] != bytes(4):  # noqa: ASYNC110 -- because the kernel sets no event
        await asyncio.sleep(0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _ask(client: AmoClient, amo: Amo, grant: str) -> TokenResponse:
    if grant == CODE:
        return await client.exchange(code=amo.code().encode(), domain=HOST, not_after=math.inf)
    issued = amo.fake.token(
        HOST,
        body=json.dumps(amo.request(grant_type="authorization_code", code=amo.code())).encode(),
        content_type="application/json",
    )
    token = str(issued.content["refresh_token"])
    return await client.refresh(refresh_token=token, domain=HOST, not_after=math.inf)


@pytest.mark.parametrize("shape", PAIRS)
async def test_a_pair_is_found_in_every_shape(amo: Amo, clock: FakeClock, authority: CA, shape: str) -> None:
    """The pair in the answer is the one that AMO has issued, and it was presented once."""
    tls = _server_tls(authority)
    async with (
        _shaped(amo, PAIRS[shape], tls=tls) as shaped,
        amo_client(amo, clock, tls=_client_tls(authority)) as client,
    ):
        issued = await _ask(client, amo, REFRESH_TOKEN)
    assert issued.pair.access_token == shaped.issued["access_token"]
    assert issued.pair.refresh_token == shaped.issued["refresh_token"]
    assert 0 < (issued.pair.expires_at - clock.now()).total_seconds() <= 86_401
    assert len(shaped.requests) == 1


@pytest.mark.parametrize("end", [_stay, _drip, _reset], ids=lambda end: end.__name__.strip("_"))
@pytest.mark.parametrize("shape", ["with its length", "in one chunk", "gzip in chunks", "100 first"])
async def test_a_pair_is_found_however_the_connection_ends(amo: Amo, clock: FakeClock, shape: str, end: End) -> None:
    """It stays open, brings single bytes, or is reset behind the answer."""
    async with _shaped(amo, PAIRS[shape], end) as shaped, amo_client(amo, clock) as client:
        issued = await _ask(client, amo, REFRESH_TOKEN)
    assert issued.pair.refresh_token == shaped.issued["refresh_token"]


@pytest.mark.parametrize("shape", ["in chunks without an end", "length too long", "until the connection ends"])
async def test_a_pair_whose_end_never_comes_is_found_at_the_timeout(amo: Amo, clock: FakeClock, shape: str) -> None:
    """The connection stays open after the pair, and nothing tells that the answer is complete."""
    async with _shaped(amo, PAIRS[shape], _stay) as shaped, amo_client(amo, clock, timeout=1.0) as client:
        issued = await _ask(client, amo, REFRESH_TOKEN)
    assert issued.pair.refresh_token == shaped.issued["refresh_token"]


@pytest.mark.parametrize("grant", [CODE, REFRESH_TOKEN])
@pytest.mark.parametrize("shape", NO_PAIRS)
async def test_an_answer_without_a_readable_pair_is_kept(amo: Amo, clock: FakeClock, shape: str, grant: str) -> None:
    """The outcome is open, and the error brings the body: a pair that cannot be read yet may be in it."""
    async with _shaped(amo, NO_PAIRS[shape]) as shaped, amo_client(amo, clock) as client:
        with pytest.raises(UnknownOutcome) as raised:
            await _ask(client, amo, grant)
    answer = NO_PAIRS[shape](shaped.issued)
    assert raised.value.body == answer.partition(b"\r\n\r\n")[2]
    assert "body" not in repr(raised.value)
    assert len(shaped.requests) == 1


# --- TLS -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["another host", "expired", "an authority that is not trusted"])
async def test_nothing_is_sent_to_a_server_that_cannot_prove_who_it_is(
    amo: Amo, clock: FakeClock, authority: CA, wrong: str
) -> None:
    """A certificate of another host, an expired one, one of an unknown authority: no byte of the request goes out."""
    host = "another.example" if wrong == "another host" else "localhost"
    tls = _server_tls(authority, host, days=-1 if wrong == "expired" else 1)
    trusted = CA() if wrong.startswith("an authority") else authority
    async with (
        _shaped(amo, PAIRS["with its length"], tls=tls) as shaped,
        amo_client(amo, clock, tls=_client_tls(trusted)) as client,
    ):
        with pytest.raises(RequestNotSent):
            await _ask(client, amo, REFRESH_TOKEN)
    assert shaped.requests == []


async def test_the_server_is_told_which_host_is_meant(amo: Amo, clock: FakeClock, authority: CA) -> None:
    """Server name indication: one address may serve many hosts."""
    names: list[str | None] = []
    tls = _server_tls(authority)
    tls.sni_callback = lambda _socket, name, _context: names.append(name)
    async with (
        _shaped(amo, PAIRS["with its length"], tls=tls),
        amo_client(amo, clock, tls=_client_tls(authority)) as client,
    ):
        await _ask(client, amo, REFRESH_TOKEN)
    assert names == ["localhost"]


async def test_authorities_of_the_environment_are_trusted(
    amo: Amo, clock: FakeClock, authority: CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`SSL_CERT_FILE` names whom to trust: behind a proxy that opens TLS, its authority."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    tls = _server_tls(authority)
    async with _shaped(amo, PAIRS["with its length"], tls=tls), amo_client(amo, clock, tls=tls_context()) as client:
        assert (await _ask(client, amo, REFRESH_TOKEN)).pair.refresh_token
