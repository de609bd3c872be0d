"""What the table of `scripts/test` says, and that it runs each test once."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from scripts import checks
from scripts.checks import ALL, BOUNDS_S, RUN_WITHIN_MINUTES, Outcome, Servers, parts

CLUSTER_BACKEND = "--backend=cluster"
# With the options and markers of this repository's tests, in a folder outside it.
PLUGIN = ("-p", "tests.conftest", "-p", "no:cacheprovider")


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(record=True, width=200)
    monkeypatch.setattr(checks, "console", console)
    return console


def test_tests_failing_test_runs_once(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (tmp_path / "test_flaky.py").write_text(
        f"def test_flaky():\n    with open({str(runs)!r}, 'a') as file:\n        file.write('ran ')\n"
        f"    assert open({str(runs)!r}).read().count('ran') > 1\n"
    )
    outcome = checks.tests(str(tmp_path), ())()
    assert (outcome.passed, outcome.failed) == (0, 1)
    assert runs.read_text() == "ran "


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((), Outcome(passed=2, skipped=1, left_out=2)),
        ((CLUSTER_BACKEND,), Outcome(passed=1, skipped=1, left_out=3)),
        ((ALL,), Outcome(passed=4, skipped=1)),
    ],
    ids=["embedded", "cluster", "with --all"],
)
def test_tests_long_tests_are_counted_or_run(tmp_path: Path, arguments: tuple[str, ...], wanted: Outcome) -> None:
    (tmp_path / "test_long.py").write_text(
        "import pytest\n\n"
        "def test_short():\n    pass\n\n"
        "@pytest.mark.long\n@pytest.mark.parametrize('seed', [1, 2])\ndef test_long(seed):\n    pass\n\n"
        "@pytest.mark.long('cluster')\ndef test_long_on_cluster():\n    pass\n\n"
        "@pytest.mark.skip(reason='no reason')\ndef test_skipped():\n    pass\n"
    )
    assert checks.tests(str(tmp_path), [*PLUGIN, *arguments])() == wanted


def test_tests_no_report_fails(tmp_path: Path) -> None:
    (tmp_path / "test_any.py").write_text("def test_any():\n    pass\n")
    outcome = checks.tests(str(tmp_path), ["--no-such-option"])()
    assert (outcome.passed, outcome.failed) == (0, 1)
    assert "no report" in outcome.reason


def test_tests_error_in_collection_fails(tmp_path: Path) -> None:
    (tmp_path / "test_broken.py").write_text("import no_such_module\n")
    assert checks.tests(str(tmp_path), ())().failed == 1


def test_bounds_cover_every_check_and_add_up() -> None:
    every = {name for part in parts((), Servers(required=False)).values() for name in part}
    assert every == set(BOUNDS_S)
    assert sum(BOUNDS_S.values()) <= RUN_WITHIN_MINUTES * 60


@pytest.mark.parametrize(
    ("outcome", "failed"),
    [(Outcome(passed=1), 0), (Outcome(left_out=1), 0), (Outcome(skipped=3), 1), (Outcome(), 1)],
    ids=["passed", "left out", "all skipped", "no test"],
)
def test_needed_required_check_without_a_test_fails(outcome: Outcome, failed: int) -> None:
    assert Servers(required=True).needed(lambda: outcome)().failed == failed
    assert Servers(required=False).needed(lambda: outcome)() == outcome


def test_parts_run_every_test_folder() -> None:
    folders = {path.name for path in (checks.ROOT / "tests").iterdir() if list(path.rglob("test_*.py"))}
    named = {name.partition(" · ")[0] for name in BOUNDS_S}
    assert folders - named == {"k8s"}
    assert "kubernetes" in named


@pytest.mark.parametrize(("bound_s", "late"), [(0.0, True), (60.0, False)])
def test_report_late_check_is_marked_and_passes(printed: Console, bound_s: float, late: bool) -> None:
    assert checks.report({"unit": lambda: Outcome(passed=3)}, {"unit": bound_s}) == 0
    table = printed.export_text()
    assert ("slower than its bound" in table) == late
    assert f"of at most {RUN_WITHIN_MINUTES}" in table


def test_report_says_what_was_left_out(printed: Console) -> None:
    assert checks.report({"unit": lambda: Outcome(passed=3, reason="why", left_out=2)}, {}) == 0
    assert f"why; 2 only in {ALL}" in printed.export_text()


def test_report_failed_check_continues_and_fails(printed: Console) -> None:
    ran: list[str] = []

    def check(name: str, outcome: Outcome) -> checks.Check:
        def run() -> Outcome:
            ran.append(name)
            return outcome

        return run

    assert checks.report({"a": check("a", Outcome(failed=2)), "b": check("b", Outcome(passed=1))}, {}) == 1
    assert ran == ["a", "b"]
    assert "2 failed" in printed.export_text()


def test_main_all_reaches_pytest_and_lifts_the_bounds(monkeypatch: pytest.MonkeyPatch, printed: Console) -> None:
    asked: list[list[str]] = []

    def tests(folder: str, arguments: list[str]) -> checks.Check:
        asked.append([folder, *arguments])
        return lambda: Outcome(passed=1)

    monkeypatch.setattr(checks, "tests", tests)
    assert checks.main([ALL, "kubernetes", "--", "-k", "one"]) == 0
    assert ["tests/k8s", ALL, "-k", "one"] in asked
    assert "of at most" not in printed.export_text()


def test_main_unknown_part_exits_2(printed: Console) -> None:
    assert checks.main(["nothing"]) == 2
    assert "no part is named nothing" in printed.export_text()
