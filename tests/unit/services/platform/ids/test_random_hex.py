"""Random ids for logs and traces."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from services.platform.ids.random_hex import random_hex


@pytest.mark.parametrize("size", [8, 16])
def test_random_hex_returns_different_texts_of_size(size: int) -> None:
    texts = {random_hex(size) for _ in range(1_000)}
    assert len(texts) == 1_000
    assert all(re.fullmatch(f"[0-9a-f]{{{2 * size}}}", text) for text in texts)


def test_random_hex_differs_in_each_process() -> None:
    script = "from services.platform.ids.random_hex import random_hex; print(random_hex(8))"
    texts = {subprocess.check_output([sys.executable, "-c", script]) for _ in range(3)}
    assert len(texts) == 3
