"""Tests the notation of groups: what it accepts, and the sentences with which it refuses the rest."""

from __future__ import annotations

import contextlib

import hypothesis
import pytest
from hypothesis import strategies as st

from roost_cli.exit_codes import UNUSABLE, CommandError
from roost_cli.options import GATEWAY
from roost_cli.supervisor.groups import (
    ALL,
    MAX_REPLICAS,
    MEMBERS,
    Group,
    notation,
    parse_groups,
    replica_groups,
    replicas_of,
    service_groups,
    with_replicas,
)
from services.catalog import SERVICES

FRONT_AND_BACK = "front=gateway,timeline,tweet,graph,identity,engagement*4;back=fanout,search"


def test_parse_groups_of_two_groups_returns_members_and_counts() -> None:
    front, back = parse_groups(FRONT_AND_BACK)
    assert front == Group("front", ("gateway", "timeline", "tweet", "graph", "identity", "engagement"), 4)
    assert back == Group("back", ("fanout", "search"), 1)
    assert front.has_gateway
    assert not back.has_gateway


def test_parse_groups_ignores_spaces_and_a_last_semicolon() -> None:
    spaced = " front = gateway , timeline,tweet,graph,identity,engagement * 4 ;\n back= fanout,search ; "
    assert parse_groups(spaced) == parse_groups(FRONT_AND_BACK)


@st.composite
def meshes(draw: st.DrawFn) -> list[Group]:
    """Every member in one of up to four groups."""
    places = draw(st.lists(st.integers(0, 3), min_size=len(MEMBERS), max_size=len(MEMBERS)))
    names = ("a", "b-2", "front", "zone9")
    return [
        Group(names[place], members, draw(st.integers(1, MAX_REPLICAS)))
        for place in range(4)
        if (members := tuple(name for name, chosen in zip(MEMBERS, places, strict=True) if chosen == place))
    ]


@hypothesis.given(meshes())
def test_parse_groups_of_notation_returns_the_same_groups(groups: list[Group]) -> None:
    assert parse_groups(notation(groups)) == groups


@hypothesis.given(st.text(alphabet="frontgaewy=,;*0123456789- \n²", max_size=60) | st.text(max_size=40))
def test_parse_groups_of_any_text_raises_nothing_but_command_error(text: str) -> None:
    with contextlib.suppress(CommandError):
        parse_groups(text)


@hypothesis.given(st.integers(0, len(FRONT_AND_BACK) - 1), st.sampled_from("=,;*x- 0"))
def test_parse_groups_of_one_wrong_character_has_every_member_once_or_raises(place: int, char: str) -> None:
    try:
        found = parse_groups(FRONT_AND_BACK[:place] + char + FRONT_AND_BACK[place + 1 :])
    except CommandError:
        return
    assert sorted(member for group in found for member in group.members) == sorted(MEMBERS)
    assert all(1 <= group.processes <= MAX_REPLICAS for group in found)


REST = "engagement,search"
REFUSED = {
    "": "contains no group",
    " ; ;": "contains no group",
    "gateway,timeline": "has no `=`",
    "front=": "empty place",
    "front=gateway,,timeline": "empty place",
    "front=*4": "empty place",
    "Front=gateway": "cannot be the name of a group",
    "fr ont=gateway": "cannot be the name of a group",
    f"{'a' * 25}=gateway": "cannot be the name of a group",
    "front=gateway,timelin": "did you mean timeline?",
    "front=gateway,nobody": "no service 'nobody'",
    "front=gateway,registry": "leave registry out",
    "front=gateway*0": "write a number from 1 to 16",
    "front=gateway*17": "write a number from 1 to 16",
    "front=gateway*": "cannot have no processes",
    "front=gateway*-1": "write a number from 1 to 16",
    "front=gateway*2,timeline": "2,timeline is not a number",
    "front=gateway*99999999999999999999": "write a number from 1 to 16",
    "front=gateway*٣": "write a number from 1 to 16",
    "timeline=gateway": "has the name of a service that it does not run",
    "registry=gateway": "has the name of a service that it does not run",
    "front=gateway,timeline,timeline": "timeline occurs twice",
    "front=gateway;back=timeline,gateway": "gateway occurs twice",
    "front=gateway;front=timeline": "two groups have the name front",
    f"all=identity,graph,tweet,timeline,fanout,{REST}": "gateway in no group; add each to one group",
    f"front=gateway,identity;back=graph,tweet,{REST}": "timeline, fanout in no group",
}


@pytest.mark.parametrize("text", REFUSED)
def test_parse_groups_of_malformed_text_says_what_to_do(text: str) -> None:
    with pytest.raises(CommandError) as caught:
        parse_groups(text)
    assert REFUSED[text] in caught.value.message
    assert caught.value.message.startswith("--groups (ROOST_GROUPS)")
    assert caught.value.code == UNUSABLE


def test_parse_groups_of_part_of_a_mesh_is_accepted_if_not_complete() -> None:
    assert parse_groups("roost=gateway,tweet", complete=False) == [Group("roost", (GATEWAY, "tweet"))]


def test_shapes_run_every_service_and_the_gateway_once() -> None:
    (replicas,) = replica_groups("3")
    assert (replicas.name, replicas.processes) == (ALL, 3)
    for groups in ([replicas], service_groups()):
        assert sorted(member for group in groups for member in group.members) == sorted(
            [GATEWAY, *SERVICES.keys() - {"registry"}]
        )


@pytest.mark.parametrize("number", ["0", "17", "-1", "two", "1.5", "", "²"])
def test_replica_groups_of_number_out_of_range_says_what_to_do(number: str) -> None:
    with pytest.raises(CommandError, match=r"--replicas: a mesh .*; write a number from 1 to 16"):
        replica_groups(number)


def test_replicas_of_valid_list_returns_counts() -> None:
    assert replicas_of("") == {}
    assert replicas_of("timeline=3, fanout=2") == {"timeline": 3, "fanout": 2}


@pytest.mark.parametrize(
    "text", ["timeline", "timeline=0", f"timeline={MAX_REPLICAS + 1}", "=2", "timeline=x", "tweet=1,tweet=2"]
)
def test_replicas_of_malformed_list_raises_command_error(text: str) -> None:
    with pytest.raises(CommandError, match="--replicas"):
        replicas_of(text)


def test_with_replicas_changes_the_counts_of_named_groups_only() -> None:
    groups = with_replicas(parse_groups(FRONT_AND_BACK), {"back": 3})
    assert {group.name: group.processes for group in groups} == {"front": 4, "back": 3}


@pytest.mark.parametrize("name", ["fron", "registry", "nobody"])
def test_with_replicas_of_unknown_group_names_the_known_ones(name: str) -> None:
    with pytest.raises(CommandError, match=rf"no group {name}.*there are front, back"):
        with_replicas(parse_groups(FRONT_AND_BACK), {name: 2})
