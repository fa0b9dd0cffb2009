"""The pair of an answer is found in every shape, because its token is already spent."""

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
"""Offset of Linux's `tcp_info` counter of unacknowledged segments."""
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


class ShapedAmo:
    """AMO behind a server that shapes its successful answers and records requests and pairs."""

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
) -> AsyncIterator[ShapedAmo]:
    """Serve AMO's answers in a shape, over TLS if `tls` is given."""
    shaped = ShapedAmo(amo, shape, end or _close)
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
    """Write an answer and reset the connection once the client has received it."""
    await _close(reader, writer, answer)
    connection = writer.get_extra_info("socket")
    while connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[_UNACKNOWLEDGED] != bytes(4):  # noqa: ASYNC110 -- the kernel sets no event
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
async def test_pair_is_found_in_every_shape(amo: Amo, clock: FakeClock, authority: CA, shape: str) -> None:
    """The pair of the answer is the issued one, after one request."""
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
async def test_pair_is_found_for_every_end_of_connection(amo: Amo, clock: FakeClock, shape: str, end: End) -> None:
    """A pair is found if the connection stays open, sends single bytes or is reset after the answer."""
    async with _shaped(amo, PAIRS[shape], end) as shaped, amo_client(amo, clock) as client:
        issued = await _ask(client, amo, REFRESH_TOKEN)
    assert issued.pair.refresh_token == shaped.issued["refresh_token"]


@pytest.mark.parametrize("shape", ["in chunks without an end", "length too long", "until the connection ends"])
async def test_pair_without_end_of_answer_is_found_at_timeout(amo: Amo, clock: FakeClock, shape: str) -> None:
    """A pair is found at the timeout if the answer's end is not received."""
    async with _shaped(amo, PAIRS[shape], _stay) as shaped, amo_client(amo, clock, timeout=1.0) as client:
        issued = await _ask(client, amo, REFRESH_TOKEN)
    assert issued.pair.refresh_token == shaped.issued["refresh_token"]


@pytest.mark.parametrize("grant", [CODE, REFRESH_TOKEN])
@pytest.mark.parametrize("shape", NO_PAIRS)
async def test_answer_without_readable_pair_keeps_body(amo: Amo, clock: FakeClock, shape: str, grant: str) -> None:
    """The outcome is unknown, and the error contains the body, in which a pair may be."""
    async with _shaped(amo, NO_PAIRS[shape]) as shaped, amo_client(amo, clock) as client:
        with pytest.raises(UnknownOutcome) as raised:
            await _ask(client, amo, grant)
    answer = NO_PAIRS[shape](shaped.issued)
    assert raised.value.body == answer.partition(b"\r\n\r\n")[2]
    assert "body" not in repr(raised.value)
    assert len(shaped.requests) == 1


# --- TLS -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["another host", "expired", "an authority that is not trusted"])
async def test_tls_invalid_certificate_gets_no_request(amo: Amo, clock: FakeClock, authority: CA, wrong: str) -> None:
    """No byte is sent to a server with another host's, an expired or an untrusted certificate."""
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


async def test_tls_request_names_server(amo: Amo, clock: FakeClock, authority: CA) -> None:
    """The request sends the server name indication, because one address may serve several hosts."""
    names: list[str | None] = []
    tls = _server_tls(authority)
    tls.sni_callback = lambda _socket, name, _context: names.append(name)
    async with (
        _shaped(amo, PAIRS["with its length"], tls=tls),
        amo_client(amo, clock, tls=_client_tls(authority)) as client,
    ):
        await _ask(client, amo, REFRESH_TOKEN)
    assert names == ["localhost"]


async def test_tls_trusts_authority_of_environment(
    amo: Amo, clock: FakeClock, authority: CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`SSL_CERT_FILE` names the trusted authority, such as that of an intercepting proxy."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    tls = _server_tls(authority)
    async with _shaped(amo, PAIRS["with its length"], tls=tls), amo_client(amo, clock, tls=tls_context()) as client:
        assert (await _ask(client, amo, REFRESH_TOKEN)).pair.refresh_token
