"""Page numbers, for clients that count pages: answered by following cursors past what comes before. Deprecated from the start."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import Message

from services.platform.rpc import errors
from services.platform.rpc.contract import Method

# Entries that may be skipped: more than twice the depth of a home. Deeper readers have cursors.
MAX_SKIPPED = 2_000
# The largest page the contract admits, so that skipping takes the fewest calls; and its default.
MAX_PAGE_SIZE = 100
DEFAULT_PAGE_SIZE = 20
# Calls that one skip may take, where filters make pages shorter than asked for.
MAX_CALLS = 2 * MAX_SKIPPED // MAX_PAGE_SIZE

# RFC 9745: deprecated since the first release (2026-11-21).
DEPRECATION = (b"deprecation", b"@1795219200")

Ask = Callable[[Any], Awaitable[Any]]


class Skipper:
    """Finds the n-th page of one method's list."""

    __slots__ = ("_items", "_passed")

    def __init__(self, method: Method) -> None:
        """TypeError where the method is not a list with cursor and page_size."""
        response = method.response.DESCRIPTOR
        lists = [field for field in response.fields if field.is_repeated]
        wanted = {"cursor", "page_size"} <= set(method.request.DESCRIPTOR.fields_by_name)
        if not wanted or len(lists) != 1 or "next_cursor" not in response.fields_by_name:
            raise TypeError(f"{method.path} admits page numbers but is not one list with a cursor")
        self._passed = method.wire_response
        self._items = method.wire_response.DESCRIPTOR.fields_by_number[lists[0].number].name

    async def fetch(self, ask: Ask, request: Any, page: int) -> Any:
        """The 1-based page: empty past the end; partial, and empty, where the list was partial before it.

        Raises INVALID_ARGUMENT beyond MAX_SKIPPED entries.
        """
        size = request.page_size if request.HasField("page_size") else DEFAULT_PAGE_SIZE
        left = (page - 1) * size
        if left > MAX_SKIPPED:
            raise errors.invalid_argument(f"page numbers reach {MAX_SKIPPED} entries deep: use cursor", "page")
        if not 1 <= size <= MAX_PAGE_SIZE:
            # The service refuses it, in the words it has for every client.
            return await ask(request)
        cursor = ""
        for _ in range(MAX_CALLS):
            if left <= 0:
                return await ask(_part(request, cursor, size))
            answer = await ask(_part(request, cursor, min(left, MAX_PAGE_SIZE)))
            left -= len(getattr(answer, self._items))
            cursor = answer.next_cursor
            if not cursor or getattr(answer, "partial", False):
                return self._empty(answer)
        raise errors.deadline_exceeded("the page lies too deep: use cursor")

    def _empty(self, answer: Any) -> Message:
        empty = self._passed()
        empty.CopyFrom(answer)
        empty.ClearField(self._items)
        return empty


def _part(request: Any, cursor: str, size: int) -> Any:
    part = type(request)()
    part.CopyFrom(request)
    part.cursor = cursor
    part.page_size = size
    return part
