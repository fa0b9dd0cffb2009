"""What a page shows, as a frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One page in one of its variants: `connected`, `exchanging`, `gone`, or one of the deep link's error words."""

    variant: str
    status: int
    """The answer's, in HTTP."""
    link: str | None = field(default=None, repr=False)
    """The way back to the app, where there is one."""
    intent: str | None = field(default=None, repr=False)
    """The same as Android's `intent:`."""
    sends: bool = False
    """Whether the page tries the link once by itself."""
    tried: bool = False
    """Whether it did so before: then whoever looks has come back."""
    again: str | None = None
    """The address that tries once more, where the failure is a passing one; empty: the page's own."""
    domain: str | None = None
    """The account that was connected."""
    support: str | None = None
    """The grant's name for support."""
