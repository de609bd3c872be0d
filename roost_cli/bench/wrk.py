"""Runs wrk, the load generator of `roost bench home`, and parses its output."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roost_cli.exit_codes import FAULTS, CommandError

# Prefix of the line of JSON that the Lua script prints with the figures. wrk's own report is not parsed, because its
# format changes between releases.
MARK = "roost-bench "
# Maximum number of seconds that wrk may take in addition to the length of the round, for starting, connecting and the
# last responses.
SPARE_S = 30.0
# Maximum number of characters of wrk's output in an error message; of a longer output, the end is printed.
SHOWN_CHARS = 500

# The first part of the Lua script. Each request uses the next token; the script's argument defines the first one, so
# that rounds begin at different users. All requests are built before the round, which keeps the script's share of wrk's
# CPU time small.
_SCRIPT = """\
local tokens = {
%s
}
local requests, count, last = {}, #tokens, 0
function init(arguments)
  last = tonumber(arguments[1])
  for number, token in ipairs(tokens) do
    requests[number] = wrk.format("GET", nil, { ["Authorization"] = "Bearer " .. token })
  end
end
function request()
  last = last %% count + 1
  return requests[last]
end
"""
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


def script(tokens: Sequence[str]) -> str:
    """Returns a Lua script for wrk whose requests use the tokens in turn. The script's argument is the number of tokens
    to skip at the start."""
    # Tokens consist of letters, digits, dots, dashes and underscores; any other character could end the Lua string.
    assert all(token.replace(".", "").replace("-", "").replace("_", "").isalnum() for token in tokens)
    return _SCRIPT % ",\n".join(f'"{token}"' for token in tokens) + _DONE % MARK


def program() -> str:
    """Returns the path of wrk. Raises CommandError with an instruction to install wrk if wrk is not on PATH."""
    if found := shutil.which("wrk"):
        return found
    raise CommandError("wrk is not on PATH: install it (`apt-get install wrk`, or `brew install wrk`)")


async def run(script_file: Path, url: str, *, connections: int, seconds: int, start: int) -> Figures:
    """Runs wrk for `seconds` seconds with one thread and `connections` connections, and returns its figures. `start` is
    the argument of the Lua script.

    Raises CommandError if wrk fails, or does not end within `seconds` + SPARE_S seconds.
    """
    options = ("-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script_file), url, "--", str(start))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(program(), *options, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    try:
        output, _ = await asyncio.wait_for(process.communicate(), seconds + SPARE_S)
    except TimeoutError:
        raise CommandError(f"wrk did not end within {seconds + SPARE_S:g} s", FAULTS) from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    return parse(output.decode(errors="replace"))


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
