"""Key rotation while the service runs."""

from datetime import timedelta
from typing import Any, cast

import pytest

from amo_callback.crypto import Cipher, EncryptedRecord, RecordKind, ReencryptedRecord, new_key
from amo_callback.errors import CommandFailed, DecryptionFailed, StoreUnavailable
from amo_callback.grant import AuthorizationRequest, GrantSecrets, IssuedState, NewConnection
from amo_callback.key_rotation import BATCH, Rotation, RotationResult
from amo_callback.model import Connection, TokenPair
from amo_callback.refresh.pending_pair import file_name, seal_pending
from amo_callback.store import Store
from tests.builders import a_connection, a_grant, a_refreshed, now, save
from tests.fakes import START, FakeClock, FaultyStore, MemoryRescue, Override, ShiftedClock

OLD, NEW = new_key(), new_key()
BEFORE, BOTH, AFTER = Cipher([OLD]), Cipher([NEW, OLD]), Cipher([NEW])
REQUEST = AuthorizationRequest(user="42", asserted_by_backend=False, challenge="challenge", state=b"the app's")
SECRETS = GrantSecrets(handle="handle", code=b"code", state=b"state", domain="a.amocrm.ru", ticket="", request=REQUEST)


def _tokens(number: int, *, refreshed: bool = False) -> tuple[str, str]:
    pair = _pair(number, refreshed=refreshed)
    return pair.access_token, pair.refresh_token


def _pair(number: int, *, refreshed: bool = False) -> TokenPair:
    token = f"{'second' if refreshed else 'first'} of {number}"
    return TokenPair(access_token=token, refresh_token=token, issued_at=START, expires_at=START)


def _sealed(number: int, cipher: Cipher = BEFORE, *, refreshed: bool = False) -> bytes:
    return cipher.seal_pair(_pair(number, refreshed=refreshed), connection_id=a_connection(number).id)


async def _fill(store: Store, count: int = 3) -> list[Connection]:
    """Store connections with their grants, a state and the canary, encrypted with the old key."""
    connections = []
    for number in range(count):
        connection = a_connection(number, sealed_pair=_sealed(number))
        grant = a_grant(f"code {number}")
        grant = a_grant(f"code {number}", sealed=BEFORE.seal_grant(SECRETS, code_hash=grant.code_hash))
        await store.claim_grant(grant, now=START)
        await store.save_connected(NewConnection(grant=grant, connection=connection, token_iat=None))
        connections.append(connection)
    sealed = BEFORE.seal_request(REQUEST, state_hash="state")
    await store.issue_state(IssuedState(state_hash="state", sealed=sealed, expires_at=START + timedelta(minutes=30)))
    await store.canary(BEFORE.seal_canary())
    return connections


def _rotation(store: Any, *, cipher: Cipher = BOTH, keys: int = 2, rescue: Any = None) -> Rotation:
    return Rotation(store=store, rescue=rescue or MemoryRescue(), cipher=cipher, keys=keys, clock=ShiftedClock())


async def _rotate(store: Any, **more: Any) -> RotationResult:
    return await _rotation(store, **more).run(lambda _: None)


async def _everything(store: Store) -> list[EncryptedRecord]:
    kinds = (RecordKind.CONNECTION, RecordKind.GRANT, RecordKind.STATE, RecordKind.CANARY)
    return [one for kind in kinds for one in await store.sealed(kind, after="", limit=10 * BATCH)]


async def test_rotation_reencrypts_every_record_with_new_key(store: Store) -> None:
    """Pairs, grants, states and the canary are re-encrypted, and then the old key is unused."""
    connections = await _fill(store)
    rotated = await _rotate(store)
    assert (rotated.reencrypted, rotated.is_complete, rotated.after.unused_keys) == (3 + 3 + 1 + 1, True, [1])
    for number, connection in enumerate(connections):
        stored = await now(store, connection)
        assert AFTER.open_tokens(stored.sealed_pair or b"", connection_id=stored.id) == _tokens(number)
        grant = await store.grant(a_grant(f"code {number}").code_hash)
        assert grant is not None
        assert AFTER.open_grant(grant.sealed or b"", code_hash=grant.code_hash) == SECRETS
    state = await store.issued_state("state")
    assert state is not None
    assert AFTER.open_request(state.sealed or b"", state_hash="state") == REQUEST
    canary = await store.canary(b"")
    AFTER.check_canary(canary)
    with pytest.raises(DecryptionFailed):
        BEFORE.check_canary(canary)
    [event] = await store.events(limit=10)
    assert (event.name, event.details) == ("keys.rotated", {"reencrypted": 8})


