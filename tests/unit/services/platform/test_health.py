"""What makes a process ready, degraded or not ready."""

from __future__ import annotations

import pytest

from services.platform.health import NOT_SERVING, SERVING, STARTING, Health

LOST = "TRANSIENT_FAILURE"


@pytest.mark.parametrize(
    ("health", "status"),
    [
        (Health(SERVING, {"tweet": SERVING}), "ready"),
        (Health(SERVING, {"tweet": SERVING}, {"graph": "READY"}), "ready"),
        (Health(SERVING, {}, {"graph": "READY", "tweet": "READY"}), "ready"),
        (Health(SERVING, {"tweet": SERVING}, {"graph": "READY", "identity": LOST}), "degraded"),
        (Health(SERVING, {}, {"graph": LOST, "tweet": LOST}), "degraded"),
        (Health(SERVING, {"tweet": SERVING, "graph": STARTING}), "not_ready"),
        (Health(STARTING, {}, {"tweet": "READY"}), "not_ready"),
        (Health(NOT_SERVING, {"tweet": NOT_SERVING}), "not_ready"),
        (Health(SERVING, {"tweet": SERVING}, {"graph": "READY"}, {"ids": "the clock is wrong"}), "degraded"),
        # Nothing to serve and nobody to call.
        (Health(SERVING), "not_ready"),
    ],
)
def test_health_of_services_and_peers_has_one_status(health: Health, status: str) -> None:
    assert (health.status, health.ready) == (status, status != "not_ready")
