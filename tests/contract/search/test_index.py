"""Contract of the search index port, on every backend. `committed` tests it before and after changes are durable."""

from __future__ import annotations

import asyncio

import pytest

from services.platform.rpc import errors
from services.search.store import Collection, Query, RankPosition
from tests.contract.search.conftest import TWEETS, USERS, Opened, query_of, removal, tweet, user_change


@pytest.fixture(params=[False, True], ids=["laid over", "settled"])
def committed(request: pytest.FixtureRequest) -> bool:
    """True: changes are committed before the searches run."""
    return bool(request.param)


async def test_apply_change_is_found_by_next_search(opened: Opened, committed: bool) -> None:
    await opened.apply(tweet(1, "good morning"), tweet(2, "good night", "#sleep"))
    if committed:
        await opened.commit()
    assert await opened.newest("good") == [2, 1]
    assert await opened.newest("good night") == [2]
    assert await opened.newest("#sleep good") == [2]
    assert await opened.newest("#sleep morning") == []
    assert await opened.best("good") == [1, 2]


async def test_newest_phrase_matches_consecutive_words(opened: Opened, committed: bool) -> None:
    await opened.apply(tweet(1, "the cat sat on the mat"), tweet(2, "the mat sat on the cat"), tweet(3, "cat"))
    if committed:
        await opened.commit()
    assert await opened.newest('"the cat sat"') == [1]
    assert await opened.newest('"sat on the"') == [2, 1]
    assert await opened.newest('"the cat" mat') == [2, 1]
    assert await opened.newest('"cat cat"') == []


async def test_newest_excluded_terms_and_phrases_do_not_match(opened: Opened, committed: bool) -> None:
    await opened.apply(
        tweet(1, "boats sail fast", "#sea"), tweet(2, "boats row fast", "#lake"), tweet(3, "fast boats sail")
    )
    if committed:
        await opened.commit()
    for text, ids in {
        "boats -sail": [2],
        'boats -"boats sail"': [2],
        'boats -"sail fast"': [3, 2],
        "boats -#sea": [3, 2],
        "boats -#sea -row": [3],
        "boats -boats": [],
        "#lake -nothing": [2],
    }.items():
        assert await opened.newest(text) == sorted(await opened.best(text), reverse=True) == ids, text


async def test_best_conditions_narrow_without_changing_scores(opened: Opened, committed: bool) -> None:
    await opened.apply(
        tweet(1, "word", "#a"), tweet(2, "word and more of them", "#b"), tweet(3, "word", "#c"), tweet(4, "other", "#a")
    )
    if committed:
        await opened.commit()
    query = query_of("word")
    fits = {hit.id: hit.score for hit in await opened.index.best(query, 0, 10)}
    for narrowed, ids in (
        (query._replace(any_exact=("#a", "#b", "#x")), [2, 1]),
        (query._replace(ids=(2, 3, 4, 99)), [3, 2]),
        (query._replace(any_exact=("#a", "#b"), ids=(2, 3)), [2]),
        (query._replace(any_exact=("#x",)), []),
        (query._replace(ids=(99,)), []),
    ):
        assert list(await opened.index.newest(TWEETS, narrowed, 0, 10)) == ids
        hits = await opened.index.best(narrowed, 0, 10)
        assert sorted((hit.id for hit in hits), reverse=True) == ids
        assert {hit.id: hit.score for hit in hits} == pytest.approx({key: fits[key] for key in ids})


async def test_ranked_pages_descend_by_rank_then_ascend_by_id(opened: Opened, committed: bool) -> None:
    ranks = {n: (0, 7, 7, 40)[n % 4] for n in range(1, 31)}
    await opened.apply(
        *(user_change(n, "n:user", rank=rank) for n, rank in ranks.items()), user_change(99, "n:other", rank=50)
    )
    await opened.apply(tweet(5, "", "n:user"))
    if committed:
        await opened.commit()
    # One user gains a follower, and one is removed.
    await opened.apply(user_change(30, "n:user", rank=41), removal(3, USERS))
    ranks = ranks | {30: 41}
    del ranks[3]
    wanted = [RankPosition(rank, n) for n, rank in sorted(ranks.items(), key=lambda one: (-one[1], one[0]))]
    for size in (1, 4, 100):
        found: list[RankPosition] = []
        while page := await opened.index.ranked(USERS, Query(("n:user",)), found[-1] if found else None, size):
            assert len(page) <= size
            found += page
        assert found == wanted
    excluded = Query(("n:user",), excluded_exact=("n:user",))
    assert await opened.index.ranked(USERS, excluded, None, 10) == []


