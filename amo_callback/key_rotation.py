"""Key rotation: re-encrypt records that older keys encrypted, using the newest key, while the service runs.

A record is replaced only if it is unchanged since it was read. No progress is stored: records that the newest key
decrypts need no work, so an interrupted rotation can be started again.

The canary, which each process decrypts at startup, is re-encrypted last, and only after all other records. Until then,
a process that has only the newest key does not start. Afterwards, a process that has only older keys does not start.

Rescue files with pairs are counted but not re-encrypted, because the process that holds the same pair in memory removes
the file once the pair is stored. A file rewritten after its removal would remain. Raw answers (AMO responses in
which no pair was found) are re-encrypted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from amo_callback.crypto import EncryptedRecord, RecordKind, ReencryptedRecord
from amo_callback.errors import CommandFailed, DecryptionFailed
from amo_callback.events import Event
from amo_callback.refresh.pending_pair import open_pending, sealed_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from amo_callback.clock import Clock
    from amo_callback.crypto import Cipher
    from amo_callback.refresh.rescue import RescueFolder
    from amo_callback.store import Store

BATCH = 100
"""Records per transaction."""
_REST = 0.02
"""The minimum number of seconds between two transactions, so that other processes can acquire SQLite's lock."""
_STORED = (RecordKind.CONNECTION, RecordKind.GRANT, RecordKind.STATE)


@dataclass(kw_only=True, slots=True)
class KeyUsage:
    """The number of records that each key decrypts."""

    keys: list[Counter[RecordKind]]
    """The number of records by kind for each key, starting with the newest key."""
    unreadable: list[EncryptedRecord] = field(default_factory=list)
    reencrypted: int = 0
    outdated: int = 0
    """Stored records, excluding the canary, that needed an older key when they were read."""

    @property
    def unused_keys(self) -> Sequence[int]:
        """The indexes of older keys that decrypt no record."""
        return [number for number, found in enumerate(self.keys) if number > 0 and not found.total()]


@dataclass(frozen=True, kw_only=True, slots=True)
class RotationResult:
    reencrypted: int
    after: KeyUsage
    old_key_still_in_use: bool
    """Whether another process encrypts with an older key, because the newest key is not first in its configuration."""

    @property
    def is_complete(self) -> bool:
        """Whether the newest key decrypts every record, and no process encrypts with an older key."""
        return (
            not self.old_key_still_in_use
            and not self.after.unreadable
            and len(self.after.unused_keys) == len(self.after.keys) - 1
        )


class Rotation:
    """A key rotation, which re-encrypts every record with the newest key; `keys` is the number of keys."""

    def __init__(self, *, store: Store, rescue: RescueFolder, cipher: Cipher, keys: int, clock: Clock) -> None:
        self._store = store
        self._rescue = rescue
        self._cipher = cipher
        self._keys = keys
        self._clock = clock

    async def dry_run(self, advance: Callable[[int], None]) -> KeyUsage:
        """Count the records that each key decrypts; change nothing."""
        return await self._scan((*_STORED, RecordKind.CANARY), advance, reencrypt=False)

    async def run(self, advance: Callable[[int], None]) -> RotationResult:
        """Re-encrypt the records that are encrypted with older keys.

        A second pass finds records that another process wrote with an older key during the first pass.
        """
        usage = await self._scan(_STORED, advance, reencrypt=True)
        reencrypted, old_key_still_in_use = usage.reencrypted, False
        if usage.outdated:
            usage = await self._scan(_STORED, lambda _: None, reencrypt=True)
            reencrypted += usage.reencrypted
            old_key_still_in_use = usage.outdated > 0
        done = not usage.outdated and len(usage.unused_keys) == self._keys - 1
        for canary in await self._store.sealed(RecordKind.CANARY, after="", limit=1):
            reencrypted += await self._reencrypt_page([canary], usage, reencrypt=done)
        if reencrypted:
            await self._store.record(Event(name="keys.rotated", fields={"reencrypted": reencrypted}))
        return RotationResult(reencrypted=reencrypted, after=usage, old_key_still_in_use=old_key_still_in_use)

    async def _scan(self, kinds: Sequence[RecordKind], advance: Callable[[int], None], *, reencrypt: bool) -> KeyUsage:
        usage = KeyUsage(keys=[Counter() for _ in range(self._keys)])
        try:
            # The rescue files are counted before the store, so that a pair stored during the count is not missed.
            self._count_rescued(usage)
            self._reencrypt_raw_answers(usage, reencrypt=reencrypt)
        except OSError as error:
            raise CommandFailed(f"cannot read or write the rescue folder: {error.strerror}") from None
        done = 0
        for kind in kinds:
            after = ""
            while page := await self._store.sealed(kind, after=after, limit=BATCH):
                began = self._clock.monotonic()
                written = await self._reencrypt_page(page, usage, reencrypt=reencrypt)
                usage.reencrypted += written
                after = page[-1].name
                done += len(page)
                advance(done)
                if written:
                    await self._clock.sleep(max(self._clock.monotonic() - began, _REST))
        return usage

    async def _reencrypt_page(self, page: Sequence[EncryptedRecord], usage: KeyUsage, *, reencrypt: bool) -> int:
        """Count a page of records, re-encrypt those that use older keys, and return the number re-encrypted."""
        outdated = []
        for one in page:
            number = self._count(one, usage)
            if number is not None and number > 0:
                outdated.append((one, number))
        usage.outdated += sum(one.kind is not RecordKind.CANARY for one, _ in outdated)
        if not reencrypt or not outdated:
            return 0
        reencrypted = [
            ReencryptedRecord(read=one, content=self._cipher.reencrypt(one.content, context=one.place))
            for one, _ in outdated
        ]
        left = {one.name for one in await self._store.reencrypt(reencrypted)}
        for one, number in outdated:
            usage.keys[number][one.kind] -= 1  # a record that has changed is counted by the second pass
            usage.keys[0][one.kind] += one.name not in left
        return len(outdated) - len(left)

    def _count(self, one: EncryptedRecord, usage: KeyUsage) -> int | None:
        try:
            number = self._cipher.key_index(one.content, context=one.place)
        except DecryptionFailed:
            usage.unreadable.append(one)
            return None
        usage.keys[number][one.kind] += 1
        return number

    def _count_rescued(self, usage: KeyUsage) -> None:
        """Count each rescue file under the oldest key that is needed for the file or for a record in it."""
        for name, content in self._rescue.read().items():
            file = EncryptedRecord(kind=RecordKind.RESCUE, name=name, content=content or b"")
            try:
                inner = sealed_in(open_pending(name, file.content, self._cipher))
                numbers = [self._cipher.key_index(one.content, context=one.place) for one in (file, *inner)]
            except DecryptionFailed:
                usage.unreadable.append(file)
            else:
                usage.keys[max(numbers)][RecordKind.RESCUE] += 1

    def _reencrypt_raw_answers(self, usage: KeyUsage, *, reencrypt: bool) -> None:
        """Count raw answers, and re-encrypt those that use older keys; raw answers are kept for months."""
        for name, content in self._rescue.read_raw().items():
            file = EncryptedRecord(kind=RecordKind.RESCUE, name=name, content=content or b"")
            number = self._count(file, usage)
            if number and reencrypt:
                self._rescue.write(name, self._cipher.reencrypt(file.content, context=file.place))
                usage.keys[number][RecordKind.RESCUE] -= 1
                usage.keys[0][RecordKind.RESCUE] += 1
                usage.reencrypted += 1