async def test_rotation_repeated_changes_nothing(store: Store) -> None:
    """Records encrypted with the newest key are not changed."""
    await _fill(store)
    await _rotate(store)
    before = await _everything(store)
    again = await _rotate(store)
    assert (again.reencrypted, again.is_complete) == (0, True)
    assert await _everything(store) == before
    assert len(await store.events(limit=10)) == 1


async def test_dry_run_counts_records_per_key_and_changes_nothing(store: Store) -> None:
    """Records of every kind and rescue files are counted per key."""
    connections = await _fill(store)
    await store.save_refreshed(a_refreshed(connections[0], sealed_pair=_sealed(0, BOTH, refreshed=True)))
    before = await _everything(store)
    done: list[int] = []
    usage = await _rotation(store).dry_run(done.append)
    newest, older = usage.keys
    assert (dict(+newest), dict(+older)) == (
        {RecordKind.CONNECTION: 1},
        {RecordKind.CONNECTION: 2, RecordKind.GRANT: 3, RecordKind.STATE: 1, RecordKind.CANARY: 1},
    )
    assert done[-1] == await store.count_sealed()
    assert await _everything(store) == before


async def test_rotation_interrupted_continues_with_remaining_records(store: Store, clock: FakeClock) -> None:
    """Committed pages stay, and the canary keeps the old key until the end, so no service starts without it."""
    await _fill(store, 2 * BATCH + 1)
    faulty = FaultyStore(store, clock)

    def kill(_resealed: object) -> None:
        if faulty.asked["reencrypt"] == 2:
            raise StoreUnavailable("killed")

    faulty.before["reencrypt"] = kill
    with pytest.raises(StoreUnavailable):
        await _rotate(faulty)
    BEFORE.check_canary(await store.canary(b""))
    rotated = await _rotate(store)
    total = await store.count_sealed()
    assert (rotated.reencrypted, rotated.is_complete) == (total - BATCH, True)


def _refresh_meanwhile(store: Store, connection: Connection, cipher: Cipher) -> Any:
    """Return a store in which a refresh is stored between the read and the write."""
    faulty = FaultyStore(store, FakeClock())

    async def refresh(_resealed: object) -> None:
        if faulty.asked["reencrypt"] == 1:
            pair = _sealed(0, cipher, refreshed=True)
            assert await store.save_refreshed(a_refreshed(connection, sealed_pair=pair))

    faulty.before["reencrypt"] = refresh
    return faulty


async def test_rotation_keeps_pair_refreshed_meanwhile(store: Store) -> None:
    """A pair refreshed meanwhile is kept, and is complete if encrypted with the newest key."""
    first, *_ = await _fill(store)
    rotated = await _rotate(_refresh_meanwhile(store, first, BOTH))
    stored = await now(store, first)
    assert AFTER.open_tokens(stored.sealed_pair or b"", connection_id=stored.id) == _tokens(0, refreshed=True)
    assert (rotated.reencrypted, rotated.is_complete, stored.pair_version) == (7, True, 2)


async def test_rotation_detects_process_with_old_key(store: Store) -> None:
    """A pair encrypted with the old key meanwhile shows a process that still uses it, so no key is unused."""
    first, *_ = await _fill(store)
    rotated = await _rotate(_refresh_meanwhile(store, first, BEFORE))
    stored = await now(store, first)
    assert AFTER.open_tokens(stored.sealed_pair or b"", connection_id=stored.id) == _tokens(0, refreshed=True)
    assert (rotated.reencrypted, rotated.old_key_still_in_use, rotated.is_complete) == (7, True, False)
    BEFORE.check_canary(await store.canary(b""))
    assert (await _rotate(store)).is_complete  # after that process has restarted


async def test_rotation_undecryptable_record_is_listed_and_skipped(store: Store) -> None:
    """A record that no key decrypts is listed and unchanged, and the others are re-encrypted."""
    first, second, third = await _fill(store)
    copied = await now(store, second)
    [read] = [one for one in await store.sealed(RecordKind.CONNECTION, after="", limit=10) if one.name == first.id]
    await store.reencrypt([ReencryptedRecord(read=read, content=copied.sealed_pair or b"")])
    rotated = await _rotate(store)
    assert [one.place for one in rotated.after.unreadable] == [f"connection:{first.id}"]
    assert (rotated.reencrypted, rotated.is_complete, rotated.after.unused_keys) == (7, False, [1])
    assert (await now(store, first)).sealed_pair == copied.sealed_pair
    for one in (second, third):
        AFTER.open((await now(store, one)).sealed_pair or b"", context=f"connection:{one.id}")


