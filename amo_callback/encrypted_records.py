"""What lies sealed, whatever it is: what it belongs to, and its bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class RecordKind(StrEnum):
    """What a sealed record belongs to."""

    CONNECTION = "connection"
    GRANT = "grant"
    STATE = "state"
    CANARY = "canary"
    RESCUE = "rescue"


def context_of(kind: RecordKind, name: str) -> str:
    """Return the name that a record is bound to: sealed for this place, it opens in no other."""
    return kind.value if kind is RecordKind.CANARY else f"{kind.value}:{name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncryptedRecord:
    """A sealed record, as it was read."""

    kind: RecordKind
    name: str
    content: bytes = field(repr=False)

    @property
    def place(self) -> str:
        """What it is bound to."""
        return context_of(self.kind, self.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReencryptedRecord:
    """The same under another key. It takes the place of the very bytes that were read, and of no others."""

    read: EncryptedRecord
    content: bytes = field(repr=False)
