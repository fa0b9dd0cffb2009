"""What is counted, in Prometheus's words: its own registry, and no label that grows with accounts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Info
from prometheus_client.exposition import generate_latest

from amo_callback import __version__


class Metrics:
    """Count what happens at the private door."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        Info("amo_callback_build", "The version that runs.", registry=self._registry).info({"version": __version__})
        self._refused = Counter(
            "amo_callback_api_keys_refused", "Requests with no API key, or an unknown one.", registry=self._registry
        )
        handed_out = Counter(
            "amo_callback_tokens_handed_out", "Access tokens handed out.", ["outcome"], registry=self._registry
        )
        self._handed_out = {stale: handed_out.labels("stale" if stale else "fresh") for stale in (False, True)}

    def key_refused(self) -> None:
        """Count a request whose API key is none of ours."""
        self._refused.inc()

    def handed_out(self, *, stale: bool) -> None:
        """Count an access token that was handed out."""
        self._handed_out[stale].inc()

    def text(self) -> bytes:
        """Return all of it in Prometheus's text format."""
        return generate_latest(self._registry)
