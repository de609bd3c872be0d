"""Reads the metrics of a process from its ops port."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from gateway_http.ops import METRICS_MAX_AGE_S
from roost_cli.exit_codes import CommandError

TIMEOUT_S = 5.0

# The value of each sample, by its name and its labels in alphabetical order.
Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


async def current(address: str) -> Samples:
    """Returns the metrics of the process whose ops port is at `address` (HOST:PORT). Waits until the process no longer
    serves metrics from before the call. Raises CommandError if there is no valid response."""
    await asyncio.sleep(METRICS_MAX_AGE_S)
    return await asyncio.to_thread(scrape, address)


def scrape(address: str) -> Samples:
    """Returns the metrics of the process whose ops port is at `address` (HOST:PORT); they may be METRICS_MAX_AGE_S
    seconds old. Raises CommandError if there is no valid response."""
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise CommandError(f"no metrics are served at {address}: {error}") from error
    finally:
        connection.close()
    return parse(text)


def parse(text: str) -> Samples:
    """Returns the samples in `text`, which is in the Prometheus text format."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    """Returns the sum of all samples with this name and at least these labels; 0 if there are none."""
    wanted = set(labels.items())
    return sum(value for (found, has), value in samples.items() if found == name and wanted <= set(has))
