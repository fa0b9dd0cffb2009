"""A proxy in front of PostgreSQL that can cut a connection between a COMMIT and its answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

SOCKET = ".s.PGSQL.5432"
_CHUNK = 65536


class CommitProxy:
    """A proxy that forwards all bytes; while `cutting` is set, about half of the COMMITs get no answer."""

    def __init__(self, server: Path, *, folder: Path, chance: Random) -> None:
        self._server = server
        self._chance = chance
        self.url = f"postgresql://postgres@/postgres?host={folder}"
        self.cutting = False
        self.cuts = 0

    async def forward(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """Forward one connection until either side closes it or it is cut."""
        committing = asyncio.Event()
        with suppress(ConnectionError):
            server, to_server = await asyncio.open_unix_connection(self._server)
            pumps = [
                asyncio.ensure_future(self._forward_requests(client, to_server, committing)),
                asyncio.ensure_future(_forward_answers(server, to_client, committing)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                to_server.transport.abort()
        to_client.transport.abort()

    async def _forward_requests(
        self, client: asyncio.StreamReader, to_server: asyncio.StreamWriter, committing: asyncio.Event
    ) -> None:
        while request := await client.read(_CHUNK):
            if self.cutting and _is_commit(request) and self._chance.random() < 0.5:
                self.cuts += 1
                committing.set()
            to_server.write(request)
            await to_server.drain()


async def _forward_answers(
    server: asyncio.StreamReader, to_client: asyncio.StreamWriter, committing: asyncio.Event
) -> None:
    """Forward answers until the answer to a COMMIT must be dropped.

    The client sends nothing between a COMMIT and its answer.
    """
    while (answer := await server.read(_CHUNK)) and not committing.is_set():
        to_client.write(answer)
        await to_client.drain()


def _is_commit(request: bytes) -> bool:
    """Check whether a message is a simple query (`Q`, length, text) that commits."""
    return request[:1] == b"Q" and request[5:].startswith(b"COMMIT")


@asynccontextmanager
async def commit_proxy(server: Path, *, chance: Random) -> AsyncIterator[CommitProxy]:
    """Run a proxy in front of the PostgreSQL server whose socket is in the folder `server`."""
    with TemporaryDirectory(prefix="pg-proxy-") as folder:
        proxy = CommitProxy(server / SOCKET, folder=Path(folder), chance=chance)
        listening = await asyncio.start_unix_server(proxy.forward, Path(folder) / SOCKET)
        try:
            yield proxy
        finally:
            listening.close()
