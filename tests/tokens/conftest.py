"""Take the fixtures that the tests of access tokens share with those of refreshes."""

from tests.refresh.conftest import amo, clock, engine, harness, pytest_generate_tests, store, url

__all__ = ["amo", "clock", "engine", "harness", "pytest_generate_tests", "store", "url"]
