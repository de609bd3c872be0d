"""Serves pages by number, for clients that cannot use cursors. Deprecated: it reads all earlier pages, from the first
one by cursors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import Message

from services.platform.pagination.page_size import MAX_PAGE_SIZE, page_size_of
from services.platform.rpc import errors
from services.platform.rpc.contract import Method

# Maximum number of items before the requested page; deeper pages are rejected with INVALID_ARGUMENT. It is more than
# twice the length of a stored home timeline (800).
MAX_SKIPPED = 2_000
# Maximum number of calls for one numbered page: twice as many as full pages would need, because services may return
# shorter pages. Beyond it the request fails with DEADLINE_EXCEEDED, because so many calls would take longer than a
# client waits.
MAX_CALLS = 2 * MAX_SKIPPED // MAX_PAGE_SIZE

# The header of each numbered page (RFC 9745): deprecated since the first release (2026-11-21, in Unix seconds).
DEPRECATION = (b"deprecation", b"@1795219200")

ListCall = Callable[[Any], Awaitable[Any]]


class NumberedPages:
    """Fetches pages of one list method by number."""

    __slots__ = ("_items", "_wire_response")

    def __init__(self, method: Method) -> None:
        """Raises TypeError if the request lacks `cursor` or `page_size`, or if the response lacks `next_cursor`, or has
        no list or several lists."""
        response = method.response.DESCRIPTOR
        lists = [field for field in response.fields if field.is_repeated]
        wanted = {"cursor", "page_size"} <= set(method.request.DESCRIPTOR.fields_by_name)
        if not wanted or len(lists) != 1 or "next_cursor" not in response.fields_by_name:
            raise TypeError(f"{method.path} admits page numbers but is not one list with a cursor")
        self._wire_response = method.wire_response
        self._items = method.wire_response.DESCRIPTOR.fields_by_number[lists[0].number].name

    async def fetch(self, call: ListCall, request: Any, page: int) -> Any:
        """Returns the page with the 1-based number `page`, each page having `request.page_size` items. `call` calls the
        list method.

        Returns an empty page if the list ends before the page. If an earlier page was partial (some of its items could
        not be read), the returned page is empty and partial too, because the number of items before it is unknown.
        Raises INVALID_ARGUMENT if more than MAX_SKIPPED items come before the page, DEADLINE_EXCEEDED if MAX_CALLS
        calls do not reach the page.
        """
        size = page_size_of(request)
        left = (page - 1) * size
        if left > MAX_SKIPPED:
            raise errors.invalid_argument(
                f"at most {MAX_SKIPPED} items may come before the page: use cursor instead", "page"
            )
        if not 1 <= size <= MAX_PAGE_SIZE:
            # The service rejects this page_size with its own error.
            return await call(request)
        cursor = ""
        for _ in range(MAX_CALLS):
            if left <= 0:
                return await call(_page_request(request, cursor, size))
            response = await call(_page_request(request, cursor, min(left, MAX_PAGE_SIZE)))
            left -= len(getattr(response, self._items))
            cursor = response.next_cursor
            if not cursor or getattr(response, "partial", False):
                return self._empty(response)
        raise errors.deadline_exceeded("too many short pages come before this page: use cursor instead of page")

    def _empty(self, response: Any) -> Message:
        empty = self._wire_response()
        empty.CopyFrom(response)
        empty.ClearField(self._items)
        return empty


def _page_request(request: Any, cursor: str, size: int) -> Any:
    page_request = type(request)()
    page_request.CopyFrom(request)
    page_request.cursor = cursor
    page_request.page_size = size
    return page_request
