"""Parsing of Redis URLs."""

from __future__ import annotations

import pytest

from services.platform.redis.connection import Endpoint
from services.platform.redis.url import RedisTopology
from services.platform.rpc.errors import RoostError


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "server"),
    [
        ("redis://10.0.0.1", "single", (("10.0.0.1", 6379),), Endpoint("10.0.0.1", 6379)),
        ("redis://h:7/3", "single", (("h", 7),), Endpoint("h", 7, 3)),
        ("rediss://ann:p%40ss@h/1", "single", (("h", 6379),), Endpoint("h", 6379, 1, "ann", "p@ss", tls=True)),
        ("redis://:pw@[::1]:7", "single", (("::1", 7),), Endpoint("::1", 7, password="pw")),
        ("unix:///run/redis.sock?db=2", "single", (), Endpoint(db=2, path="/run/redis.sock")),
        ("redis+cluster://a,b:7", "cluster", (("a", 6379), ("b", 7)), Endpoint("a", 6379)),
        ("redis+cluster://a/0", "cluster", (("a", 6379),), Endpoint("a", 6379)),
    ],
)
def test_parse_url_returns_topology(url: str, kind: str, hosts: tuple[tuple[str, int], ...], server: Endpoint) -> None:
    places = RedisTopology.parse(url)
    assert (places.kind, places.hosts, places.server) == (kind, hosts, server)


def test_parse_sentinel_url_has_master_and_database() -> None:
    places = RedisTopology.parse("redis+sentinel://:pw@s1,s2:7/mymaster/4")
    assert places.hosts == (("s1", 26379), ("s2", 7))
    assert (places.master, places.server.db, places.server.password) == ("mymaster", 4, "pw")
    assert places.at("m", 9) == Endpoint("m", 9, 4, password="pw")
    assert RedisTopology.parse("redis+sentinel://s1/mymaster").server.db == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "redis://",
        "redis://a,b/0",
        "redis://h/x",
        "redis://h/1/2",
        "redis://h:port",
        "redis+sentinel://s1",
        "redis+cluster://a/1",
    ],
)
def test_parse_invalid_url_raises_explanation(url: str) -> None:
    with pytest.raises(RoostError, match="the setting `redis_url` is invalid"):
        RedisTopology.parse(url)


def test_parse_error_omits_password() -> None:
    for url in ("redis://:secret@h/x", "redis+sentinel://:secret@s1"):
        with pytest.raises(RoostError) as refusal:
            RedisTopology.parse(url)
        assert "secret" not in str(refusal.value)
    assert "secret" not in str(RedisTopology.parse("redis://:secret@h/1"))
