"""Tests `roost verify` against fake services: its findings, output and exit code."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from roost_cli.connection import MeshTarget
from roost_cli.load.loader import Operator
from roost_cli.progress import Silent
from roost_cli.verify import command

HOMES = 5


@pytest.fixture
def people(state: Any) -> list[int]:
    """Adds five users in a ring, each following the next, with some tweets each."""
    ids = [state.add_user(f"user_{number:04d}") for number in range(HOMES)]
    state.follows.extend((ids[number], ids[(number + 1) % HOMES]) for number in range(HOMES))
    for _ in range(60):
        for user_id in ids:
            state.add_tweet(user_id)
    return ids


async def test_verify_exact_homes_return_0(
    fake_mesh: MeshTarget, people: list[int], state: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await command.audit(fake_mesh, Silent()) is True
    assert capsys.readouterr().out.splitlines()[-2:] == ["warm: 5 of 5", "5 of 5 timelines exact"]
    assert sorted(state.rebuilt) == people


async def test_verify_reports_each_kind_of_fault(
    fake_mesh: MeshTarget, people: list[int], state: Any, operator: Operator, capsys: pytest.CaptureFixture[str]
) -> None:
    homes = {user_id: state.right_home(user_id) for user_id in people}
    stranger = next(head.id for head in state.heads if head.author_id == people[3])
    missing, extra, repeated, misordered, _ = people
    state.homes = {
        missing: homes[missing][:50] + homes[missing][51:],
        extra: sorted([*homes[extra], stranger], reverse=True),
        repeated: [*homes[repeated][:99], homes[repeated][98], *homes[repeated][99:]],
        misordered: [homes[misordered][1], homes[misordered][0], *homes[misordered][2:]],
    }
    truth = await command.scan_all(operator.channel, operator.metadata, Silent())
    auditor = command.Auditor([operator.channel], operator.metadata, truth, Silent())
    await auditor.prepare()
    findings = await auditor.judge(await auditor.read_all("homes"))
    assert sum(found.count for found in findings.values()) == 4
    assert {user_id: [kind for kind, _ in found.by_kind()] for user_id, found in findings.items()} == {
        missing: ["missing"],
        extra: ["extra"],
        repeated: ["repeated"],
        misordered: ["misordered"],
        people[4]: [],
    }

    assert await command.audit(fake_mesh, Silent()) is False
    said = capsys.readouterr().out
    assert "home of user_0000 (100) as stored: 1 missing" in said
    assert "as stored: 1 missing, 1 extra, 1 repeated, 1 misordered" in said
    assert said.splitlines()[-2:] == ["warm: 5 of 5", "1 of 5 timelines exact"]


async def test_verify_fault_cured_by_rebuild_still_counts(
    fake_mesh: MeshTarget,
    people: list[int],
    state: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state.homes = {people[0]: []}
    rebuild = command.Auditor.rebuild_all

    async def cure(auditor: command.Auditor) -> None:
        await rebuild(auditor)
        state.homes = {}

    monkeypatch.setattr(command.Auditor, "rebuild_all", cure)
    assert await command.audit(fake_mesh, Silent()) is False
    assert capsys.readouterr().out.splitlines()[-1] == "4 of 5 timelines exact"


@pytest.mark.usefixtures("people")
async def test_verify_counts_state_of_first_page(
    fake_mesh: MeshTarget, state: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    state.timeline_state = "built"
    assert await command.audit(fake_mesh, Silent()) is True
    assert "warm: 0 of 5" in capsys.readouterr().out


@pytest.mark.usefixtures("people")
async def test_verify_retries_partial_pages(fake_mesh: MeshTarget, state: Any) -> None:
    state.partial_answers = 3
    assert await command.audit(fake_mesh, Silent()) is True


async def test_verify_skips_inactive_users(
    fake_mesh: MeshTarget, people: list[int], state: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    state.hidden.add(people[0])
    # The followers of the hidden user correctly see none of these tweets.
    own = [head.id for head in state.heads if head.author_id == people[4]]
    state.homes = {people[4]: sorted(own, reverse=True)}
    assert await command.audit(fake_mesh, Silent()) is True
    assert capsys.readouterr().out.splitlines()[-1] == "4 of 4 timelines exact"


@pytest.mark.usefixtures("people")
async def test_verify_waits_for_fanout(fake_mesh: MeshTarget, state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "LAG_PAUSE_S", 0.001)
    state.lags = [7, 3, 0]
    assert await command.audit(fake_mesh, Silent()) is True
    assert state.calls["GetFanoutLag"] == 3


@pytest.mark.usefixtures("people")
async def test_verify_stuck_fanout_is_a_fault(fake_mesh: MeshTarget, state: Any) -> None:
    state.lags = [7]
    state.paused = True
    assert await command.audit(fake_mesh, Silent()) is False


async def test_verify_endless_home_is_a_fault(
    channel: grpc.aio.Channel, people: list[int], operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "MAX_PAGES", 1)
    truth = await command.scan_all(channel, operator.metadata, Silent())
    auditor = command.Auditor([channel], operator.metadata, truth, Silent())
    await auditor.prepare()
    findings = await auditor.judge({people[0]: await auditor.read(people[0])})
    assert command.describe(findings[people[0]]) == "not read whole: it went on after 1 pages"


async def test_verify_tweets_posted_meanwhile_are_no_fault(
    channel: grpc.aio.Channel, people: list[int], state: Any, operator: Operator
) -> None:
    truth = await command.scan_all(channel, operator.metadata, Silent())
    auditor = command.Auditor([channel], operator.metadata, truth, Silent())
    await auditor.prepare()
    state.add_tweet(people[1])
    findings = await auditor.judge(await auditor.read_all("homes"))
    assert all(found.exact for found in findings.values())
    state.homes = {people[0]: [999_999, *state.right_home(people[0])]}
    findings = await auditor.judge(await auditor.read_all("homes"))
    assert findings[people[0]].extra == (999_999,)