async def test_newest_pages_descend_by_id_without_gap(opened: Opened) -> None:
    for start in range(1, 101, 20):
        await opened.apply(*(tweet(n, "one of many") for n in range(start, start + 20)))
        if start != 81:
            await opened.commit()
    found: list[int] = []
    while page := await opened.newest("many", before_id=found[-1] if found else 0, limit=7):
        found += page
    assert found == list(range(100, 0, -1))
    assert await opened.best("many", before_id=3) == [1, 2]


async def test_newest_removed_matches_do_not_shorten_page(opened: Opened) -> None:
    await opened.apply(*(tweet(n, "word") for n in range(1, 101)))
    await opened.commit()
    await opened.apply(*(removal(n) for n in range(20, 101)))
    assert await opened.newest("word", limit=10) == list(range(19, 9, -1))


async def test_apply_older_version_is_ignored(opened: Opened, committed: bool) -> None:
    await opened.apply(tweet(1, "first", "#a", version=0))
    if committed:
        await opened.commit()
    await opened.apply(tweet(1, "second", "#b", version=5))
    if committed:
        await opened.commit()
    await opened.apply(tweet(1, "first", "#a", version=0), tweet(1, "between", version=4))
    if committed:
        await opened.commit()
    assert await opened.newest("second #b") == [1]
    assert await opened.newest("first") == await opened.newest("#a") == await opened.newest("between") == []
    assert list(await opened.index.terms("#", 10)) == ["#b"]
    assert await opened.index.count(TWEETS) == 1


async def test_apply_removed_document_may_return(opened: Opened, committed: bool) -> None:
    await opened.apply(tweet(1, "here", version=9), tweet(2, "here"), removal(3))
    if committed:
        await opened.commit()
    await opened.apply(removal(1))
    if committed:
        await opened.commit()
    assert await opened.newest("here") == [2]
    assert await opened.best("here") == [2]
    assert await opened.index.count(TWEETS) == 1
    await opened.apply(tweet(1, "here", version=9))
    if committed:
        await opened.commit()
    assert await opened.newest("here") == [2, 1]


async def test_searches_do_not_mix_collections(opened: Opened, committed: bool) -> None:
    await opened.apply(tweet(7, "ann", "same"), user_change(7, "same"), user_change(3, "same"))
    if committed:
        await opened.commit()
    assert await opened.people("same") == [3, 7]
    assert await opened.people("same", limit=1) == [3]
    assert list(await opened.index.newest(TWEETS, Query(("same",)), 0, 10)) == [7]
    assert (await opened.index.count(TWEETS), await opened.index.count(USERS)) == (1, 2)
    await opened.apply(removal(7, Collection.USERS))
    assert await opened.people("same") == [3]
    assert await opened.newest("ann") == [7]


async def test_terms_returns_used_terms_by_frequency(opened: Opened, committed: bool) -> None:
    await opened.apply(tweet(1, "", "#pie", "#pi"), tweet(2, "", "#pie"), tweet(3, "", "#pop"), tweet(4, "", "$pie"))
    if committed:
        await opened.commit()
    assert list(await opened.index.terms("#p", 10)) == ["#pie", "#pi", "#pop"]
    assert list(await opened.index.terms("#pi", 1)) == ["#pie"]
    await opened.apply(removal(3))
    if committed:
        await opened.commit()
    assert list(await opened.index.terms("#po", 10)) == []


async def test_terms_prefix_after_all_terms_returns_nothing(opened: Opened, committed: bool) -> None:
    await opened.apply(tweet(1, "", "#pie"))
    if committed:
        await opened.commit()
    assert list(await opened.index.terms("#q", 10)) == []
    assert list(await opened.index.most_used(["#pie", "#q"])) == ["#pie", ""]


