"""Runs wrk, the load generator of `roost bench home`, and parses its output."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from roost_cli.exit_codes import FAULTS, CommandError

# The line that the Lua script prints whenever it is time for a post.
POST_MARK = "roost-post"
# Prefix of the line of JSON that the Lua script prints with the figures. wrk's own report is not parsed, because its
# format changes between releases.
MARK = "roost-bench "
# Maximum number of seconds that wrk may take in addition to the length of the round, for starting, connecting and the
# last responses.
SPARE_S = 30.0
# Maximum number of characters of wrk's output in an error message; of a longer output, the end is printed.
SHOWN_CHARS = 500

# The first part of the Lua script. Each request is the next one of a list; the script's first argument defines where it
# begins, so that rounds begin at different users. If the second argument is not 0, the script prints POST_MARK before
# each so many requests. All requests are built before the round, which keeps the script's share of wrk's CPU time small.
_SCRIPT = """\
local paths = {
%s
}
local tokens = {
%s
}
local requests, count, last, sent, every = {}, #tokens, 0, 0, 0
function init(arguments)
  last, every = tonumber(arguments[1]), tonumber(arguments[2])
  for number, token in ipairs(tokens) do
    local path = paths[(number - 1) %% #paths + 1]
    requests[number] = wrk.format("GET", path, { ["Authorization"] = "Bearer " .. token })
  end
end
function request()
  last, sent = last %% count + 1, sent + 1
  if every > 0 and sent %% every == 0 then
    io.write("POST_MARK\\n")
    io.flush()
  end
  return requests[last]
end
"""
_PLAIN = frozenset(string.ascii_letters + string.digits + "._-/?&=%+")
_DONE = """\
function done(summary, latency, requests)
  local e = summary.errors
  io.write("\\n%s", string.format(
    '{"requests": %%.0f, "duration_us": %%.0f, "bytes": %%.0f, "p50_us": %%.0f, "p99_us": %%.0f, ',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99)))
  io.write(string.format('"refused": %%.0f, "broken": %%.0f}\\n', e.status, e.connect + e.read + e.write + e.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one run of wrk. `bytes` is the size of all responses together, headers included. `refused` is the
    number of responses with status 400 or above, `broken` is the number of requests without a complete response."""

    requests: int
    seconds: float
    bytes: int
    p50_ms: float
    p99_ms: float
    refused: int
    broken: int


def script(paths: Sequence[str], tokens: Sequence[str]) -> str:
    """Returns a Lua script for wrk whose requests use the tokens and the paths in turn: request n has token n and path
    n, each counted in a circle. There must be no more paths than tokens.

    The script's first argument is the number of requests to skip at the start, the second the number of requests before
    each line POST_MARK (0: no such lines).
    """
    # Any other character could end the Lua string.
    assert all(_PLAIN.issuperset(text) for text in (*paths, *tokens))
    parts = (",\n".join(f'"{text}"' for text in texts) for texts in (paths, tokens))
    return _SCRIPT.replace("POST_MARK", POST_MARK) % tuple(parts) + _DONE % MARK


def program() -> str:
    """Returns the path of wrk. Raises CommandError with an instruction to install wrk if wrk is not on PATH."""
    if found := shutil.which("wrk"):
        return found
    raise CommandError("wrk is not on PATH: install it (`apt-get install wrk`, or `brew install wrk`)")


async def run(
    script_file: Path,
    url: str,
    *,
    connections: int,
    seconds: int,
    start: int,
    post: Callable[[], object] | None = None,
    reads_a_post: int = 0,
) -> Figures:
    """Runs wrk for `seconds` seconds with one thread and `connections` connections, and returns its figures. `start` is
    the first argument of the Lua script. Calls `post` after each `reads_a_post` requests, if that is not 0.

    Raises CommandError if wrk fails, or does not end within `seconds` + SPARE_S seconds.
    """
    arguments = (str(start), str(reads_a_post))
    options = ("-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script_file), url, "--", *arguments)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(program(), *options, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    assert process.stdout is not None, "made with a pipe"
    lines: list[str] = []
    try:
        async with asyncio.timeout(seconds + SPARE_S):
            async for line in process.stdout:
                text = line.decode(errors="replace")
                if text.strip() != POST_MARK:
                    lines.append(text)
                elif post is not None:
                    post()
            await process.wait()
    except TimeoutError:
        raise CommandError(f"wrk did not end within {seconds + SPARE_S:g} s", FAULTS) from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    return parse("".join(lines))


def parse(output: str) -> Figures:
    """Returns the figures in wrk's output. Raises CommandError with the end of the output if it contains none."""
    line = next((line for line in output.splitlines() if line.startswith(MARK)), None)
    if line is None:
        raise CommandError(f"wrk failed: {output.strip()[-SHOWN_CHARS:]}", FAULTS)
    found = json.loads(line.removeprefix(MARK))
    return Figures(
        requests=found["requests"],
        seconds=found["duration_us"] / 1e6,
        bytes=found["bytes"],
        p50_ms=found["p50_us"] / 1e3,
        p99_ms=found["p99_us"] / 1e3,
        refused=found["refused"],
        broken=found["broken"],
    )
