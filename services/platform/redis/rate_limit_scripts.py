"""Token buckets in Redis, which all processes of a mesh share: the rules of `rpc.token_buckets` and of failed log-ins
(`rpc.rate_limit_counts`) as Lua scripts, each of which Redis runs as one step.

A bucket is stored as its debt, that is, the microseconds until it is full, and the time at which it had this debt. The
time is that of the Redis server, so clocks of processes do not matter. If the clock of the server is set back, or after
a fail-over to a server whose clock is behind, a bucket keeps its debt and refills from then on; a clock that is set
forward refills buckets early. A full bucket needs no key, so keys expire soon after their bucket is full.

Names of keys contain no username, e-mail address or client address, only keyed hashes of them, and no run id: buckets
that survive a fail-over stay valid.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from services.platform.redis.client import Redis
from services.platform.redis.connection import RedisConnection, ReplyError, command
from services.platform.redis.node_pool import Node
from services.platform.rpc import errors
from services.platform.rpc.rate_limit_counts import FAILURES, SLOWED_FAILURES, STRANGERS_FAILURES
from services.platform.rpc.token_buckets import SLACK_S, Limit, Verdict, verdict_of

# Number of hash tags over which the keys of the classes are spread: one call of a script may use only keys of one hash
# tag, so with more of them a report needs more calls, and with fewer a node of a cluster gets more than its share.
SHARDS = 64
# Maximum number of keys in one call of a script. Redis needs about 2 µs a key, during which it serves no other client.
KEYS_PER_CALL = 100
# Milliseconds by which a key outlives its bucket: expiry only frees memory, and what counts is the stored debt.
TTL_MARGIN_MS = 60_000
# Seconds for which Redis remembers that an address logged in to an account, after the last log-in.
OWNER_TTL_S = 30 * 86_400
# Bytes of a keyed hash in the name of a key: two different names get the same hash with a probability of 2^-96.
HASH_BYTES = 12
_US = 1_000_000
_TAGS = [f"rl{shard}" for shard in range(SHARDS)]

# Each script begins with this text. The first argument is the current time in microseconds, 0 for the clock of Redis.
# Numbers are stored with 17 digits, with which a float is read as it was written.
_COMMON = f"""
local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local function store(key, debt)
  if debt > 0 then
    redis.call('SET', key, string.format('%.17g %.17g', debt, now), 'PX', math.ceil(debt / 1000) + {TTL_MARGIN_MS})
  else
    redis.call('DEL', key)
  end
end
local function debt_of(key)
  local stored = redis.call('GET', key)
  if not stored then return 0 end
  local debt, at = string.match(stored, '(%S+) (%S+)')
  debt, at = tonumber(debt), tonumber(at)
  if at > now then
    -- The clock was set back: the bucket refills from now on.
    store(key, debt)
    return debt
  end
  return math.max(0, debt - (now - at))
end
local function add(key, cost)
  local debt = math.max(0, debt_of(key) + cost)
  store(key, debt)
  return math.ceil(debt)
end
local function take(key, step, window)
  local debt = debt_of(key)
  if debt + step > window + {SLACK_S * _US:g} then return false, string.format('%.17g', debt) end
  store(key, debt + step)
  return true, string.format('%.17g', debt + step)
end
"""
# KEYS: buckets of one limit. ARGV: the time, the step in microseconds, and for each bucket the number of requests.
# Returns the debts.
_ADD = (
    _COMMON
    + """
local debts = {}
for at, key in ipairs(KEYS) do debts[at] = add(key, ARGV[2] * ARGV[at + 2]) end
return debts
"""
)
# KEYS: buckets. ARGV: the time, and for each bucket the step in microseconds. Gives back one request of each bucket.
_GIVE_BACK = (
    _COMMON
    + """
for at, key in ipairs(KEYS) do add(key, -ARGV[at + 1]) end
return 0
"""
)
# KEYS: a bucket. ARGV: the time, the step and the window in microseconds. Returns 1 if the request is allowed, else 0,
# and the debt.
_TAKE = (
    _COMMON
    + """
