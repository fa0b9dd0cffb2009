"""What the service stands on, each in its own cleanup context, and the rules that its configuration makes."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from amo_callback.amo.client import AmoClient
from amo_callback.amo.pace import Pace
from amo_callback.amo.protocol import Integration
from amo_callback.amo.wire import tls_context
from amo_callback.connect.build import ConnectRules
from amo_callback.errors import ConfigurationError, TaskDied, Unreadable
from amo_callback.event import Event, Level
from amo_callback.hosts import check_host
from amo_callback.notices.courier import Courier
from amo_callback.notices.sender import open_sender
from amo_callback.webhook import Signer, read_secrets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from amo_callback.cipher import Cipher
    from amo_callback.config import Settings
    from amo_callback.connect.completion import Connect
    from amo_callback.custody.build import Custody
    from amo_callback.custody.refresher import Refresher
    from amo_callback.custody.surveyor import Surveyor
    from amo_callback.ports import Clock, Observer, Shared, Store


async def check_canary(store: Store, cipher: Cipher) -> None:
    """Refuse to start on a store that our keys cannot read: every connection in it would look lost."""
    try:
        cipher.check_canary(await store.canary(cipher.seal_canary()))
    except Unreadable:
        raise ConfigurationError(
            "storage.encryption_keys: none of them opens this database; give the keys it was written with"
        ) from None


@asynccontextmanager
async def open_client(
    settings: Settings, *, shared: Shared, clock: Clock, observer: Observer
) -> AsyncIterator[AmoClient]:
    """Talk to AMO, at the rate that it allows."""
    pace = Pace(per_second=settings.amo.requests_per_second, shared=shared, clock=clock, observer=observer)
    try:
        yield AmoClient(
            tls=tls_context(),
            integration=Integration(
                client_id=settings.amo.client_id,
                client_secret=settings.amo.client_secret.get_secret_value(),
                redirect_uri=settings.amo.redirect_uri,
                endpoint=settings.amo.endpoint,
                authorize_url=settings.amo.authorize_url,
                allowed_domains=settings.amo.allowed_domains,
            ),
            pace=pace,
            clock=clock,
            observer=observer,
            timeout=settings.amo.timeout,
            default_domain=settings.amo.default_domain,
        )
    finally:
        await pace.close()


@asynccontextmanager
async def draining(worker: Custody | Connect) -> AsyncIterator[None]:
    """Wait at the end for what is in flight: it has been paid for."""
    try:
        yield
    finally:
        worker.stop()
        await worker.drain()


@asynccontextmanager
async def open_courier(
    settings: Settings, store: Store, *, clock: Clock, observer: Observer, died: asyncio.Future[None]
) -> AsyncIterator[Courier | None]:
    """Deliver notices where somebody wants them; at the end what is in flight gets its answer."""
    webhook = settings.webhook
    if webhook.url is None or webhook.secret is None:
        yield None
        return
    async with open_sender(webhook.url) as sender:
        courier = Courier(
            store=store,
            sender=sender,
            signer=Signer(
                read_secrets(webhook.secret.get_secret_value()),
                reconnect_url=settings.amo.connect_url,
                allowed_domains=settings.amo.allowed_domains,
            ),
            clock=clock,
            observer=observer,
            poll_interval=settings.refresh.poll_interval,
            random=random.random,
        )
        store.on_notice(courier.wake)
        async with running(courier, name="courier", observer=observer, died=died):
            yield courier


@asynccontextmanager
async def running(
    loop: Refresher | Courier | Surveyor, *, name: str, observer: Observer, died: asyncio.Future[None]
) -> AsyncIterator[None]:
    """Run a loop; `died` fails where it ends before it was told to."""
    task = asyncio.create_task(loop.run(), name=name)

    def look(ended: asyncio.Task[None]) -> None:
        if loop.stopped:
            return
        error = None if ended.cancelled() else ended.exception()
        observer(Event(name=f"{name}.died", level=Level.ERROR, error=error))
        if not died.done():
            died.set_exception(TaskDied())

    task.add_done_callback(look)
    try:
        yield
    finally:
        loop.stop()
        await asyncio.wait({task})


def connect_rules(settings: Settings) -> ConnectRules:
    """Return who may connect, and how."""
    return ConnectRules(
        issued_only=settings.app.state == "issued",
        allowed_accounts=frozenset(settings.amo.allowed_accounts),
        default_domain=check_host((settings.amo.default_domain or "").encode(), allowed=settings.amo.allowed_domains),
        refresh=settings.refresh.rules,
        unproven=settings.limits.failed_codes,
        window=settings.limits.window,
        requests_per_second=settings.amo.requests_per_second,
    )
