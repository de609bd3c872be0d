"""The page size of list methods: its default and its maximum."""

from __future__ import annotations

from typing import Any

# Number of items of a page if `page_size` is not set, and maximum of `page_size`. The protos state the default in the
# comments of `page_size`, because proto3 has no defaults, and the maximum as a rule of the field, which the
# interceptors enforce. Unit tests compare the protos with these numbers.
DEFAULT_PAGE_SIZE = 20
MAX_PAGE_SIZE = 100


def page_size_of(request: Any) -> int:
    """Returns the `page_size` of a list request, or DEFAULT_PAGE_SIZE if the field is not set."""
    return int(request.page_size) if request.HasField("page_size") else DEFAULT_PAGE_SIZE
