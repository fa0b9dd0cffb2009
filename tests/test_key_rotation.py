"""Another encryption key, while everything goes on."""

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
    """Have connections, a state and the canary, as the old key has sealed them, each connection with its grant."""
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


async def test_whatever_the_old_key_sealed_opens_with_the_new_one_alone(store: Store) -> None:
    """Pairs, what grants hand back, what states stand for, and the canary; then nothing needs the old key."""
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


async def test_a_second_run_changes_nothing(store: Store) -> None:
    """What the newest key opens is done."""
    await _fill(store)
    await _rotate(store)
    before = await _everything(store)
    again = await _rotate(store)
    assert (again.reencrypted, again.is_complete) == (0, True)
    assert await _everything(store) == before
    assert len(await store.events(limit=10)) == 1


async def test_a_survey_counts_by_key_and_changes_nothing(store: Store) -> None:
    """Of every kind, and of the rescue files."""
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


async def test_whoever_is_interrupted_goes_on_where_he_was(store: Store, clock: FakeClock) -> None:
    """What was committed stays; until the end the canary is the old key's, so nobody starts with the new one alone."""
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


def _meanwhile(store: Store, connection: Connection, cipher: Cipher) -> Any:
    """Return a store in which a refresh is stored between what is read and what is written."""
    faulty = FaultyStore(store, FakeClock())

    async def refresh(_resealed: object) -> None:
        if faulty.asked["reencrypt"] == 1:
            pair = _sealed(0, cipher, refreshed=True)
            assert await store.save_refreshed(a_refreshed(connection, sealed_pair=pair))

    faulty.before["reencrypt"] = refresh
    return faulty


async def test_a_refresh_that_happens_in_between_wins(store: Store) -> None:
    """Its pair is the one that is kept; sealed by a process that has the newest key first, it is done, too."""
    first, *_ = await _fill(store)
    rotated = await _rotate(_meanwhile(store, first, BOTH))
    stored = await now(store, first)
    assert AFTER.open_tokens(stored.sealed_pair or b"", connection_id=stored.id) == _tokens(0, refreshed=True)
    assert (rotated.reencrypted, rotated.is_complete, stored.pair_version) == (7, True, 2)


async def test_a_process_that_seals_with_the_old_key_is_noticed(store: Store) -> None:
    """Its pair is sealed again, but it will seal more: no key is free yet, and the canary stays the old key's."""
    first, *_ = await _fill(store)
    rotated = await _rotate(_meanwhile(store, first, BEFORE))
    stored = await now(store, first)
    assert AFTER.open_tokens(stored.sealed_pair or b"", connection_id=stored.id) == _tokens(0, refreshed=True)
    assert (rotated.reencrypted, rotated.old_key_still_in_use, rotated.is_complete) == (7, True, False)
    BEFORE.check_canary(await store.canary(b""))
    assert (await _rotate(store)).is_complete  # once that process was restarted


async def test_what_no_key_opens_is_told_and_left(store: Store) -> None:
    """A row that somebody has copied over another one, or a key that is lost: the others are sealed again."""
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
async def test_a_pair_in_the_rescue_folder_keeps_its_key(store: Store, outer: Cipher, inner: Cipher) -> None:
    """The file is its process's, and stays as it is; the key that it needs is told to be needed."""
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
    await store.save_refreshed(pending_pair)  # by whoever held it
    again = await _rotate(store, rescue=rescue)
    assert (again.reencrypted, again.is_complete) == (2, True)


async def test_a_granted_pair_in_the_rescue_folder_needs_the_keys_of_all_that_is_in_it(store: Store) -> None:
    """Of its pair, and of what its grant hands back."""
    grant = a_grant("rescued")
    grant = a_grant("rescued", sealed=BEFORE.seal_grant(SECRETS, code_hash=grant.code_hash))
    pending_pair = NewConnection(grant=grant, connection=a_connection(0, sealed_pair=_sealed(0, AFTER)), token_iat=None)
    rescue = MemoryRescue()
    rescue.files = {file_name(pending_pair): seal_pending(pending_pair, AFTER), "somebody's": b"nonsense"}
    usage = await _rotation(store, rescue=rescue).dry_run(lambda _: None)
    assert ([dict(+found) for found in usage.keys], usage.unused_keys) == ([{}, {RecordKind.RESCUE: 1}], [])
    assert [one.place for one in usage.unreadable] == ["rescue:somebody's"]


async def test_a_raw_answer_is_sealed_again(store: Store) -> None:
    """It may lie there for longer than a key is kept; what no key decrypts is told, and left."""
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


async def test_a_rescue_folder_that_cannot_be_read_is_told(store: Store) -> None:
    """What it needs is not known, so nothing is changed."""

    class Locked(MemoryRescue):
        def read(self) -> Any:
            raise PermissionError(13, "Permission denied")

    await _fill(store)
    before = await _everything(store)
    with pytest.raises(CommandFailed, match="Permission denied"):
        await _rotate(store, rescue=Locked())
    assert await _everything(store) == before


async def test_of_several_keys_each_is_told_by_itself(store: Store) -> None:
    """Two old ones, and one that was never used: none is needed afterwards."""
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
    assert [one.kind for one in rotated.after.unreadable] == [RecordKind.GRANT]  # the bytes that `save` makes up


async def test_others_have_time_to_write_between_two_transactions(store: Store) -> None:
    """After each page that was written somebody else may have the lock."""
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
