"""Runs the checks of this repository and prints a table of the results. `scripts/test` and `scripts/check` call it.

It continues after a failure, so that one run shows everything to fix. The exit status is 0 if all checks passed, 1 if
any failed, 2 if the arguments are wrong. A failed test is never repeated. The contract, functional and fault tests run
once for each backend. The cluster backend needs real servers: servers that do not respond are started before the tests
and stopped afterwards.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from roost_cli.backends.addresses import missing
from services.platform.config import Settings

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
BACKENDS = (str(ROOT / "scripts" / "backends"),)
# Names of the main branch, with whose protos those of the work tree must be compatible, because clients use them. In a
# CI checkout, main often exists only as a remote branch.
BASES = ("main", "origin/main")
# pytest's exit status if it collected no test.
NO_TESTS = 5
# Options of pytest-xdist. All tests of a file run in the same worker, because they may share a mesh. The files run in
# the order of tests/conftest.py, slow ones first. In xdist's own order, files with few tests come last; a slow file
# among them would keep one worker busy at the end while the others are idle.
BY_FILE = ("--dist", "loadfile", "--no-loadscope-reorder")
# For tests that mostly use the CPU: one worker for each core.
PER_CORE = ("-n", "auto", *BY_FILE)
# For tests that mostly wait for servers or disks: three workers. On two cores, they take a third of the time of one
# worker.
WAITING = ("-n", "3", *BY_FILE)
BACKEND_NAMES = EMBEDDED, CLUSTER = "embedded", "cluster"
# The command-line option that names a backend whose tests must not be skipped.
REQUIRE = "--require="
# The command-line option of this script, and of pytest, that includes the tests marked `long`.
ALL = "--all"
# The reason with which tests/conftest.py skips tests marked `long` if ALL is not given.
LONG_REASON = "runs only with --all"
# Maximum number of seconds until a server responds after its start, without downloads. It is long, because a loaded
# machine takes minutes to start four servers.
SERVERS_WITHIN_S = 300
# Seconds that each check may take on two cores if no other program runs. The table marks a check that takes longer, but
# the check does not fail, because the time also depends on the machine and its load. If a test makes a check too long,
# mark it `long` or make it faster. The sum of the bounds is 0.7 of the 30 minutes that a run took before there were
# bounds.
BOUNDS_S: Mapping[str, float] = {
    "ruff check": 5,
    "ruff format": 5,
    "mypy": 40,
    "imports": 15,
    "buf lint": 10,
    "buf format": 10,
    "buf breaking": 10,
    "servers": 75,
    "unit": 150,
    "contract · embedded": 50,
    "contract · cluster": 340,
    "functional · embedded": 170,
    "functional · cluster": 320,
    "faults · embedded": 30,
    "faults · cluster": 10,
    "kubernetes": 20,
}
# Maximum sum of the bounds in minutes. If a run took longer, developers would not run it before every push.
RUN_WITHIN_MINUTES = 21

console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a check: the numbers of passed, failed and skipped tests, or 1 in one of them for a check without
    tests.

    `reason` says why the check was skipped or failed. `left_out` is the number of tests that run only with ALL, which
    `skipped` does not count.
    """

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    reason: str = ""
    left_out: int = 0


Check = Callable[[], Outcome]


def tool(*argv: str) -> Check:
    """Returns a check that runs a program of the virtual environment, and passes if the exit status is 0."""
    return lambda: _outcome(subprocess.run([str(BIN / argv[0]), *argv[1:]], cwd=ROOT, check=False).returncode)


