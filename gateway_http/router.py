"""Matches requests to routes by a tree of path segments, built once from the HTTP annotations of the protos.

A literal segment takes precedence over a variable (`/tweets/following` over `/tweets/{tweet_id}`). The path is split at
slashes before its segments are decoded, so an encoded slash (`%2F`) is part of its segment. An empty segment matches no
variable, so paths with `//` or a trailing slash are NOT_FOUND.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

from google.api import annotations_pb2, http_pb2  # type: ignore[import-untyped]

from gateway_http.problem import HttpError
from services.platform.rpc import errors
from services.platform.rpc.contract import Method

T = TypeVar("T")

_VARIABLE = re.compile(r"\{([a-z][a-z0-9_]*)(?:=\*)?\}")
_LITERAL = re.compile(r"[A-Za-z0-9._-]+")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Binding:
    """One HTTP binding of an RPC, as in google.api.http: an HTTP method and a path template such as
    `/v1/tweets/{tweet_id}`.

    `body` names the request field that the HTTP body contains, "*" for the whole request, "" for none. `response_body`
    names the response field that is returned, "" for the whole response.
    """

    http_method: str
    template: str
    body: str = ""
    response_body: str = ""

    def segments(self) -> list[str | None]:
        """Returns the segments of the template in order, None for a variable. Raises ValueError for syntax that this
        router does not support."""
        return [None if variable else literal for literal, variable in self._parts()]

    def variables(self) -> tuple[str, ...]:
        """Returns the names of the request fields that the path variables set, in the order of the path."""
        return tuple(variable for _, variable in self._parts() if variable)

    def _parts(self) -> list[tuple[str, str]]:
        if not self.template.startswith("/"):
            raise ValueError(f"{self.template}: a template begins with a slash")
        parts: list[tuple[str, str]] = []
        for part in self.template[1:].split("/"):
            if variable := _VARIABLE.fullmatch(part):
                parts.append(("", variable[1]))
            elif part == "" and self.template == "/":
                parts.append(("", ""))
            elif _LITERAL.fullmatch(part):
                parts.append((part, ""))
            else:
                raise ValueError(f"{self.template}: cannot route the segment {part!r}")
        return parts


def bindings(method: Method) -> list[Binding]:
    """Returns the HTTP bindings of the RPC, the primary one first; an empty list if it has none."""
    options = method.descriptor.GetOptions()
    if not options.HasExtension(annotations_pb2.http):
        return []
    rule = options.Extensions[annotations_pb2.http]
    return [_binding(one) for one in (rule, *rule.additional_bindings)]


def _binding(rule: http_pb2.HttpRule) -> Binding:
    pattern = rule.WhichOneof("pattern")
    if pattern is None or pattern == "custom":
        raise ValueError(f"a binding needs one of get, put, post, delete, patch: {rule}")
    return Binding(pattern.upper(), getattr(rule, pattern), rule.body, rule.response_body)


class _Node(Generic[T]):
    __slots__ = ("allow", "literals", "targets", "variable")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[T]] = {}
        self.variable: _Node[T] | None = None
        self.targets: dict[str, T] = {}
        self.allow = b""


class Router(Generic[T]):
    """Maps an HTTP method and a path to a target, for example a route. Immutable after construction."""

    def __init__(self, entries: Iterable[tuple[Binding, T]]) -> None:
        """Raises ValueError if two entries have the same HTTP method and path, or if a template's syntax is not
        supported."""
        self._root: _Node[T] = _Node()
        # Paths without variables, by path. They include the most frequently requested paths, and one look-up finds
        # them.
        self._static: dict[bytes, _Node[T]] = {}
        self._depth = 0
        for binding, target in entries:
            self._add(binding, target)
        self._finish(self._root)

    def _add(self, binding: Binding, target: T) -> None:
        node = self._root
        segments = binding.segments()
        for segment in segments:
            if segment is None:
                node.variable = node.variable or _Node()
                node = node.variable
            else:
                node = node.literals.setdefault(segment, _Node())
        if binding.http_method in node.targets:
            raise ValueError(f"two methods are bound to {binding.http_method} {binding.template}")
        node.targets[binding.http_method] = target
        self._depth = max(self._depth, len(segments))
        if None not in segments:
            self._static[binding.template.encode()] = node

    def _finish(self, node: _Node[T]) -> None:
        if "GET" in node.targets:
            node.targets["HEAD"] = node.targets["GET"]
        node.allow = ", ".join(sorted(node.targets)).encode()
        for child in (*node.literals.values(), *((node.variable,) if node.variable else ())):
            self._finish(child)

    def match(self, http_method: str, raw_path: bytes) -> tuple[T, Sequence[str]]:
        """Returns the target and the decoded values of its path variables. `raw_path` is percent-encoded, as received.

        Raises NOT_FOUND if no target has the path, INVALID_ARGUMENT if the encoding of the path is invalid, and
        HttpError with status 405 and the header Allow if the path does not support the HTTP method.
        """
        node, values = self._find(raw_path)
        target = node.targets.get(http_method)
        if target is None:
            raise HttpError(
                405,
                "method_not_allowed",
                f"this route does not support the method: use one of {node.allow.decode()}",
                headers=((b"allow", node.allow),),
            )
        return target, values

    def allowed(self, raw_path: bytes) -> bytes:
        """Returns the HTTP methods that a path supports, comma-separated.

        Raises NOT_FOUND if no target has the path, INVALID_ARGUMENT if the encoding of the path is invalid.
        """
        return self._find(raw_path)[0].allow

    def _find(self, raw_path: bytes) -> tuple[_Node[T], Sequence[str]]:
        node = self._static.get(raw_path)
        if node is not None:
            return node, ()
        values: list[str] = []
        segments = self._split(raw_path)
        node = _walk(self._root, segments, 0, values) if len(segments) <= self._depth else None
        if node is None:
            raise errors.not_found("no route has this path")
        return node, values

    @staticmethod
    def _split(raw_path: bytes) -> list[str]:
        if b"%" not in raw_path and raw_path.isascii():
            return raw_path.decode("ascii").split("/")[1:]
        return [decode_component(segment) for segment in raw_path.split(b"/")[1:]]


def _walk(node: _Node[T], segments: Sequence[str], index: int, values: list[str]) -> _Node[T] | None:
    if index == len(segments):
        return node if node.targets else None
    segment = segments[index]
    child = node.literals.get(segment)
    if child is not None and (found := _walk(child, segments, index + 1, values)):
        return found
    if node.variable is None or not segment:
        return None
    values.append(segment)
    found = _walk(node.variable, segments, index + 1, values)
    if found is None:
        values.pop()
    return found


def decode_component(raw: bytes) -> str:
    """Returns the text of a percent-encoded path segment.

    Raises INVALID_ARGUMENT for an invalid percent escape, bytes that are not UTF-8, and control characters.
    """
    if _BAD_ESCAPE.search(raw):
        raise errors.invalid_argument("the path contains an invalid percent escape")
    try:
        text = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise errors.invalid_argument("the path is not valid UTF-8") from None
    if _CONTROL.search(text):
        raise errors.invalid_argument("the path contains a control character")
    return text