async def test_terms_many_removed_documents_counts_live_only(opened: Opened, committed: bool) -> None:
    """Tags of many deleted or edited tweets do not hide the tag of a live tweet."""
    await opened.apply(*(tweet(n, "", f"#go{n:02}", "#gone") for n in range(1, 41)), tweet(41, "", "#golive"))
    await opened.commit()
    await opened.apply(*(removal(n) for n in range(1, 31)), *(tweet(n, "", "#go", version=1) for n in range(31, 41)))
    if committed:
        await opened.commit()
    assert list(await opened.index.terms("#go", 2)) == ["#go", "#golive"]
    assert list(await opened.index.terms("#go", 20)) == ["#go", "#golive"]


async def test_most_used_counts_authors_of_live_documents(opened: Opened, committed: bool) -> None:
    await opened.apply(
        # One author with many tweets.
        *(tweet(n, "", "=pic pic", author=1) for n in range(1, 6)),
        *(tweet(n, "", "=pic Pic", author=n) for n in (6, 7, 8)),
        *(tweet(n, "", "=pic PIC", author=n) for n in range(10, 15)),
        tweet(20, "", "=other Other", "=othermore X"),
    )
    await opened.commit()
    await opened.apply(*(removal(n) for n in range(10, 13)), tweet(13, "", "=pic Pic", author=13, version=1))
    if committed:
        await opened.commit()
    assert list(await opened.index.most_used(["=pic ", "=none ", "=other "])) == ["=pic Pic", "", "=other Other"]
    assert list(await opened.index.most_used([])) == []


async def test_best_hits_have_author_score_and_preferred(opened: Opened, committed: bool) -> None:
    await opened.apply(
        tweet(1, "python", "#python", author=11), tweet(2, "python and much else that is no snake", author=12)
    )
    if committed:
        await opened.commit()
    hits = {hit.id: hit for hit in await opened.index.best(query_of("python"), 0, 10, ("#python", "#x"))}
    assert (hits[1].author_id, hits[1].preferred, hits[2].author_id, hits[2].preferred) == (11, True, 12, False)
    one, other = hits[1].score, hits[2].score
    if committed:
        assert one is not None
        assert other is not None
        assert one > other > 0


async def test_open_after_restart_has_documents_and_position(opened: Opened) -> None:
    """Only an index whose durable state may be behind what was applied keeps a position."""
    assert not (await opened.index.build_status()).complete
    assert opened.index.position is None
    await opened.rebuilt([tweet(1, "filled")])
    assert (await opened.index.build_status()).complete
    assert opened.index.position == (0 if opened.backend.keeps_position else None)
    await opened.apply(tweet(2, "filled"), position=41)
    await opened.apply(removal(1), position=42)
    index = await opened.again()
    assert (await index.build_status()).complete
    assert index.position == (42 if opened.backend.keeps_position else None)
    assert await opened.newest("filled") == [2]


async def test_open_unfilled_index_after_restart_is_unfilled(opened: Opened) -> None:
    """It may lack documents from before its first event."""
    await opened.apply(tweet(1, "event"), position=5)
    await opened.commit()
    index = await opened.again()
    assert not (await index.build_status()).complete
    assert index.position is None


async def test_open_after_unfinished_build_keeps_index(opened: Opened) -> None:
    await opened.rebuilt([tweet(1, "old")])
    await opened.index.begin()
    await opened.index.fill([tweet(1, "new"), tweet(2, "new")])
    index = await opened.again()
    assert await opened.newest("old") == [1]
    assert await opened.newest("new") == []
    assert (await index.build_status()).filled is None
    await opened.rebuilt([tweet(2, "new")])
    assert await opened.newest("new") == [2]


async def test_build_status_counts_filled_documents(opened: Opened) -> None:
    await opened.rebuilt([tweet(1, "old")])
    before = await opened.index.build_status()
    assert before.filled is None
    await opened.index.begin()
    assert await opened.index.build_status() == before._replace(filled=0)
    await opened.index.finish()
    after = await opened.index.build_status()
    assert after.filled is None
    assert after.number > before.number


