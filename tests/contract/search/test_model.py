"""Random changes, commits, restarts and rebuilds, compared with a model: a dictionary that is searched linearly."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.search.store import Document, Query, RankPosition
from tests.conftest import LONG, SHORT
from tests.contract.search.conftest import TWEETS, Backend, Opened, removal, tweet

IDS = st.integers(1, 6)
TEXTS = st.lists(st.sampled_from("abc"), max_size=4).map(" ".join)
TAGS = st.lists(st.sampled_from(["#x", "#y"]), max_size=2, unique=True)
STEPS = st.one_of(
    st.tuples(st.just("put"), IDS, TEXTS, TAGS),
    st.tuples(st.just("put"), IDS, TEXTS, TAGS),
    st.tuples(st.just("remove"), IDS),
    st.tuples(st.just("commit")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("rebuild")),
)
PHRASES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(tuple)
QUESTIONS = st.builds(
    Query,
    st.lists(st.sampled_from(["#x", "#y"]), max_size=2, unique=True).map(tuple),
    st.lists(PHRASES, max_size=2).map(tuple),
    st.lists(st.sampled_from(["#x", "#y"]), max_size=1).map(tuple),
    st.lists(PHRASES, max_size=1).map(tuple),
    st.lists(st.sampled_from(["#x", "#y"]), max_size=2, unique=True).map(tuple),
    st.lists(IDS, max_size=3, unique=True).map(tuple),
).filter(lambda query: query.exact or query.phrases)


def matches(document: Document, query: Query) -> bool:
    """Returns True if the document matches the query by the port's definition."""
    text = f" {' '.join(document.words)} "
    exact = set(document.exact)
    return (
        set(query.exact) <= exact
        and all(f" {' '.join(p)} " in text for p in query.phrases)
        and not exact & set(query.excluded_exact)
        and not any(f" {' '.join(p)} " in text for p in query.excluded_phrases)
        and (not query.any_exact or bool(exact & set(query.any_exact)))
        and (not query.ids or document.id in query.ids)
    )


# Histories by length; each creates indexes of its own.
EXAMPLES = {("embedded", SHORT): 15, ("cluster", SHORT): 6, ("embedded", LONG): 80, ("cluster", LONG): 80}


@pytest.mark.slow
def test_searches_random_steps_agree_with_model(request: pytest.FixtureRequest, backend: Backend, length: str) -> None:
    examples = EXAMPLES[request.config.getoption("--backend"), length]

    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(STEPS, max_size=20), st.lists(QUESTIONS, min_size=1, max_size=4), st.integers(0, 7))
    def check(steps: list[tuple], questions: list[Query], before_id: int) -> None:  # type: ignore[type-arg]
        asyncio.run(run(backend, steps, questions, before_id))

    check()


async def run(backend: Backend, steps: list[tuple], questions: list[Query], before_id: int) -> None:  # type: ignore[type-arg]
    model: dict[int, Document] = {}
    with tempfile.TemporaryDirectory() as folder:
        opened = Opened(backend, Path(folder))
        opened.index = await opened.backend.open(opened.folder)
        await opened.rebuilt([])
        for version, step in enumerate(steps):
            match step:
                case ("put", key, text, tags):
                    change = tweet(key, text, *tags, version=version)
                    assert change.document is not None
                    model[key] = change.document
                    await opened.apply(change)
                case ("remove", key):
                    model.pop(key, None)
                    await opened.apply(removal(key))
                case ("commit",):
                    await opened.commit()
                case ("restart",):
                    await opened.again()
                case ("rebuild",):
                    await opened.rebuilt(
                        tweet(d.id, " ".join(d.words), *d.exact, version=d.version) for d in model.values()
                    )
        for query in questions:
            wanted = sorted((d.id for d in model.values() if matches(d, query)), reverse=True)
            below = [key for key in wanted if not before_id or key < before_id]
            assert list(await opened.index.newest(TWEETS, query, before_id, 3)) == below[:3]
            assert list(await opened.index.ranked(TWEETS, query, None, 3)) == [
                RankPosition(0, key) for key in wanted[::-1][:3]
            ]
            assert sorted(hit.id for hit in await opened.index.best(query, before_id, 10)) == below[::-1]
        assert await opened.index.count(TWEETS) == len(model)
        await opened.index.close()
