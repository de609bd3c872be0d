"""Runs wrk, the load generator of `roost bench`, and parses its figures."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roost_cli.exit_codes import FAULTS, CommandError

# The prefix of the JSON line that the Lua script prints. wrk's own report is not parsed, because it changes between
# releases.
MARK = "roost-bench "
# Extra seconds for connecting, reading the script, and the last responses.
SPARE_S = 30.0
# Characters of wrk's output in an error message.
SHOWN_CHARS = 500

# Each request uses the next user's token, starting from an argument, so that rounds begin at different users. Requests
# are built once, which keeps the script's share of wrk's CPU time small.
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
    """Figures of one run. `bytes` includes headers; `refused` counts responses with status 400 or above, `broken`
    requests without a complete response."""

    requests: int
    seconds: float
    bytes: int
    p50_ms: float
    p99_ms: float
    refused: int
    broken: int


def script(tokens: Sequence[str]) -> str:
    """Returns a Lua script for wrk in which each request uses the next token. Its argument is the number of the
    token to start after."""
    # Tokens consist of letters, digits, dots, dashes and underscores; any other character could end the Lua string.
    assert all(token.replace(".", "").replace("-", "").replace("_", "").isalnum() for token in tokens)
    return _SCRIPT % ",\n".join(f'"{token}"' for token in tokens) + _DONE % MARK


def program() -> str:
    """Returns the path of wrk. Raises CommandError, saying how to install it, if it is not on PATH."""
    if found := shutil.which("wrk"):
        return found
    raise CommandError("wrk is not on PATH: install it (`apt-get install wrk`, or `brew install wrk`)")


async def run(script_file: Path, url: str, *, connections: int, seconds: int, start: int) -> Figures:
    """Runs wrk for `seconds` seconds in one thread. Raises CommandError if it fails or does not end."""
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
    """Parses the figures from wrk's output. Raises CommandError, with the end of the output, if there are none."""
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