@pytest.mark.parametrize(("outer", "inner"), [(BEFORE, BEFORE), (BOTH, BEFORE)], ids=["old", "old-within-new"])
async def test_rotation_pending_write_keeps_its_key(store: Store, outer: Cipher, inner: Cipher) -> None:
    """A pending write belongs to its process and stays unchanged, and its key counts as used."""
    [connection] = await _fill(store, 1)
    rescue = MemoryRescue()
    pending_pair = a_refreshed(connection, sealed_pair=_sealed(0, inner, refreshed=True))
    rescue.files[file_name(pending_pair)] = content = seal_pending(pending_pair, outer)
    rotated = await _rotate(store, rescue=rescue)
    assert (dict(+rotated.after.keys[1]), rotated.after.unused_keys) == (
        {RecordKind.RESCUE: 1, RecordKind.CANARY: 1},
        [],
    )
    assert not rotated.is_complete
    BEFORE.check_canary(await store.canary(b""))
    assert rescue.files == {file_name(pending_pair): content}
    rescue.files.clear()
    await store.save_refreshed(pending_pair)  # by the process that held it
    again = await _rotate(store, rescue=rescue)
    assert (again.reencrypted, again.is_complete) == (2, True)


async def test_rotation_pending_grant_needs_keys_of_pair_and_secrets(store: Store) -> None:
    """The keys of a granted pair and of its grant's secrets count as used."""
    grant = a_grant("rescued")
    grant = a_grant("rescued", sealed=BEFORE.seal_grant(SECRETS, code_hash=grant.code_hash))
    pending_pair = NewConnection(grant=grant, connection=a_connection(0, sealed_pair=_sealed(0, AFTER)), token_iat=None)
    rescue = MemoryRescue()
    rescue.files = {file_name(pending_pair): seal_pending(pending_pair, AFTER), "somebody's": b"nonsense"}
    usage = await _rotation(store, rescue=rescue).dry_run(lambda _: None)
    assert ([dict(+found) for found in usage.keys], usage.unused_keys) == ([{}, {RecordKind.RESCUE: 1}], [])
    assert [one.place for one in usage.unreadable] == ["rescue:somebody's"]


async def test_rotation_reencrypts_raw_answer(store: Store) -> None:
    """A raw answer is re-encrypted, because it may be kept for long; an undecryptable one is listed and unchanged."""
    await _fill(store, 1)
    rescue = MemoryRescue()
    rescue.files = {"a-1.raw": BEFORE.seal(b"an answer", context="rescue:a-1.raw"), "b-1.raw": b"nonsense"}
    usage = await _rotation(store, rescue=rescue).dry_run(lambda _: None)
    assert usage.keys[1][RecordKind.RESCUE] == 1
    rotated = await _rotate(store, rescue=rescue)
    assert AFTER.open(rescue.files["a-1.raw"], context="rescue:a-1.raw") == b"an answer"
    assert rescue.files["b-1.raw"] == b"nonsense"
    assert [one.place for one in rotated.after.unreadable] == ["rescue:b-1.raw"]
    assert (rotated.after.keys[0][RecordKind.RESCUE], rotated.after.keys[1][RecordKind.RESCUE]) == (1, 0)


async def test_rotation_unreadable_rescue_folder_fails(store: Store) -> None:
    """An unreadable rescue folder is an error, and nothing is changed, because its keys are unknown."""

    class Locked(MemoryRescue):
        def read(self) -> Any:
            raise PermissionError(13, "Permission denied")

    await _fill(store)
    before = await _everything(store)
    with pytest.raises(CommandFailed, match="Permission denied"):
        await _rotate(store, rescue=Locked())
    assert await _everything(store) == before


async def test_rotation_counts_several_keys_separately(store: Store) -> None:
    """Of several keys each is counted, and all but the newest are unused afterwards."""
    unused = new_key()
    await _fill(store, 1)
    await save(store, a_connection(7, sealed_pair=_sealed(7, Cipher([NEW]))), code="7")
    newest = new_key()
    keys = [newest, NEW, unused, OLD]
    rotation = _rotation(store, cipher=Cipher(keys), keys=len(keys))
    usage = await rotation.dry_run(lambda _: None)
    assert ([found[RecordKind.CONNECTION] for found in usage.keys], usage.unused_keys) == ([0, 1, 0, 1], [2])
    rotated = await rotation.run(lambda _: None)
    assert rotated.after.unused_keys == [1, 2, 3]
    assert [one.kind for one in rotated.after.unreadable] == [RecordKind.GRANT]  # the arbitrary bytes of `save`


async def test_rotation_pauses_between_transactions(store: Store) -> None:
    """After each written page other processes can take the lock."""
    await _fill(store, BATCH + 1)
    clock = ShiftedClock()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    rotation = Rotation(
        store=store, rescue=MemoryRescue(), cipher=BOTH, keys=2, clock=cast("Any", Override(clock, sleep=sleep))
    )
    await rotation.run(lambda _: None)
    assert len(slept) == 2 + 2 + 1
    assert min(slept) > 0
