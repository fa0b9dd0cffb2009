"""The cost of faults: backends' answers and stored pairs, compared with the stand-in's ledger."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from amo_callback.amo.sandbox.ledger import Ledger

ACCESS, LATENCY = 30.0, 1.5
"""An access token's lifetime unless it is refreshed, and AMO's latency, in seconds."""
RECENT = timedelta(seconds=6)
"""The time for which a token that became invalid may still be handed out as fresh."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HandOut:
    """A request for an access token, and its answer."""

    host: str
    began_at: datetime
    ended_at: datetime
    forced: bool
    status: int
    token: str = field(repr=False)
    stale: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class IssuedPair:
    """An issued token pair, and the times when the service first had it and when its access token became invalid."""

    host: str
    obtained_at: datetime | None
    invalid_at: datetime


def costs(ledger: Ledger, hand_outs: Sequence[HandOut], stored: Mapping[str, datetime]) -> dict[str, int]:
    """Count errors.

    `stored` maps each refresh token observed in the database to the time of its first observation.
    `beyond the rules` counts double spends that no unknown outcome permits.
    """
    obtained = dict(stored)
    refresh_tokens = dict(zip(ledger.access_tokens, ledger.issued, strict=True))
    for hand_out in hand_outs:
        if hand_out.token:
            name = refresh_tokens[hand_out.token]
            obtained[name] = min(obtained.get(name, hand_out.ended_at), hand_out.ended_at)
    pairs = _issued(ledger, obtained)
    invalid_for = [
        (hand_out.token, hand_out.began_at - pairs[hand_out.token].invalid_at)
        for hand_out in hand_outs
        if hand_out.token and not hand_out.stale
    ]
    older = [token for token, since in invalid_for if since > RECENT]
    return {
        "double spends": ledger.doubles(),
        "beyond the rules": _beyond_the_rules(ledger, obtained),
        "not served": sum(_is_refused(hand_out, pairs.values()) for hand_out in hand_outs),
        "invalid as fresh": len(older),
        "different tokens": len(set(older)),
        "invalid for under 6 s": sum(timedelta() < since <= RECENT for _, since in invalid_for),
    }


def _issued(ledger: Ledger, obtained: Mapping[str, datetime]) -> dict[str, IssuedPair]:
    """Return the issued pairs by access token."""
    spent = [entry for entry in ledger.entries if entry.spent]
    spent_at = {entry.presented: entry.at for entry in spent}
    pairs = {}
    for access_token, refresh_token, entry in zip(ledger.access_tokens, ledger.issued, spent, strict=True):
        expires_at = entry.at + timedelta(seconds=ACCESS)
        pairs[access_token] = IssuedPair(
            host=entry.host,
            obtained_at=obtained.get(refresh_token),
            invalid_at=min(expires_at, spent_at.get(refresh_token, expires_at)),
        )
    return pairs


def _beyond_the_rules(ledger: Ledger, obtained: Mapping[str, datetime]) -> int:
    """Count presentations of a spent token except the first one after an unknown outcome.

    The outcome was known if the token's next pair had been obtained before the request was sent.
    """
    issued = iter(ledger.issued)
    successors, again, beyond = dict[str, str](), set[str](), 0
    for entry in ledger.entries:
        if entry.presented in successors:
            known_at = obtained.get(successors[entry.presented])
            sent_before = entry.at - timedelta(seconds=LATENCY + 1)
            beyond += entry.presented in again or (known_at is not None and known_at < sent_before)
            again.add(entry.presented)
        if entry.spent:
            successors[entry.presented] = next(issued)
    return beyond


def _is_refused(hand_out: HandOut, pairs: Iterable[IssuedPair]) -> bool:
    """Check whether an unforced request got no token although the service had a valid token throughout."""
    if hand_out.status == 200 or hand_out.forced:
        return False
    return any(
        pair.host == hand_out.host
        and pair.obtained_at is not None
        and pair.obtained_at <= hand_out.began_at
        and pair.invalid_at >= hand_out.ended_at
        for pair in pairs
    )
