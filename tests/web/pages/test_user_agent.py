"""Who looks at a page: their browser, and their language."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amo_callback.web.pages.render import LANGUAGES
from amo_callback.web.pages.user_agent import Kind, parse_user_agent
from tests.web.agents import AGENTS


@pytest.mark.parametrize("name", AGENTS)
def test_each_browser_is_taken_for_what_it_is(name: str) -> None:
    """Real browsers are told from views inside other apps, and phones from everything else."""
    kind, agent = AGENTS[name]
    visitor = parse_user_agent(user_agent=agent, accept_language="", languages=LANGUAGES)
    assert visitor.kind is kind
    assert visitor.allows_auto_open == (kind in {Kind.IOS, Kind.ANDROID})


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("uk", "uk"),
        ("uk-UA", "uk"),
        ("UK-ua", "uk"),
        ("ru-RU,ru;q=0.9,en-US;q=0.8,en;q=0.7", "ru"),
        ("uk-UA,uk;q=0.9,ru;q=0.8", "uk"),
        ("ru;q=0.8, uk;q=0.9", "uk"),
        ("de-DE,de;q=0.9,ru;q=0.1", "ru"),
        ("de, fr;q=0.5", "en"),
        ("ru-Cyrl-RU-x-private", "ru"),
        ("ru ; Q=0.5 , uk;q=0.4", "ru"),
        ("ru;q=0.5,uk;q=0.5", "ru"),
        ("uk;q=0", "en"),
        ("uk;q=0.000, ru;q=0.001", "ru"),
        ("uk-UA;q=0, uk;q=0.5", "uk"),
        ("en;q=0, de", "uk"),
        ("en;q=0, uk;q=0, ru;q=0", "en"),
        ("*", "en"),
        ("*, ru;q=0.1", "ru"),
        ("de, *;q=0.5", "en"),
        ("russian", "en"),
        ("ru_RU, uk;q=0.1", "uk"),
        ("ru;q=2, uk;q=0.1", "uk"),
        ("ru;q=, uk;q=0.1", "uk"),
        ("ru;q=0.1234, uk;q=0.1", "uk"),
        ("ru;q=\u0660.\u0665, uk;q=0.1", "uk"),
        ("ru;level=1, uk;q=0.1", "uk"),
        (",,;q=1,, ,uk", "uk"),
        ("de," * 200 + "ru", "en"),
        ("x" * 509 + ",ru-RU", "en"),
    ],
)
def test_the_language_is_chosen_as_the_header_weighs_it(accepted: str, language: str) -> None:
    """By weight, else in order; a range is shortened until it fits; what is malformed or too long is not there."""
    assert parse_user_agent(user_agent="", accept_language=accepted, languages=LANGUAGES).language == language


@given(agent=st.text(st.characters(), max_size=300), accepted=st.text(st.characters(), max_size=300))
def test_no_header_whatsoever_raises(agent: str, accepted: str) -> None:
    """Anything may stand in a header, lone surrogates too: somebody of some kind is found, who reads some language."""
    assert parse_user_agent(user_agent=agent, accept_language=accepted, languages=LANGUAGES).language in LANGUAGES


@pytest.mark.parametrize("piece", ["Android ", "iPhone", ",", "a-", "ru;q=0.5,", "\t", " ;", "ru \t\t\t\t", "; wv"])
def test_a_huge_header_costs_nothing(piece: str) -> None:
    """Thirty kilobytes of what is meant to make us look again and again are read in no time."""
    started = time.thread_time()  # of this thread alone, however busy the machine is
    parse_user_agent(user_agent=piece * (2048 // len(piece)), accept_language=piece * 3000, languages=LANGUAGES)
    assert time.thread_time() - started < 1
