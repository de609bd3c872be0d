"""Defines groups, the one notation for the processes of a mesh: which services run in one process, and in how many
equal processes.

A mesh is written as `front=gateway,timeline,tweet,graph,identity,engagement*4;back=fanout,search`: four
processes with the gateway and five services each, and one process with the two others. The other shapes are groups too:
each service in its own, or all in one.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from roost_cli.exit_codes import UNUSABLE, CommandError
from roost_cli.options import GATEWAY
from services.catalog import SERVICES
from services.platform.transport.remote_services import REGISTRY

# Maximum number of processes of one group. A process uses about 100 MB of memory, so a larger number is probably a
# typing error.
MAX_REPLICAS = 16
# The name of the only group of a mesh of replicas.
ALL = "roost"
# What a group can run. The registry is left out: a mesh that needs one runs it in a process of its own.
MEMBERS = (GATEWAY, *(name for name in SERVICES if name != REGISTRY))

# A number, also one that is out of range: those get an error of their own.
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_GROUP_NAME = re.compile(r"[a-z][a-z0-9-]{0,23}")
_OPTION = "--groups (ROOST_GROUPS)"
# A complete example: errors and the help show it, so `parse_groups` must accept it.
EXAMPLE = "front=gateway,timeline,tweet,graph,identity,engagement*4;back=fanout,search"


@dataclass(frozen=True, slots=True)
class Group:
    """Services that run in one process, and the number of equal processes. `members` are names of services, and
    `gateway` if each process also runs the gateway."""

    name: str
    members: tuple[str, ...]
    processes: int = 1

    def __str__(self) -> str:
        count = f"*{self.processes}" if self.processes > 1 else ""
        return f"{self.name}={','.join(self.members)}{count}"

    @property
    def has_gateway(self) -> bool:
        return GATEWAY in self.members


def notation(groups: Sequence[Group]) -> str:
    """Returns the text of which `parse_groups` makes `groups`."""
    return ";".join(map(str, groups))


def replica_groups(processes: str) -> Sequence[Group]:
    """Returns one group, each process of which runs the gateway and all services. `processes` is their number as text.
    Raises CommandError if it is not a number from 1 to MAX_REPLICAS."""
    return [Group(ALL, MEMBERS, _checked_count(processes, "--replicas: a mesh"))]


def service_groups() -> Sequence[Group]:
    """Returns a group of one process for each service and for the gateway."""
    return [Group(name, (name,)) for name in (*MEMBERS[1:], GATEWAY)]


def replicas_of(text: str) -> dict[str, int]:
    """Returns the number of processes by service or group from a text such as `timeline=3,fanout=2`. Raises
    CommandError if the text is malformed or a number is out of range."""
    counts: dict[str, int] = {}
    for pair in filter(None, text.split(",")):
        name, equals, number = (part.strip() for part in pair.partition("="))
        if not name or not equals:
            raise CommandError(f"--replicas: {pair!r} is malformed; write NAME=N,…, or a number alone", UNUSABLE)
        if name in counts:
            raise CommandError(f"--replicas: {name} occurs twice; give it one number", UNUSABLE)
        counts[name] = _checked_count(number, f"--replicas: {name}")
    return counts


def with_replicas(groups: Sequence[Group], counts: Mapping[str, int]) -> Sequence[Group]:
    """Returns the groups with the numbers of processes in `counts`, by group. Raises CommandError if a group does not
    exist."""
    names = [group.name for group in groups]
    for name in counts:
        if name not in names:
            raise CommandError(
                f"--replicas: no group {name}{_suggestion(name, names)}; there are {', '.join(names)}", UNUSABLE
            )
    return [replace(group, processes=counts.get(group.name, group.processes)) for group in groups]


def parse_groups(text: str, *, complete: bool = True) -> Sequence[Group]:
    """Returns the groups of a text such as EXAMPLE, in its order.

    Raises CommandError, with a sentence that says what to do, if the text is malformed, if a name is unknown, or if a
    service or the gateway is in two groups; if `complete` is true, also if one is in no group.
    """
    groups = [_parse_group(part.strip()) for part in text.split(";") if part.strip()]
    if not groups:
        raise CommandError(f"{_OPTION} contains no group; write for example {EXAMPLE}", UNUSABLE)
    names = Counter(group.name for group in groups)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise CommandError(f"{_OPTION}: two groups have the name {repeated[0]}; rename one", UNUSABLE)
    members = Counter(member for group in groups for member in group.members)
    if repeated := [name for name, count in members.items() if count > 1]:
        raise CommandError(
            f"{_OPTION}: {repeated[0]} occurs twice; leave one out, and write *N after a group's last service for more "
            "processes",
            UNUSABLE,
        )
    missing = [name for name in MEMBERS if name not in members]
    if complete and missing:
        raise CommandError(f"{_OPTION}: {', '.join(missing)} in no group; add each to one group", UNUSABLE)
    return groups


def _parse_group(text: str) -> Group:
    name, equals, rest = (part.strip() for part in text.partition("="))
    if not equals:
        raise CommandError(f"{_OPTION}: {text!r} has no `=`; write NAME=SERVICE,…, for example {EXAMPLE}", UNUSABLE)
    if not _GROUP_NAME.fullmatch(name):
        raise CommandError(
            f"{_OPTION}: {name!r} cannot be the name of a group; use 1 to 24 lower-case letters, digits and hyphens, "
            "beginning with a letter",
            UNUSABLE,
        )
    listed, star, count = (part.strip() for part in rest.partition("*"))
    members = tuple(member.strip() for member in listed.split(","))
    if not listed or "" in members:
        raise CommandError(
            f"{_OPTION}: the group {name} has an empty place in its list; write {name}=SERVICE,SERVICE", UNUSABLE
        )
    for member in members:
        _check_member(member, name)
    if name in (*MEMBERS, REGISTRY) and name not in members:
        raise CommandError(
            f"{_OPTION}: the group {name} has the name of a service that it does not run; choose another name", UNUSABLE
        )
    return Group(name, members, _checked_count(count, f"{_OPTION}: the group {name}") if star else 1)


def _check_member(member: str, group: str) -> None:
    if member == REGISTRY:
        raise CommandError(
            f"{_OPTION}: leave {REGISTRY} out of the group {group}; a mesh of several groups starts it by itself",
            UNUSABLE,
        )
    if member not in MEMBERS:
        raise CommandError(
            f"{_OPTION}: no service {member!r} in the group {group}{_suggestion(member, MEMBERS)}; there are "
            f"{', '.join(MEMBERS)}",
            UNUSABLE,
        )


def _checked_count(text: str, whose: str) -> int:
    if text and not _NUMBER.fullmatch(text):
        raise CommandError(
            f"{whose} needs a number of processes: {text} is not a number; write a number from 1 to {MAX_REPLICAS}",
            UNUSABLE,
        )
    # isdecimal alone accepts digits of other scripts.
    if not (
        text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_REPLICAS)) and 1 <= int(text) <= MAX_REPLICAS
    ):
        raise CommandError(
            f"{whose} cannot have {text or 'no'} processes; write a number from 1 to {MAX_REPLICAS}", UNUSABLE
        )
    return int(text)


def _suggestion(name: str, known: Sequence[str]) -> str:
    similar = difflib.get_close_matches(name, known, 1)
    return f", did you mean {similar[0]}?" if similar else ""
