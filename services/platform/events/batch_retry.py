"""Applies a batch of events: retries transient failures, and stores an event that keeps failing as a dead letter."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from services.platform.events import log
from services.platform.events.log import Apply, ConsumedEvent
from services.platform.log_events import LogEvent

_log = structlog.get_logger(__name__)

Backoff = Callable[[int], Awaitable[bool]]
"""Waits for a time that grows with the number of consecutive failures. Returns False if the batch must not be retried
(shutdown)."""
AppendDeadLetter = Callable[[ConsumedEvent, BaseException], Awaitable[None]]
"""Stores an event durably as a dead letter, with the error."""


async def apply_with_dead_letters(
    group: str, batch: Sequence[ConsumedEvent], apply: Apply, backoff: Backoff, append_dead_letter: AppendDeadLetter
) -> None:
    """Calls `apply` with the batch; returns once every event is applied or stored as a dead letter.

    A transient failure (`is_transient`) is retried without limit. After another failure the batch is split into halves,
    which are applied separately, until a single event fails; after MAX_TRIES failures this event is stored as a dead
    letter. `apply` may get an event again that it has applied before. `backoff` is awaited before each retry; if it
    returns False, the last failure is raised.
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
            _log.warning(
                LogEvent.EVENT_BATCH_APPLY_FAILED,
                group=group,
                first=batch[0].offset,
                count=len(batch),
                error=repr(error),
            )
            if not log.is_transient(error):
                tries += 1
                if len(batch) > 1:
                    break
                if tries == log.MAX_TRIES:
                    event = batch[0]
                    _log.error(
                        LogEvent.EVENT_DEAD_LETTERED,
                        group=group,
                        topic=event.topic,
                        event_id=event.event_id,
                        error=repr(error),
                    )
                    return await append_dead_letter(event, error)
            if not await backoff(failures):
                raise
    middle = len(batch) // 2
    await apply_with_dead_letters(group, batch[:middle], apply, backoff, append_dead_letter)
    await apply_with_dead_letters(group, batch[middle:], apply, backoff, append_dead_letter)
    return None
