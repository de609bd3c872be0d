"""What the commands work on."""

from __future__ import annotations

import pytest

from tests.contract.platform.events.conftest import Sink


@pytest.fixture
def sink() -> Sink:
    return Sink()
