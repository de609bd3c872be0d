"""Long call deadlines for tests: a busy machine makes calls slow, and a test that is not about deadlines must not fail then."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pkgutil import resolve_name
from typing import Any

import pytest
from roost.options.v1 import options_pb2

from services.platform.rpc.contract import Method, methods
from services.platform.transport import batching

# Tests that share their cores with other work take up to ten times as long as alone. All deadlines grow by the same
# factor, and so does LONGEST_METHOD_S: the transport batches the same methods.
DEADLINE_FACTOR = 12
# Seconds. A Cassandra statement gets 2 s from the product. Tests with a stopped server wait for this timeout.
CASSANDRA_TIMEOUT_S = 5.0
# What the product waits for another service within a call before it goes on without the answer. They also grow by
# DEADLINE_FACTOR: on a busy machine answers would otherwise lack what a test expects. A default argument cannot be
# patched, so each of them is read when the call is made.
SHORT_WAITS = (
    "services.identity.user_hydrator.FRAGMENT_TIMEOUT_S",
    "services.shared.celebrity_tiers.START_WAIT_S",
    "services.timeline.home.reader.BUILD_WAIT_S",
    "services.tweet.writer.AUTHOR_WAIT_S",
)


@contextmanager
def long_deadlines(cassandra: bool) -> Iterator[None]:
    """Within it, the deadlines of all methods and SHORT_WAITS are DEADLINE_FACTOR times those of the product.

    If `cassandra` is true, statements have CASSANDRA_TIMEOUT_S. Processes that were started before keep their deadlines.
    """
    with _patched(_multiplied(methods()), DEADLINE_FACTOR) as patch:
        if cassandra:
            for module in ("driver", "keyspace"):
                patch.setattr(f"services.platform.cassandra.{module}.STATEMENT_TIMEOUT_S", CASSANDRA_TIMEOUT_S)
        yield


@contextmanager
def original_deadlines() -> Iterator[None]:
    """Within `long_deadlines`, restores the deadlines of the contract and SHORT_WAITS."""
    original = {path: _with_deadline(method, _declared_ms(method)) for path, method in methods().items()}
    with _patched(original, 1 / DEADLINE_FACTOR):
        yield


@contextmanager
def _patched(contract: Mapping[str, Method], factor: float) -> Iterator[pytest.MonkeyPatch]:
    current: Any = methods()
    with pytest.MonkeyPatch.context() as patch:
        for path, method in contract.items():
            patch.setitem(current, path, method)
        patch.setattr(batching, "LONGEST_METHOD_S", batching.LONGEST_METHOD_S * factor)
        for name in SHORT_WAITS:
            patch.setattr(name, resolve_name(name) * factor)
        yield patch


def _multiplied(contract: Mapping[str, Method]) -> dict[str, Method]:
    return {path: _with_deadline(method, DEADLINE_FACTOR * _declared_ms(method)) for path, method in contract.items()}


def _declared_ms(method: Method) -> int:
    declared: int = method.descriptor.GetOptions().Extensions[options_pb2.policy].deadline_ms
    return declared


def _with_deadline(method: Method, deadline_ms: int) -> Method:
    policy = options_pb2.MethodPolicy()
    policy.CopyFrom(method.policy)
    policy.deadline_ms = deadline_ms
    return dataclasses.replace(method, policy=policy)