def breaking() -> Outcome:
    """Checks with buf that the protos are compatible with those of the last common commit with the main branch.

    The check is skipped if there is no main branch, or if it has no protos.
    """
    base = next(
        (found for name in BASES if (found := _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"))), b""
    )
    if not base:
        return Outcome(skipped=1, reason="no branch main here to compare with")
    # A shallow clone may lack the common commit. The last commit of the main branch is then used.
    base = _git("merge-base", base.decode(), "HEAD") or base
    if len(_git("ls-tree", "--name-only", base.decode(), "--", "buf.yaml", "protos").splitlines()) < 2:
        return Outcome(skipped=1, reason="main has no protos yet")
    # buf gets the protos as files, because it cannot read every shallow clone, detached checkout or additional work
    # tree with git.
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(_git("archive", base.decode(), "--", "buf.yaml", "protos"))) as archive:
            archive.extractall(folder, filter="data")
        return tool("buf", "breaking", "--against", folder)()


def tests(folder: str, arguments: Sequence[str]) -> Check:
    """Returns a check that runs the tests under `folder`. `arguments` are passed to pytest."""
    return lambda: _pytest(folder, arguments)


class Servers:
    """Starts and stops the servers of the cluster backend for one run.

    If they cannot be started, the checks that need them are skipped, or fail if `required` is true.
    """

    def __init__(self, required: bool) -> None:
        self._required = required
        self._absent = ""
        self._started: list[str] = []

    def start(self) -> Outcome:
        """Starts the servers that do not respond at the addresses in the settings.

        Call it before running the checks that `needed` returned.
        """
        silent = missing(Settings())
        if not silent:
            return Outcome(passed=1, reason="all ran already")
        names = [words.split()[0] for words in silent]
        running = subprocess.run([*BACKENDS, "status", *names, "--json"], check=False, stdout=subprocess.PIPE).stdout
        # A server may run although it does not respond at the address in the settings. `stop` must not stop it, so only
        # servers that are down are recorded.
        self._started = [row["name"] for row in json.loads(running or b"[]") if row["state"].startswith("down")]
        complaint = self._up(names)
        if complaint or missing(Settings()):
            self._absent = complaint or f"no answer from {', '.join(missing(Settings()))}"
            return self._missed()
        return Outcome(passed=1, reason=f"started {', '.join(self._started)}")

    def stop(self) -> None:
        """Stops only the servers that `start` started."""
        if self._started:
            subprocess.run([*BACKENDS, "down", *self._started], check=False)

    def needed(self, check: Check) -> Check:
        """Returns a check that runs `check` if the servers respond. If they do not, it is skipped, or fails if
        `required` is true.

        If `required` is true, it also fails if `check` contains no test, not even one that runs only with ALL.
        """

        def run() -> Outcome:
            if self._absent:
                return self._missed()
            outcome = check()
            if self._required and not (outcome.passed or outcome.failed or outcome.left_out):
                return replace(outcome, failed=1, reason="no test ran")
            return outcome

        return run

    def _missed(self) -> Outcome:
        return Outcome(failed=1, reason=self._absent) if self._required else Outcome(skipped=1, reason=self._absent)

    def _up(self, names: Sequence[str]) -> str:
        """Starts the servers and prints the progress. Returns the first line of the error, "" if all servers
        started."""
        said: list[str] = []
        argv = [*BACKENDS, "up", *names, f"--wait={SERVERS_WITHIN_S}"]
        with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                sys.stderr.write(line)
                said.append(line.strip())
        if process.returncode == 0:
            return ""
        # The output is the progress, an empty line, and then the error.
        return next(filter(None, said[said.index("") :] if "" in said else said), f"exit status {process.returncode}")


def _pytest(folder: str, arguments: Sequence[str]) -> Outcome:
    """Runs the tests in `folder` and returns the result from pytest's report."""
    if not any((ROOT / folder).rglob("test_*.py")):
        return Outcome(skipped=1, reason=f"no tests in {folder}")
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        argv = [sys.executable, "-m", "pytest", "-q", folder, f"--junitxml={report}", *arguments]
        code = subprocess.run(argv, cwd=ROOT, check=False).returncode
        if not report.exists():
            return Outcome(failed=1, reason=f"pytest ended with {code} and no report")
        return counted(report, code)


def counted(report: Path, code: int) -> Outcome:
    """Returns the result of a run of pytest from its JUnit report and its exit status `code`."""
    suite = ElementTree.parse(report).find("testsuite")  # noqa: S314 – pytest wrote it.
    if suite is None:
        return Outcome(failed=1, reason=f"pytest ended with {code} and an empty report")
    total, failures, errors, skipped = (
        int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")
    )
    left_out = sum(LONG_REASON in one.get("message", "") for one in suite.iter("skipped"))
    failed = failures + errors
    passed = total - failed - skipped
    if code not in (0, NO_TESTS) and failed == 0:
        return Outcome(passed, 1, skipped - left_out, f"pytest ended with {code}", left_out)
    return Outcome(passed, failed, skipped - left_out, left_out=left_out)


def _outcome(code: int) -> Outcome:
    return Outcome(passed=1) if code == 0 else Outcome(failed=1, reason=f"exit status {code}")


def _git(*arguments: str) -> bytes:
    """Returns the output of a git command; b"" if the command fails or git is not installed."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, check=False, capture_output=True)  # noqa: S607 – the user's git.
    except FileNotFoundError:
        return b""
    return done.stdout.strip(b"\n") if done.returncode == 0 else b""


def parts(arguments: Sequence[str], servers: Servers) -> dict[str, dict[str, Check]]:
    """Returns the parts of a run by name, each as checks by name. A check may belong to several parts. `arguments` are
    passed to pytest."""
    start = {"servers": servers.start}
    suites: dict[str, dict[str, Check]] = {}
    for suite in ("contract", "functional", "faults"):
        # Fault tests run without other tests, because each starts and kills processes of its own.
        spread = () if suite == "faults" else WAITING
        for backend in BACKEND_NAMES:
            check = tests(f"tests/{suite}", [f"--backend={backend}", *spread, *arguments])
            checks = suites.setdefault(suite, {}), suites.setdefault(backend, {})
            for named in checks:
                named[f"{suite} · {backend}"] = check if backend == EMBEDDED else servers.needed(check)
    return {
        "lint": {
            "ruff check": tool("ruff", "check", "."),
            "ruff format": tool("ruff", "format", "--check", "."),
            "mypy": tool("mypy"),
            "imports": tool("lint-imports", "--no-logo"),
            "buf lint": tool("buf", "lint"),
            "buf format": tool("buf", "format", "--diff", "--exit-code", "--path", "protos/roost"),
            "buf breaking": breaking,
        },
        # The servers are started before the unit tests, because some unit tests use servers that respond.
        "servers": start,
        "unit": {"unit": tests("tests/unit", [*PER_CORE, *arguments])},
        "contract": start | suites["contract"],
        "functional": start | suites["functional"],
        "faults": start | suites["faults"],
        "kubernetes": {"kubernetes": tests("tests/k8s", arguments)},
        EMBEDDED: suites[EMBEDDED],
        CLUSTER: start | suites[CLUSTER],
    }


def run(names: Sequence[str], arguments: Sequence[str], required: Sequence[str] = (), everything: bool = False) -> int:
    """Runs the named parts, or all parts if `names` is empty, and returns the exit status.

    `arguments` are passed to pytest. If the tests of a backend in `required` cannot run, they fail instead of being
    skipped. If `everything` is true, tests marked `long` run too, and no bounds apply.
    """
    servers = Servers(CLUSTER in required)
    known = parts([ALL, *arguments] if everything else arguments, servers)
    unknown = sorted(set(names) - set(known))
    if unknown:
        console.print(f"no part is named {', '.join(unknown)}; there are {', '.join(known)}")
        return 2
    chosen = {name: check for part in names or known for name, check in known[part].items()}
    try:
        return report(chosen, {} if everything else BOUNDS_S)
    finally:
        servers.stop()


def report(checks: Mapping[str, Check], bounds_s: Mapping[str, float]) -> int:
    """Runs the checks in order and prints the table of results. Returns 1 if a check failed, otherwise 0. `bounds_s`
    are the bounds of checks by name, in seconds."""
    table = Table("check")
    for header in ("passed", "failed", "skipped", "seconds", "bound"):
        table.add_column(header, justify="right")
    table.add_column("")
    failed, total_s = 0, 0.0
    for name, check in checks.items():
        console.rule(name, align="left")
        began = time.monotonic()
        outcome = check()
        seconds = time.monotonic() - began
        total_s += seconds
        failed += outcome.failed
        bound_s = bounds_s.get(name)
        late = bound_s is not None and seconds > bound_s
        style = "red" if outcome.failed else "yellow" if late or not outcome.passed else None
        counts = (str(outcome.passed), str(outcome.failed), str(outcome.skipped))
        times = (f"{seconds:.1f}", "" if bound_s is None else f"{bound_s:.0f}")
        table.add_row(name, *counts, *times, escape(remarks(outcome, late)), style=style)
    console.print(table)
    console.print(f"{total_s / 60:.1f} minutes" + (f" of at most {RUN_WITHIN_MINUTES}" if bounds_s else ""))
    console.print(f"[red]{failed} failed[/red]" if failed else "[green]all passed[/green]")
    return 1 if failed else 0


def remarks(outcome: Outcome, late: bool) -> str:
    """Returns the text in the last column of the table: the reason, the number of tests left out, and whether the check
    exceeded its bound (`late`)."""
    found = [outcome.reason]
    if outcome.left_out:
        found.append(f"{outcome.left_out} only in {ALL}")
    if late:
        found.append("slower than its bound")
    return "; ".join(filter(None, found))


def main(argv: Sequence[str]) -> int:
    """Parses `[--all] [--require=BACKEND] PART … [-- PYTEST ARGUMENTS]`, runs the parts and returns the exit status."""
    split = argv.index("--") if "--" in argv else len(argv)
    given, rest = argv[:split], argv[split + 1 :]
    required = [word.removeprefix(REQUIRE) for word in given if word.startswith(REQUIRE)]
    names = [word for word in given if word != ALL and not word.startswith(REQUIRE)]
    if any(name.startswith("-") for name in names):
        known = ", ".join(parts((), Servers(required=False)))
        console.print(f"usage: scripts/test [{ALL}] [PART …] [-- PYTEST ARGUMENTS]   parts: {known}", markup=False)
        return 0 if {"-h", "--help"} & set(names) else 2
    try:
        return run(names, rest, required, everything=ALL in given)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
