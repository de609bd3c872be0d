"""Rate limits as HTTP headers."""

from __future__ import annotations

from gateway_http.rate_limits import headers
from services.platform.rpc.token_buckets import Buckets, Limit


def test_headers_contain_limit_remaining_and_reset() -> None:
    bucket = Buckets(Limit("post", 6))
    assert headers(bucket.take("a", 0.0), 1000.5) == [
        (b"ratelimit", b'"post";r=5;t=10'),
        (b"ratelimit-policy", b'"post";q=6;w=60'),
        (b"x-rate-limit-limit", b"6"),
        (b"x-rate-limit-remaining", b"5"),
        (b"x-rate-limit-reset", b"1010"),
    ]