async def test_finish_replaces_index_while_searches_run(opened: Opened) -> None:
    await opened.rebuilt([tweet(1, "old"), tweet(2, "old")])
    await opened.index.begin()
    await opened.index.fill([tweet(1, "new")])
    assert await opened.newest("old") == [2, 1]
    assert await opened.newest("new") == []
    await opened.apply(tweet(3, "new"), position=7)
    assert await opened.newest("new") == [3]
    await opened.index.finish()
    assert await opened.newest("old") == []
    assert await opened.newest("new") == [3, 1]
    assert opened.index.position == (7 if opened.backend.keeps_position else None)


async def test_fill_does_not_overwrite_applied_changes(opened: Opened, committed: bool) -> None:
    """A document from a scan may be older than an applied change, and a removal has no version to compare with."""
    await opened.index.begin()
    await opened.apply(removal(1), tweet(2, "edited", version=0), removal(4))
    if committed:
        await opened.commit()
    scanned = [tweet(key, "scanned", version=version) for key, version in ((1, 0), (2, 0), (3, 0), (4, 9))]
    await opened.index.fill(scanned)
    await opened.apply(removal(3))
    await opened.index.finish()
    assert await opened.newest("scanned") == []
    assert await opened.newest("edited") == [2]
    await opened.commit()
    assert await opened.newest("scanned") == []
    assert await opened.index.count(TWEETS) == 1


async def test_begin_discards_earlier_build(opened: Opened) -> None:
    await opened.index.begin()
    await opened.index.fill([tweet(1, "given up")])
    await opened.index.begin()
    await opened.index.fill([tweet(2, "stays")])
    await opened.index.finish()
    assert await opened.newest("up") == []
    assert await opened.newest("stays") == [2]
    with pytest.raises(errors.RoostError, match="FAILED_PRECONDITION"):
        await opened.index.finish()
    with pytest.raises(errors.RoostError, match="FAILED_PRECONDITION"):
        await opened.index.fill([])


async def test_searches_during_changes_and_commits_find_all(opened: Opened) -> None:
    """Every tweet matches at any time, with one text or another, during edits, commits and an index switch."""
    everything = range(1, 41)
    await opened.rebuilt(tweet(n, "standing text") for n in everything)
    ended = asyncio.Event()

    async def change() -> None:
        for version in range(1, 16):
            await opened.apply(*(tweet(n, f"standing text {version}", version=version) for n in everything))
            if version % 3 == 0:
                await opened.commit()
            if version == 7:
                await opened.rebuilt(tweet(n, "standing text 7", version=7) for n in everything)
        ended.set()

    work = asyncio.create_task(change())
    while not ended.is_set():
        assert await opened.newest("standing text") == list(reversed(everything))
        assert await opened.best("standing") == list(everything)
        await asyncio.sleep(0)
    await work
    assert await opened.newest('"text 15"') == list(reversed(everything))


async def test_searches_during_commit_find_acknowledged_changes(opened: Opened) -> None:
    everything = range(1, 41)
    for version in range(1, 9):
        await opened.apply(*(tweet(n, f"text {version}", version=version) for n in everything))
        work = asyncio.create_task(opened.commit())
        while not work.done():
            assert await opened.newest(str(version)) == list(reversed(everything))
            assert await opened.best(str(version)) == list(everything)
            assert await opened.newest(str(version - 1)) == []
        await work


async def test_apply_during_begin_reaches_new_index(opened: Opened) -> None:
    """The change is either applied to the new index or found by the scan that begins afterwards."""
    for start in range(0, 400, 100):
        begun = asyncio.create_task(opened.index.begin())
        ids = iter(range(start + 1, start + 101))
        applied = [asyncio.create_task(opened.apply(tweet(n, "kept"))) for n in ids]
        await begun
        await asyncio.gather(*applied)
        await opened.index.fill([tweet(n, "kept") for n in range(1, start + 101)])
        await opened.index.finish()
        assert await opened.newest("kept", limit=500) == list(range(start + 100, 0, -1))
