"""Proxies that the environment names."""

from __future__ import annotations

import pytest

from amo_callback.cli.checks.finding import Severity
from amo_callback.cli.checks.settings import check_outgoing

PROXY = "http://user:sekret@proxy.example:3128"


@pytest.mark.parametrize(
    "name", ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "Https_Proxy"]
)
def test_a_variable_that_names_a_proxy_is_named_and_its_value_is_not(name: str) -> None:
    """It may hold a password."""
    [finding] = check_outgoing({"PATH": "/bin", name: PROXY})
    assert (finding.severity, finding.message.startswith(f"{name}: ignored")) == (Severity.WARN, True)
    assert "sekret" not in str(finding)
    assert "proxy.example" not in str(finding)


def test_several_variables_are_one_finding() -> None:
    """All of them are named."""
    [finding] = check_outgoing({"https_proxy": PROXY, "HTTP_PROXY": PROXY})
    assert finding.message.startswith("HTTP_PROXY, https_proxy: ignored")


@pytest.mark.parametrize("environ", [{}, {"NO_PROXY": "localhost"}, {"HTTP_PROXY": ""}, {"MY_HTTP_PROXY": PROXY}])
def test_without_such_a_variable_nothing_is_said(environ: dict[str, str]) -> None:
    """Nor where it is empty, which is how it is switched off."""
    assert list(check_outgoing(environ)) == []
