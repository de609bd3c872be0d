"""How a batch is applied: what passes is waited for, what never will is set aside alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from services.platform.events import log
from services.platform.events.log import Apply, ConsumedEvent

_log = structlog.get_logger(__name__)

Rest = Callable[[int], Awaitable[bool]]
"""Waits, the longer the more failures there were in a row; False where the batch is to be left as it is."""
Bury = Callable[[ConsumedEvent, BaseException], Awaitable[None]]
"""Sets an event aside, durably."""


async def apply_with_dead_letters(
    group: str, batch: Sequence[ConsumedEvent], apply: Apply, rest: Rest, dead_letter: Bury
) -> None:
    """Returns once each event of the batch is applied or set aside; raises the last failure where `rest` said to leave it.

    Some of a batch that is left may have been applied: it comes again as a whole.
    """
    tries = failures = 0
    while True:
        try:
            return await apply(batch)
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            failures += 1
            _log.warning("not applied", group=group, first=batch[0].offset, count=len(batch), error=repr(error))
            if not log.is_transient(error):
                tries += 1
                if len(batch) > 1:
                    break
                if tries == log.MAX_TRIES:
                    event = batch[0]
                    _log.error(
                        "dead letter", group=group, topic=event.topic, event_id=event.event_id, error=repr(error)
                    )
                    return await dead_letter(event, error)
            if not await rest(failures):
                raise
    middle = len(batch) // 2
    await apply_with_dead_letters(group, batch[:middle], apply, rest, dead_letter)
    await apply_with_dead_letters(group, batch[middle:], apply, rest, dead_letter)
    return None
