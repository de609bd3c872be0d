"""Deadlines that cost nothing until something is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_NEVER = float("inf")
_NOT_BEGUN = object()


class with_deadline(Generic[T]):  # noqa: N801 (it reads as the preposition it is: `await until(deadline, work)`)
    """Awaits a coroutine up to a deadline (monotonic seconds; inf: none), then cancels it and raises TimeoutError.

    asyncio.timeout_at does the same at 9 µs a call (measured). Most calls in process are answered from memory and never wait: they
    need no timer, so it is set only when the coroutine waits for the first time.

    Whoever has made the first step itself, because even this object would cost too much where nothing waits, says in `waited_for`
    what that step gave.
    """

    __slots__ = ("_coroutine", "_deadline", "_fired", "_task", "_waited_for")

    def __init__(self, deadline: float, coroutine: Coroutine[Any, Any, T], waited_for: Any = _NOT_BEGUN) -> None:
        self._coroutine = coroutine
        self._waited_for = waited_for
        self._deadline = deadline
        self._fired = False
        self._task: asyncio.Task[Any] | None = None

    def __await__(self) -> Generator[Any, Any, T]:
        coroutine = self._coroutine
        waited_for = self._waited_for
        if waited_for is _NOT_BEGUN:
            try:
                waited_for = coroutine.send(None)
            except StopIteration as returned:
                return returned.value  # type: ignore[no-any-return]
        if self._deadline == _NEVER:
            return (yield from _resumed(coroutine, waited_for))
        self._task = asyncio.current_task()
        timer = asyncio.get_running_loop().call_at(self._deadline, self._fire)
        try:
            return (yield from _resumed(coroutine, waited_for))
        except asyncio.CancelledError as cancelled:
            # Ours, and nobody else's at the same time?
            if self._fired and self._task is not None and self._task.uncancel() == 0:
                raise TimeoutError from cancelled
            raise
        finally:
            timer.cancel()

    def _fire(self) -> None:
        self._fired = True
        if self._task is not None:
            self._task.cancel()


def _resumed(coroutine: Coroutine[Any, Any, T], waited_for: Any) -> Generator[Any, Any, T]:
    """Goes on with a coroutine that has begun: what `yield from` would do from its second step."""
    try:
        while True:
            try:
                answer = yield waited_for
            except BaseException as error:
                waited_for = coroutine.throw(error)
            else:
                waited_for = coroutine.send(answer)
    except StopIteration as returned:
        return returned.value  # type: ignore[no-any-return]
