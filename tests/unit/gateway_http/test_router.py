"""The router matches every declared route, and no other path."""

from __future__ import annotations

import pytest
from roost.options.v1 import options_pb2 as options

from gateway_http.problem import HttpError
from gateway_http.router import Binding, Router, bindings
from services.platform.rpc.contract import methods
from services.platform.rpc.errors import RoostError

ROUTED = [(one, method) for method in methods().values() for one in bindings(method)]


@pytest.fixture(scope="module")
def router() -> Router[str]:
    return Router((binding, method.name) for binding, method in ROUTED)


def test_match_each_binding_returns_method(router: Router[str]) -> None:
    assert len(ROUTED) > 100
    for binding, method in ROUTED:
        path = "/" + "/".join(segment if segment is not None else "123" for segment in binding.segments())
        target, values = router.match(binding.http_method, path.encode())
        assert target == method.name, (binding, target)
        assert list(values) == ["123"] * len(binding.variables())


def test_bindings_of_mesh_methods_are_empty() -> None:
    assert [m.path for b, m in ROUTED if m.policy.access == options.ACCESS_MESH] == []


@pytest.mark.parametrize(
    ("method", "path", "target"),
    [
        ("GET", b"/tweets/following", "ListHomeTimeline"),
        ("GET", b"/v1/tweets/lookup", "BatchGetTweets"),
        ("GET", b"/v1/tweets/trending", "ListTrendingTweets"),
        ("GET", b"/v1/users/suggestions", "SuggestUsers"),
        ("GET", b"/v1/users/by/username/al", "GetUserByUsername"),
        ("GET", b"/v1/users/by/followers", "ListFollowers"),
        ("HEAD", b"/v1/tweets/5", "GetTweet"),
        ("GET", b"/v1/%74weets/5", "GetTweet"),
    ],
)
def test_match_prefers_literals_and_maps_head_to_get(
    router: Router[str], method: str, path: bytes, target: str
) -> None:
    assert router.match(method, path)[0] == target


@pytest.mark.parametrize(
    "path",
    [
        b"/",
        b"",
        b"//",
        b"/v1",
        b"/v1/tweets/",
        b"/v1//tweets",
        b"//v1/tweets",
        b"/v1/tweets/5/",
        b"/nothing",
        b"/v1/tweets/5/likes/6/7/8",
        b"/" + b"a/" * 5000,
    ],
)
def test_match_unknown_path_is_not_found(router: Router[str], path: bytes) -> None:
    with pytest.raises(RoostError, match="NOT_FOUND"):
        router.match("GET", path)


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/tweets/%00",
        b"/v1/tweets/%",
        b"/v1/tweets/%2",
        b"/v1/tweets/%zz",
        b"/v1/tags/%ff/tweets",
        b"/v1/tags/a%0ab/tweets",
        b"/v1/tags/\xff/tweets",
        b"/v1/tags/%ed%a0%80/tweets",
    ],
)
def test_match_invalid_encoding_is_invalid_argument(router: Router[str], path: bytes) -> None:
    with pytest.raises(RoostError, match="INVALID_ARGUMENT"):
        router.match("GET", path)


def test_match_decodes_segments_once_after_split(router: Router[str]) -> None:
    assert router.match("GET", b"/v1/tags/%C3%BCber%2Fall/tweets")[1] == ["über/all"]
    assert router.match("GET", b"/v1/tags/%2561/tweets")[1] == ["%61"]


def test_match_unsupported_method_is_405_with_allow(router: Router[str]) -> None:
    with pytest.raises(HttpError) as refused:
        router.match("PROPFIND", b"/v1/tweets/5")
    assert refused.value.status == 405
    assert refused.value.headers == ((b"allow", b"DELETE, GET, HEAD, PATCH"),)


def test_router_with_duplicate_route_raises() -> None:
    with pytest.raises(ValueError, match="two methods"):
        Router([(Binding("GET", "/a/{x}"), 1), (Binding("GET", "/a/{y}"), 2)])


@pytest.mark.parametrize("template", ["a", "/a/{x", "/a/{x=**}", "/a/{x.y}", "/a/*", "/a//b"])
def test_router_with_unsupported_template_raises(template: str) -> None:
    with pytest.raises(ValueError, match=r"template|route the segment"):
        Router([(Binding("GET", template), 1)])


def test_match_after_backtracking_drops_values() -> None:
    router = Router([(Binding("GET", "/{a}/{b}/x"), 1), (Binding("GET", "/u/{c}/y"), 2)])
    assert router.match("GET", b"/u/5/x") == (1, ["u", "5"])
    assert router.match("GET", b"/u/5/y") == (2, ["5"])
