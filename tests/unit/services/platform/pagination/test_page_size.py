"""Page sizes: requests without one, and that the protos state the same numbers."""

from __future__ import annotations

import re
from pathlib import Path

from roost.timeline.v1 import timeline_service_pb2 as pb

from services.platform.pagination.page_size import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, page_size_of

PROTOS = Path(__file__).resolve().parents[5] / "protos/roost"
# The comment, and the upper bound in the options, of a field that clients may leave out.
FIELD = re.compile(r"//([^\n]*)\n +optional int32 page_size = \d+ \[(.*?)\];", re.DOTALL)


def test_page_size_of_unset_field_is_default() -> None:
    assert page_size_of(pb.ListHomeTimelineRequest()) == DEFAULT_PAGE_SIZE
    assert page_size_of(pb.ListHomeTimelineRequest(page_size=7)) == 7


def test_page_sizes_in_protos_state_the_same_default_and_maximum() -> None:
    fields = [match for proto in PROTOS.rglob("*.proto") for match in FIELD.finditer(proto.read_text())]
    assert len(fields) > 20
    for comment, rules in (field.groups() for field in fields):
        assert f"1 to {MAX_PAGE_SIZE}; the default is {DEFAULT_PAGE_SIZE}." in comment
        assert re.search(r"lte: (\d+)", rules)[1] == str(MAX_PAGE_SIZE)  # type: ignore[index]