local allowed, debt = take(KEYS[1], tonumber(ARGV[2]), tonumber(ARGV[3]))
return {allowed and 1 or 0, debt}
"""
)
# KEYS: the buckets of `AttemptKeys` in order, and the key of the owner's address. ARGV: the time, and step and window of
# each bucket in microseconds. Returns the index of the bucket that rejects the attempt (0: it is admitted), its debt,
# and the indexes of the buckets in which the attempt is counted.
_ATTEMPT = (
    _COMMON
    + """
local function take_from(at) return take(KEYS[at], tonumber(ARGV[2 * at]), tonumber(ARGV[2 * at + 1])) end
local allowed, debt = take_from(1)
if not allowed then return {1, debt} end
if redis.call('EXISTS', KEYS[4]) == 1 then return {0, '0', 1} end
if take_from(2) then return {0, '0', 1, 2} end
allowed, debt = take_from(3)
if allowed then return {0, '0', 1, 3} end
add(KEYS[1], -tonumber(ARGV[2]))
return {3, debt}
"""
)
_ATTEMPT_LIMITS = (FAILURES, STRANGERS_FAILURES, SLOWED_FAILURES)


class CountedAttempt(NamedTuple):
    """An admitted attempt to log in: the names of the buckets in which it is counted, by the limit of each."""

    tag: str
    owner_key: str
    counted: Sequence[tuple[str, Limit]]


class RateLimitScripts:
    """Runs the scripts on Redis. Every method raises UNAVAILABLE if Redis does not answer within `redis_timeout_s`
    seconds or rejects a command.

    `secret` is the same in all processes of the mesh: it keys the hashes in names of keys. `time_us` replaces the clock
    of Redis, in microseconds, in tests of the passage of time.
    """

    # The text of a script is sent with each call. Redis finds the compiled script by the hash of the text, about 3 µs;
    # in return, no call can fail because Redis no longer has the script.

    def __init__(self, redis: Redis, secret: bytes, time_us: Callable[[], int] | None = None) -> None:
        self._redis = redis
        self._time_us = time_us or (lambda: 0)
        self._secret = hashlib.blake2b(secret, person=b"roost-limits").digest()
        # A different prefix for each mesh, because meshes may share one Redis server.
        self._prefix = self._hash("prefix")

    async def take(self, limit: Limit, key: object) -> Verdict:
        """Counts one request of the key and returns whether it is allowed. A rejected request is not counted."""
        tag, name = self._name(limit, key)
        call = self._eval(_TAKE, [name], [_us(limit.step_s), _us(limit.window_s)])
        ((allowed, debt),) = await self._run(await self._redis.node(tag).reads(), [call])
        return verdict_of(limit, bool(allowed), float(debt) / _US)

    async def add(self, limit: Limit, requests: Mapping[object, int]) -> dict[object, float]:
        """Counts requests that were allowed already, by key, even above the limit. Returns by key the seconds until its
        bucket is full, without the keys of nodes that do not answer. Raises UNAVAILABLE if no node answers."""
        step = _us(limit.step_s)
        by_node: dict[Node, list[tuple[list[object], bytes]]] = {}
        for tag, keys in self._by_tag(limit, requests):
            calls = by_node.setdefault(self._redis.node(tag), [])
            for at in range(0, len(keys), KEYS_PER_CALL):
                some = keys[at : at + KEYS_PER_CALL]
                names = [self._name(limit, key)[1] for key in some]
                calls.append((some, self._eval(_ADD, names, [step, *[requests[key] for key in some]])))
        debts: dict[object, float] = {}

        async def add_on(node: Node, calls: list[tuple[list[object], bytes]]) -> None:
            # A report may be a long pipeline, which must not delay reads.
            replies = await self._run(await node.writes(), [call for _, call in calls])
            for (keys, _), found in zip(calls, replies, strict=True):
                debts.update(zip(keys, [debt / _US for debt in found], strict=True))

        outcomes = await asyncio.gather(
            *(add_on(node, calls) for node, calls in by_node.items()), return_exceptions=True
        )
        failures = [outcome for outcome in outcomes if outcome is not None]
        for failure in failures:
            # One node that is down must not make limits of all keys count per process.
            if len(failures) == len(outcomes) or not isinstance(failure, errors.RoostError):
                raise failure
        return debts

    async def attempt(self, account: str, address: str) -> CountedAttempt | Verdict:
        """Counts an attempt to log in to the account from the address. Returns the attempt, or the verdict of the limit
        that rejects it; a rejected attempt is not counted."""
        # All keys of an account have one hash tag, because one script uses them together.
        tag, pair = self._hash("account", account), self._hash("pair", account, address)
        buckets = [f"rlf:{{{tag}}}:{pair}", f"rls:{{{tag}}}", f"rlw:{{{tag}}}:{pair}"]
        owner_key = f"rlo:{{{tag}}}:{pair}"
        arguments = [_us(seconds) for limit in _ATTEMPT_LIMITS for seconds in (limit.step_s, limit.window_s)]
        call = self._eval(_ATTEMPT, [*buckets, owner_key], arguments)
        ((rejecting, debt, *counted),) = await self._run(await self._redis.node(tag).reads(), [call])
        if rejecting:
            return verdict_of(_ATTEMPT_LIMITS[rejecting - 1], False, float(debt) / _US)
        return CountedAttempt(tag, owner_key, [(buckets[at - 1], _ATTEMPT_LIMITS[at - 1]) for at in counted])

    async def undo(self, attempt: CountedAttempt, *, remember: bool) -> None:
        """Makes the attempt not count. If `remember` is true, its address counts as one of the account's owner from now
        on."""
        names = [name for name, _ in attempt.counted]
        calls = [self._eval(_GIVE_BACK, names, [_us(limit.step_s) for _, limit in attempt.counted])]
        if remember:
            calls.append(command("SET", attempt.owner_key, 1, "EX", OWNER_TTL_S))
        await self._run(await self._redis.node(attempt.tag).reads(), calls)

    def _hash(self, kind: str, *parts: str) -> str:
        text = "\0".join((kind, *parts))
        return hashlib.blake2b(text.encode(errors="replace"), key=self._secret, digest_size=HASH_BYTES).hexdigest()

    def _name(self, limit: Limit, key: object) -> tuple[str, str]:
        """Returns the hash tag and the name of the key in Redis. `key` is a user id or an address."""
        if isinstance(key, int):
            # A user id is no secret, and hashing it would cost as much as the rest of the report.
            tag = _TAGS[key % SHARDS]
            return tag, f"{{{tag}}}:{self._prefix}:{limit.name}:{key}"
        text = self._hash("address", str(key))
        tag = _TAGS[int(text[:2], 16) % SHARDS]
        return tag, f"{{{tag}}}:{self._prefix}:{limit.name}:{text}"

    def _by_tag(self, limit: Limit, keys: Collection[object]) -> Iterable[tuple[str, list[object]]]:
        """Returns the keys by the hash tag of their names; all in one list if Redis is no cluster."""
        if not self._redis.clustered:
            return [("", list(keys))]
        found: dict[str, list[object]] = {}
        for key in keys:
            found.setdefault(self._name(limit, key)[0], []).append(key)
        return found.items()

    def _eval(self, script: str, keys: Sequence[str], arguments: Sequence[str | int]) -> bytes:
        return command("EVAL", script, len(keys), *keys, self._time_us(), *arguments)

    async def _run(self, connection: RedisConnection, calls: Sequence[bytes]) -> list[Any]:
        replies = await connection.execute(b"".join(calls), len(calls))
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise self._redis.refusal(reply)
        return replies


def _us(seconds: float) -> str:
    return repr(seconds * _US)
