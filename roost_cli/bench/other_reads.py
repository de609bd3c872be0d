"""Measures reads of threads and searches, and a minimal HTTP server that returns the same bytes."""

from __future__ import annotations

import asyncio
import http
import platform
import random
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from roost_cli import progress
from roost_cli.bench import cpu, http_load, local_mesh, table, wrk
from roost_cli.bench.first_pages import Pages, first_pages
from roost_cli.bench.reads import BARE, MEASURES, ReadPlan, Round, read_servers
from roost_cli.exit_codes import CommandError

MESH = "Roost"
# Number of different paths. With more, the figures are about a store that does not fit into any cache.
PATHS = 500


class Read(StrEnum):
    """What is read."""

    THREAD = "thread"
    SEARCH = "search"


def run(what: Read, plan: ReadPlan, mesh: local_mesh.LocalMesh, output: table.Output) -> None:
    """Measures reads of threads that have replies, or searches for one word, each as another user, and prints a table
    of the results.

    Raises CommandError if wrk is missing, if the mesh cannot be reached or limits rates, if a read fails, if no tweet
    on a home timeline fits, or if `output` refuses the table.
    """
    wrk.program()
    asyncio.run(_run(what, plan, mesh, output))


def paths(what: Read, pages: Pages, chance: random.Random) -> list[str]:
    """Returns at most PATHS random paths to read: threads, or searches for words, of tweets on the pages. Raises
    CommandError if there is none."""
    found = pages.threads if what is Read.THREAD else pages.words
    if not found:
        raise CommandError(f"no tweet on a home timeline fits for {what}: load a graph with `roost load --mutate`")
    form = "/v1/tweets/{}/thread" if what is Read.THREAD else "/v1/search/tweets?query={}"
    return [form.format(one) for one in chance.sample(found, min(PATHS, len(found)))]


async def _run(what: Read, plan: ReadPlan, mesh: local_mesh.LocalMesh, output: table.Output) -> None:
    shown = progress.for_stream()
    tokens = list((await local_mesh.access_tokens(mesh)).values())
    pages = await first_pages(mesh.http, tokens, shown)
    chosen = paths(what, pages, random.SystemRandom())
    with cpu.Bystanders(mesh.pids) as bystanders:
        allowed = await _allowed(mesh.http, chosen, tokens)
        mean = sum(len(one.answer.body) for one in allowed) / len(allowed)
        nearest = min((one.answer for one in allowed), key=lambda answer: abs(len(answer.body) - mean))
        cases: dict[str, list[Round]] = {MESH: [], BARE: []}
        script = wrk.script([one.path for one in allowed], [one.token for one in allowed])
        async with read_servers(mesh, script, len(allowed), nearest.headers, nearest.body, plan) as servers:
            for number in range(1, plan.rounds + 1):
                cases[MESH].append(await servers.mesh.closed(MESH))
                cases[BARE].append(await servers.bare.closed(BARE))
                for name, rounds in cases.items():
                    one = rounds[-1]
                    shown.say(f"round {number}, {name}: {one.per_second:,.0f} reads/s, {one.cpu_us:,.0f} µs each")
    note = (
        f"{pages.graph} {len(allowed):,} different {what} reads; {plan.rounds} × {plan.seconds} s for each server in "
        f"turn, {plan.connections} connections; {cpu.processor()}; Python {platform.python_version()}."
        f"{bystanders.warning()}"
    )
    measures = [measure for measure in MEASURES if "post" not in measure.title]
    output.publish(what, note, table.compare(cases, measures, BARE))


class _Allowed(NamedTuple):
    """A path, the access token of a user who may read it, and the response."""

    path: str
    token: str
    answer: http_load.Response


async def _allowed(address: str, chosen: Sequence[str], tokens: Sequence[str]) -> list[_Allowed]:
    """Reads each path once, each as another user. Returns those reads that the mesh did not refuse with NOT_FOUND, which
    a block between the user and the author causes. Raises CommandError if there is none, or if another error is
    returned."""
    found = []
    async with http_load.connections(address, 1) as (connection,):
        for number, path in enumerate(chosen):
            token = tokens[number % len(tokens)]
            answer = await connection.ask(http_load.request("GET", path, address, token))
            if answer.status != http.HTTPStatus.NOT_FOUND:
                http_load.check(answer, http.HTTPStatus.OK)
                found.append(_Allowed(path, token, answer))
    if not found:
        raise CommandError("no read was allowed: load another graph with `roost load --mutate`")
    return found
