"""Completes writes whose caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def run_to_completion(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end even if the caller is cancelled: the caches must follow every commit."""
    return await asyncio.shield(asyncio.ensure_future(work))
