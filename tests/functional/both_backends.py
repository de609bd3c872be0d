"""Makes the same calls on two meshes, and returns their answers in a form that does not contain their ids and tokens.

An id, token or cursor gets a name when both meshes return one at the same place of the same answer. A call uses the name,
and each mesh gets its own value of it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from roost.identity.v1 import user_pb2
from roost.tweet.v1 import tweet_pb2

from services.platform.rpc.contract import Method, methods
from services.platform.rpc.errors import from_rpc
from tests.conftest import Mesh

# Smaller numbers are counts and positions; an id contains milliseconds since its epoch, shifted to the left.
LEAST_ID = 1 << 40
# Eventually consistent answers are the same after this time, even on a busy machine.
SAME_WITHIN_S = 20.0
LOOK_AGAIN_S = 0.02
# More pages than any list here has, to detect a cursor that does not advance.
MAX_PAGES = 200
# String fields whose values differ between the meshes.
SECRETS = frozenset({"next_cursor", "access_token", "refresh_token", "challenge_id", "event_id"})
# Fields with times, or with counts of writes.
MOMENTS = frozenset({"followed_at_ms", "changed_at_ms", "created_at_ms", "relation_version"})
# Bytes fields that contain a serialised message.
WITHIN: Mapping[str, Any] = {"core": tweet_pb2.Tweet, "ref": user_pb2.UserRef}
# Codes that any call may return on a busy machine; both meshes are called again if the method is safe to retry.
LATE = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED"})
_ID_IN_TEXT = re.compile(r"\d{12,}")


@dataclass(frozen=True)
class Name:
    """A value that both meshes have, each with its own id or token."""

    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Ask:
    """One call: `method` like `TweetService/GetTweet`; `user` None is anonymous; `caller` is a service, or `operator`.

    `whole` reads all pages and compares them as one answer, so pages may end at different places. `sorted_by` is the list
    field whose order is not compared.
    """

    method: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    user: Name | None = None
    caller: str = ""
    whole: bool = False
    sorted_by: str = ""

    def __str__(self) -> str:
        fields = ", ".join(f"{key}={value!r}" for key, value in self.fields.items())
        return f"{self.method}({fields}) by {self.user or self.caller or 'nobody'}"


class Side:
    """One of the meshes, and its values of the names."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.spelled: dict[Name, int | str] = {}
        self.names: dict[int | str, Name] = {}
        self._calls: dict[tuple[str, str], Any] = {}

    async def answer(self, ask: Ask, method: Method) -> tuple[Any, list[int | str]]:
        """Returns the answer with names, and the values in it that have no name yet, in their order in the answer."""
        words = _Words(self.names)
        try:
            found = words.of(await self._send(ask, method))
            if ask.sorted_by:
                found[ask.sorted_by] = sorted(found.get(ask.sorted_by, ()), key=repr)
        except grpc.aio.AioRpcError as error:
            told = from_rpc(error)
            message = _ID_IN_TEXT.sub(lambda match: words.name(int(match[0])), told.message)
            violations = sorted((violation.field, violation.message) for violation in told.violations)
            return (told.code.name, told.reason, message, violations), []
        return found, list(words.fresh)

    async def _send(self, ask: Ask, method: Method) -> Message:
        spelled = {key: self._spell(value) for key, value in ask.fields.items()}
        request = method.request(**spelled)
        call = self._call(ask, method)
        whole: Any = method.response()
        with self.mesh.as_user(int(self.spelled[ask.user]) if ask.user else 0):
            if method.server_streaming:
                async for part in call(request):
                    # The services may divide the stream differently.
                    whole.MergeFrom(part)
                return whole  # type: ignore[no-any-return]
            for _ in range(MAX_PAGES):
                page = await call(request)
                if not ask.whole:
                    return page  # type: ignore[no-any-return]
                # A partial page is one whose time ran out; its cursor requests the same page again.
                again = getattr(page, "partial", False)
                if not again:
                    whole.MergeFrom(page)
                    whole.next_cursor = ""
                if not again and not page.next_cursor:
                    return whole  # type: ignore[no-any-return]
                request = method.request(**{**spelled, "cursor": page.next_cursor})
        raise AssertionError(f"{ask}: no end")

    def _call(self, ask: Ask, method: Method) -> Any:
        key = (method.path, ask.caller)
        if key not in self._calls:
            channel = self.mesh.process.channel(ask.caller)
            kind = channel.unary_stream if method.server_streaming else channel.unary_unary
            self._calls[key] = kind(method.path, method.request.SerializeToString, method.response.FromString)
        return self._calls[key]

    def _spell(self, value: Any) -> Any:
        if isinstance(value, Name):
            return self.spelled[value]
        return [self._spell(one) for one in value] if isinstance(value, list) else value


