"""Fixtures of the contract tests of `roost events`."""

from __future__ import annotations

import pytest

from tests.contract.platform.events.conftest import Sink


@pytest.fixture
def sink() -> Sink:
    return Sink()
