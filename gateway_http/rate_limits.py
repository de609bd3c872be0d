"""Rate limits as HTTP tells them; `services.platform.rpc.rate_limits` counts."""

from __future__ import annotations

import math

from gateway_http.problem import Headers
from services.platform.rpc.rate_limits import Verdict


def headers(verdict: Verdict, unix_now: float) -> Headers:
    """What a client is told: the IETF draft's fields and X's. The draft still moves; this is the one place that knows it.

    The problem of a refusal brings `Retry-After` itself.
    """
    bucket = verdict.bucket
    reset = math.ceil(verdict.reset_s)
    return [
        (b"ratelimit", f'"{bucket.name}";r={verdict.remaining};t={reset}'.encode()),
        (b"ratelimit-policy", f'"{bucket.name}";q={bucket.limit};w={math.ceil(bucket.window_s)}'.encode()),
        (b"x-rate-limit-limit", str(bucket.limit).encode()),
        (b"x-rate-limit-remaining", str(verdict.remaining).encode()),
        (b"x-rate-limit-reset", str(int(unix_now) + reset).encode()),
    ]
