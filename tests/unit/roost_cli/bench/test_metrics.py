"""Tests the reading of metrics."""

from __future__ import annotations

import pytest

from roost_cli.bench import metrics
from roost_cli.exit_codes import CommandError

TEXT = """\
# TYPE builds counter
builds_total{outcome="built",service="timeline"} 5.0
builds_total{outcome="refused",service="timeline"} 2.0
"""


def test_total_sums_samples_with_labels() -> None:
    found = metrics.parse(TEXT)
    assert metrics.total(found, "builds_total") == 7.0
    assert metrics.total(found, "builds_total", outcome="built") == 5.0
    assert metrics.total(found, "absent_total") == 0


def test_scrape_without_server_raises_command_error() -> None:
    with pytest.raises(CommandError, match="no metrics are served"):
        metrics.scrape("127.0.0.1:1")
