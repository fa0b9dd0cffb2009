"""Fixtures that the access-token tests share with the refresh tests."""

from tests.refresh.conftest import amo, clock, engine, harness, pytest_generate_tests, store, url

__all__ = ["amo", "clock", "engine", "harness", "pytest_generate_tests", "store", "url"]
