"""Rate limits: a token bucket for each (class, user or address), kept as the one moment at which it is full again (GCRA).

The `limits` package was measured and left: a hit with its statistics cost 12–20 µs, and its memory storage starts a thread every
10 ms that walks all keys. A bucket here costs under 1 µs, and their number is bounded.
"""

from __future__ import annotations

import functools
import ipaddress
import math
from collections.abc import Mapping
from dataclasses import dataclass

from roost.options.v1 import options_pb2 as options

from gateway_http.problem import Headers
from services.common.config import Settings

WINDOW_S = 60.0
# Buckets of one class: 100 bytes each. Full buckets are dropped first: they say the same as none.
MAX_BUCKETS = 100_000
# An IPv6 customer has a /64 at least: its addresses are one client.
IPV6_PREFIX = 64
MAX_KNOWN_ADDRESSES = 10_000
# Sums of floats must not cost the last request of a window.
SLACK_S = 1e-6


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a bucket said to one request; times in seconds."""

    allowed: bool
    remaining: int
    reset_s: float
    retry_after_s: float


class Bucket:
    """The buckets of one class: `limit` requests at once, refilled evenly over `window_s`."""

    __slots__ = ("_full_at", "_max_buckets", "_step", "_window_s", "limit", "name", "policy")

    def __init__(self, name: str, limit: int, window_s: float = WINDOW_S, max_buckets: int = MAX_BUCKETS) -> None:
        self.name = name
        self.limit = limit
        self._window_s = window_s
        self._step = window_s / limit
        self._max_buckets = max_buckets
        self._full_at: dict[object, float] = {}
        self.policy = f'"{name}";q={limit};w={math.ceil(window_s)}'.encode()

    def take(self, key: object, now: float) -> Verdict:
        """Takes one request out of the key's bucket; `now` in seconds of any steady clock."""
        full_at = self._full_at.get(key, now)
        full_at = (full_at if full_at > now else now) + self._step
        room = self._window_s - (full_at - now)
        if room < -SLACK_S:
            return Verdict(False, 0, full_at - self._step - now, -room)
        if key not in self._full_at and len(self._full_at) >= self._max_buckets:
            self._make_room(now)
        self._full_at[key] = full_at
        return Verdict(True, max(0, int(room / self._step + 0.5)), full_at - now, 0.0)

    def _make_room(self, now: float) -> None:
        kept = {key: full_at for key, full_at in self._full_at.items() if full_at > now}
        if len(kept) >= self._max_buckets:
            # Everybody is busy: a tenth goes, the longest known first, and starts anew.
            for key in list(kept)[: self._max_buckets // 10 + 1]:
                del kept[key]
        self._full_at = kept


Buckets = Mapping[int, Bucket]


def buckets(settings: Settings) -> Buckets:
    """The buckets by rate-limit class, with the settings' numbers; none where limits are off."""
    if not settings.rate_limits:
        return {}
    return {
        options.RATE_LIMIT_READ: Bucket("read", settings.reads_per_minute),
        options.RATE_LIMIT_POST: Bucket("post", settings.posts_per_minute),
        options.RATE_LIMIT_ACTION: Bucket("action", settings.actions_per_minute),
        options.RATE_LIMIT_AUTH: Bucket("auth", settings.logins_per_minute),
        options.RATE_LIMIT_SEARCH: Bucket("search", settings.searches_per_minute),
        options.RATE_LIMIT_ADMIN: Bucket("admin", settings.admin_calls_per_minute),
    }


def headers(bucket: Bucket, verdict: Verdict, unix_now: float) -> Headers:
    """What a client is told: the IETF draft's fields and X's. The draft still moves; this is the one place that knows it."""
    reset = math.ceil(verdict.reset_s)
    found = [
        (b"ratelimit", f'"{bucket.name}";r={verdict.remaining};t={reset}'.encode()),
        (b"ratelimit-policy", bucket.policy),
        (b"x-rate-limit-limit", str(bucket.limit).encode()),
        (b"x-rate-limit-remaining", str(verdict.remaining).encode()),
        (b"x-rate-limit-reset", str(int(unix_now) + reset).encode()),
    ]
    if not verdict.allowed:
        found.append((b"retry-after", str(max(1, math.ceil(verdict.retry_after_s))).encode()))
    return found


@functools.lru_cache(maxsize=MAX_KNOWN_ADDRESSES)
def client_key(address: str) -> str:
    """What an address is counted as: itself, or its network for IPv6."""
    if ":" not in address:
        return address
    try:
        network = ipaddress.IPv6Network((address.partition("%")[0], IPV6_PREFIX), strict=False)
    except ValueError:
        return address
    return str(network)