class Twins:
    """Both meshes. `said` lists the calls so far, for the report of a difference."""

    def __init__(self, meshes: Sequence[Mesh]) -> None:
        self.sides = [Side(mesh) for mesh in meshes]
        self.said: list[str] = []
        self._methods = {path.removeprefix("/").rpartition(".")[2]: method for path, method in methods().items()}
        self._made = 0

    async def ask(self, ask: Ask, eventually: bool = False) -> Any:
        """Returns the answer of both: a message as a dictionary, an error as (code, reason, message, violations).

        Raises AssertionError if they differ; with `eventually`, only if they still differ after SAME_WITHIN_S.
        """
        method = self._methods[ask.method]
        self.said.append(str(ask))
        at_last = time.monotonic() + SAME_WITHIN_S
        give_up = at_last if eventually else 0.0
        while True:
            answers = await asyncio.gather(*(side.answer(ask, method) for side in self.sides))
            (found, fresh), (other, others) = answers
            late = method.policy.retry_safe and {_code(found), _code(other)} & LATE
            if (found, len(fresh)) == (other, len(others)) or time.monotonic() >= (at_last if late else give_up):
                break
            await asyncio.sleep(LOOK_AGAIN_S)
        if other != found:
            families = " and the ".join(side.mesh.process.settings.backend for side in self.sides)
            raise AssertionError(f"{ask}: the {families} differ\n" + "\n".join(_apart(found, other)))
        made = []
        for spelled in zip(fresh, others, strict=True):
            self._made += 1
            made.append(Name(f"{'id' if isinstance(spelled[0], int) else 'token'}{self._made}"))
            for side, value in zip(self.sides, spelled, strict=True):
                side.spelled[made[-1]], side.names[value] = value, made[-1]
        return _with(found, made)

    async def walk(self, ask: Ask, eventually: bool = False) -> list[Any]:
        """Returns all pages of a list; an error is the only page."""
        pages = [await self.ask(ask, eventually)]
        while isinstance(pages[-1], dict) and pages[-1].get("next_cursor"):
            assert len(pages) < MAX_PAGES, f"{ask}: no end"
            cursor = {"cursor": pages[-1]["next_cursor"]}
            pages.append(await self.ask(Ask(ask.method, {**ask.fields, **cursor}, ask.user, ask.caller), eventually))
        return pages

    async def settled(self) -> None:
        """Waits until both have delivered all tweets."""
        await asyncio.gather(*(side.mesh.settled() for side in self.sides))

    async def absences_counted(self) -> None:
        """Waits until the counts of both exclude the actions of suspended users, and include those of reinstated ones."""
        await asyncio.gather(*(side.mesh.absences_counted() for side in self.sides))


class _Words:
    """Converts one answer; values without a name are numbered in `fresh`."""

    def __init__(self, names: Mapping[int | str, Name]) -> None:
        self._names = names
        self.fresh: dict[int | str, _Fresh] = {}

    def of(self, message: Message) -> dict[str, Any]:
        """Returns the fields that are set, by name."""
        return {descriptor.name: self._field(descriptor, value) for descriptor, value in message.ListFields()}

    def name(self, value: int | str) -> Any:
        if value in self._names:
            return self._names[value]
        return self.fresh.setdefault(value, _Fresh(len(self.fresh)))

    def _field(self, descriptor: FieldDescriptor, value: Any) -> Any:
        kind = descriptor.message_type
        if kind is not None and kind.GetOptions().map_entry:
            inner = kind.fields_by_name["value"]
            return [(key, self._one(inner, value[number])) for key, number in self._sorted(value)]
        if descriptor.is_repeated:
            return [self._one(descriptor, one) for one in value]
        return self._one(descriptor, value)

    def _sorted(self, keys: Any) -> Iterator[tuple[Any, Any]]:
        # A map has no order, but both sides created their ids in the same one.
        for key in sorted(keys):
            yield (self.name(key) if isinstance(key, int) and key >= LEAST_ID else key), key

    def _one(self, descriptor: FieldDescriptor, value: Any) -> Any:
        if descriptor.message_type is not None:
            return "a moment" if descriptor.message_type.name == "Timestamp" else self.of(value)
        if descriptor.name in MOMENTS:
            return "a moment"
        if isinstance(value, bytes) and descriptor.name in WITHIN:
            return self.of(WITHIN[descriptor.name].FromString(value))
        if (type(value) is int and value >= LEAST_ID) or descriptor.name in SECRETS:
            return self.name(value)
        return value


@dataclass(frozen=True)
class _Fresh:
    """The n-th value of an answer that had no name before."""

    place: int


def _code(found: Any) -> str:
    return str(found[0]) if isinstance(found, tuple) else "OK"


def _with(found: Any, made: Sequence[Name]) -> Any:
    """Returns the answer with names instead of `_Fresh`."""
    match found:
        case _Fresh(place):
            return made[place]
        case dict():
            return {key: _with(value, made) for key, value in found.items()}
        case list():
            return [_with(value, made) for value in found]
    return found


def _apart(one: Any, other: Any, path: str = "answer") -> Iterator[str]:
    """Returns a line for each difference between two answers."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from _apart(one.get(key), other.get(key), f"{path}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for place, pair in enumerate(zip(one, other, strict=True)):
            yield from _apart(*pair, f"{path}[{place}]")
    elif one != other:
        yield f"{path}: {one!r} | {other!r}"
