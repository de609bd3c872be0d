"""Runs the checks of this repository and prints a table of them: the work behind `scripts/test` and `scripts/check`.

Everything runs even after something failed, so that one run shows all there is to mend. The exit status is 1 where anything failed.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
# The branch whose contract clients hold, as a checkout knows it: CI often has it as a remote branch only.
BASES = ("main", "origin/main")
# What pytest answers where it found no test at all.
NO_TESTS = 5

console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check came to; `reason` says why something was skipped or how it failed."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    reason: str = ""


Check = Callable[[], Outcome]


def tool(*argv: str) -> Check:
    """A check that passes where the program ends with 0."""
    return lambda: _outcome(subprocess.run([str(BIN / argv[0]), *argv[1:]], cwd=ROOT, check=False).returncode)


def breaking() -> Outcome:
    """Compares the protos with those of the branch main, or with where this branch left it."""
    base = next(
        (found for name in BASES if (found := _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"))), b""
    )
    if not base:
        return Outcome(skipped=1, reason="no branch main here to compare with")
    # In a shallow clone the two may have no common commit.
    base = _git("merge-base", base.decode(), "HEAD") or base
    if len(_git("ls-tree", "--name-only", base.decode(), "--", "buf.yaml", "protos").splitlines()) < 2:
        return Outcome(skipped=1, reason="main has no protos yet")
    # An archive, for buf can't read a work tree, a shallow clone or a detached checkout as a git source everywhere.
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(_git("archive", base.decode(), "--", "buf.yaml", "protos"))) as archive:
            archive.extractall(folder, filter="data")
        return tool("buf", "breaking", "--against", folder)()


def tests(folder: str, arguments: Sequence[str]) -> Check:
    """A check that runs the tests under `folder`, with further arguments for pytest."""
    return lambda: _pytest(folder, arguments)


def _pytest(folder: str, arguments: Sequence[str]) -> Outcome:
    if not any((ROOT / folder).rglob("test_*.py")):
        return Outcome(skipped=1, reason=f"no tests in {folder}")
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        argv = [sys.executable, "-m", "pytest", "-q", folder, f"--junitxml={report}", *arguments]
        code = subprocess.run(argv, cwd=ROOT, check=False).returncode
        suite = ElementTree.parse(report).find("testsuite") if report.exists() else None  # noqa: S314 – pytest wrote it.
    if suite is None:
        return Outcome(failed=1, reason=f"pytest ended with {code} and no report")
    total, failures, errors, skipped = (
        int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    if code not in (0, NO_TESTS) and failed == 0:
        return Outcome(total - skipped, 1, skipped, f"pytest ended with {code}")
    return Outcome(total - failed - skipped, failed, skipped)


def _outcome(code: int) -> Outcome:
    return Outcome(passed=1) if code == 0 else Outcome(failed=1, reason=f"exit status {code}")


def _git(*arguments: str) -> bytes:
    """What git printed, b"" where it failed or does not exist."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, check=False, capture_output=True)  # noqa: S607 – the user's git.
    except FileNotFoundError:
        return b""
    return done.stdout.strip(b"\n") if done.returncode == 0 else b""


def parts(arguments: Sequence[str]) -> dict[str, dict[str, Check]]:
    """The parts by name, each with its checks by name."""
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
        "unit": {"unit": tests("tests/unit", arguments)},
        "contract": {"contract": tests("tests/contract", arguments)},
        "functional": {"functional": tests("tests/functional", arguments)},
        "faults": {"faults": tests("tests/faults", arguments)},
        "cluster": {"cluster": lambda: Outcome(skipped=1, reason="comes with the cluster family")},
    }


def run(names: Sequence[str], arguments: Sequence[str]) -> int:
    """Runs the parts named, or all, and returns the exit status."""
    known = parts(arguments)
    unknown = sorted(set(names) - set(known))
    if unknown:
        console.print(f"no part is named {', '.join(unknown)}; there are {', '.join(known)}")
        return 2
    table = Table("check")
    for header in ("passed", "failed", "skipped", "seconds"):
        table.add_column(header, justify="right")
    table.add_column("")
    failed = 0
    for name, check in ((name, check) for part in names or known for name, check in known[part].items()):
        console.rule(name, align="left")
        began = time.monotonic()
        outcome = check()
        seconds = time.monotonic() - began
        failed += outcome.failed
        style = "red" if outcome.failed else "yellow" if not outcome.passed else None
        counts = (str(outcome.passed), str(outcome.failed), str(outcome.skipped))
        table.add_row(name, *counts, f"{seconds:.1f}", escape(outcome.reason), style=style)
    console.print(table)
    console.print(f"[red]{failed} failed[/red]" if failed else "[green]all passed[/green]")
    return 1 if failed else 0


def main(argv: Sequence[str]) -> int:
    """`PART … [-- PYTEST ARGUMENTS]`."""
    split = argv.index("--") if "--" in argv else len(argv)
    names, rest = argv[:split], argv[split + 1 :]
    if any(name.startswith("-") for name in names):
        console.print("usage: scripts/test [PART …] [-- PYTEST ARGUMENTS]   parts: " + ", ".join(parts(())))
        return 0 if {"-h", "--help"} & set(names) else 2
    try:
        return run(names, rest)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
