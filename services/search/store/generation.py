"""One tantivy index in a folder, with the changes that wait for its next commit laid over it.

A commit costs some 30 ms and a synced file, whatever it holds, so changes are collected and committed together; until then they are
searched in memory. tantivy works in threads, without Python's lock; what is laid over lives on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import tantivy

from services.search.store import MAX_FOUND, Change, Collection, Document, Hit, Query
from services.search.store.overlay import Layer, holds_any

T = TypeVar("T")

# tantivy's least for one thread: it writes a segment when this is full, and one a commit at the latest.
WRITER_HEAP_BYTES = 15_000_000
# Searches take some 100 µs: a second thread keeps a long one from holding up all others.
SEARCH_THREADS = 2

_VERSION, _AUTHOR, _EXACT, _WORDS = "version", "author_id", "exact", "words"


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    # Signed: tantivy 0.27 finds nothing to delete by an unsigned term.
    for collection in Collection:
        builder.add_integer_field(collection.value, indexed=True, fast=True)
    builder.add_integer_field(_VERSION, fast=True)
    builder.add_integer_field(_AUTHOR, fast=True)
    builder.add_text_field(_EXACT, tokenizer_name="whole", index_option="basic")
    builder.add_text_field(_WORDS, tokenizer_name="spaced", index_option="position")
    return builder.build()


_SCHEMA = _schema()


class Threads:
    """Where tantivy works: one thread writes, a few search. Of all indexes of a store, so that a search outlives its index."""

    def __init__(self) -> None:
        self.write = ThreadPoolExecutor(1, thread_name_prefix="search-write")
        self.search = ThreadPoolExecutor(SEARCH_THREADS, thread_name_prefix="search-read")

    async def close(self) -> None:
        """Ends them, after the work at hand."""
        for pool in (self.search, self.write):
            await asyncio.to_thread(pool.shutdown)


class Generation:
    """Searches and changes of one index. Its methods are called on one event loop, `commit` and `add` by one task at a time."""

    def __init__(self, index: tantivy.Index, threads: Threads) -> None:
        self._index = index
        self._writer: tantivy.IndexWriter | None = None
        self._threads = threads
        self._searcher = index.searcher()
        # Documents were added since the last commit; and such were lost. Told by the writing thread alone.
        self._added = self._broken = False
        # The newest first: what is collected now, and at times what is being committed.
        self._layers = [Layer()]

    @classmethod
    async def open(cls, folder: Path, threads: Threads) -> Self:
        """Opens or creates the index in the folder. ValueError where what lies there is no index of this schema."""
        return cls(await asyncio.to_thread(_open, folder), threads)

    @property
    def waiting(self) -> int:
        """How many changes are not committed."""
        return sum(map(len, self._layers))

    async def count(self, collection: Collection) -> int:
        """How many documents there are, those not committed included."""
        layers, searcher = tuple(self._layers), self._searcher
        fresh = _laid_over(layers, collection)
        of_kind = tantivy.Query.range_query(
            _SCHEMA, collection.value, tantivy.FieldType.Integer, lower_bound=1, include_upper=True
        )

        def committed() -> int:
            everything: int = searcher.search(of_kind, 1).count  # type: ignore[attr-defined]  # its stub leaves it out
            return everything - len(_stored(searcher, collection, list(fresh), _VERSION))

        return await self._search(committed) + sum(document is not None for document in fresh.values())

    async def put(self, changes: Sequence[Change]) -> None:
        """Lays the changes over the index, but for documents of a lower version than the one that stands."""
        # Of one moment: what is committed during the wait is still in these layers.
        layers, searcher = tuple(self._layers), self._searcher
        wanted = {kind: [c.id for c in changes if c.collection is kind and c.document] for kind in Collection}
        stored = await self._search(
            lambda: {kind: _stored(searcher, kind, ids, _VERSION) for kind, ids in wanted.items() if ids}
        )
        for change in changes:
            document = change.document
            if document is None or document.version >= self._version(change, layers, stored):
                self._layers[0].put(change)

    async def add(self, changes: Sequence[Change]) -> None:
        """Writes documents straight into the index; they are found after the next commit. OSError once some were lost."""

        def write(writer: tantivy.IndexWriter) -> None:
            self._added = True
            _write_all(writer, changes)

        await self._write(write)

    async def commit(self) -> None:
        """Makes durable what was put and added before the call."""
        # One that failed before is still there, and goes first.
        if len(self._layers) > 1:
            await self._commit_last()
        self._layers.insert(0, Layer())
        await self._commit_last()

    async def _commit_last(self) -> None:
        layer = self._layers[-1]
        changes = layer.changes()

        def write(writer: tantivy.IndexWriter) -> None:
            _write_all(writer, changes)
            writer.commit()
            self._added = False
            self._index.reload()

        await self._write(write)
        # Together, with no await between: a search sees each change either laid over or committed.
        self._searcher = self._index.searcher()
        self._layers.remove(layer)

    async def newest(self, collection: Collection, query: Query, before_id: int, limit: int) -> Sequence[int]:
        """See the port."""
        return await self._in_order(collection, query, before_id, limit, descending=True)

    async def oldest(self, collection: Collection, query: Query, limit: int) -> Sequence[int]:
        """See the port."""
        return await self._in_order(collection, query, 0, limit, descending=False)

    async def _in_order(
        self, collection: Collection, query: Query, bound: int, limit: int, *, descending: bool
    ) -> Sequence[int]:
        layers, searcher = tuple(self._layers), self._searcher
        compiled = _compiled(query)
        first_bound, committed = bound, list[int]()
        while True:
            at = bound
            hits = await self._search(lambda: _page(searcher, collection, compiled, at, limit, descending))  # noqa: B023 (awaited)
            committed += hits
            # Judged after the wait, in one go: what came meanwhile is laid over the hits and found itself.
            fresh = _laid_over(layers, collection)
            kept = [key for key in committed if key not in fresh]
            if len(kept) >= limit or len(hits) < limit:
                break
            bound = hits[-1]
        found = _found(layers, collection, query)
        kept += [document.id for document in found if not (descending and first_bound) or document.id < first_bound]
        return sorted(kept, reverse=descending)[:limit]

    async def best(self, query: Query, before_id: int, limit: int, preferred: Sequence[str]) -> Sequence[Hit]:
        """See the port."""
        layers, searcher = tuple(self._layers), self._searcher
        compiled = _bounded(_compiled(query), Collection.TWEETS, before_id, descending=True)
        hits = await self._search(lambda: _ranked(searcher, compiled, limit, preferred))
        fresh = _laid_over(layers, Collection.TWEETS)
        wanted = frozenset(preferred)
        # What is not committed has no statistics; it is new, and fits as well as any.
        laid_over = [
            Hit(document.id, document.author_id, 1.0, holds_any(document, wanted))
            for document in _found(layers, Collection.TWEETS, query)
            if not before_id or document.id < before_id
        ]
        return [*laid_over, *(hit for hit in hits if hit.id not in fresh)][:limit]

    async def terms(self, prefix: str, limit: int) -> Sequence[str]:
        """See the port."""
        layers, searcher = tuple(self._layers), self._searcher
        counts = dict(await self._search(lambda: _standing_terms(searcher, prefix, limit)))
        for layer in layers:
            for term, count in layer.term_counts(prefix):
                counts[term] = counts.get(term, 0) + count
        return sorted(counts, key=lambda term: (-counts[term], term))[:limit]

    async def close(self) -> None:
        """Gives the folder free; what waits is lost. Searches under way end as they would have."""
        writer, self._writer = self._writer, None
        if writer is not None:
            await asyncio.get_running_loop().run_in_executor(self._threads.write, writer.wait_merging_threads)

    def _version(self, change: Change, layers: Sequence[Layer], stored: dict[Collection, dict[int, int]]) -> int:
        for layer in (*self._layers, *layers):
            documents = layer.documents(change.collection)
            if change.id in documents:
                document = documents[change.id]
                return document.version if document is not None else 0
        return stored.get(change.collection, {}).get(change.id, 0)

    async def _search(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads.search, work)

    async def _write(self, work: Callable[[tantivy.IndexWriter], None]) -> None:
        # To its end even if the caller is cancelled: memory must follow what was committed.
        future = asyncio.get_running_loop().run_in_executor(self._threads.write, self._with_writer, work)
        await asyncio.shield(future)

    def _with_writer(self, work: Callable[[tantivy.IndexWriter], None]) -> None:
        if self._broken:
            raise OSError("documents added before a failure are lost: the index is to be begun again")
        if self._writer is None:
            self._writer = self._index.writer(WRITER_HEAP_BYTES, 1)
        try:
            work(self._writer)
        except BaseException:
            # What was put is laid over still and will be written again; what was added is in the writer alone.
            self._broken = self._added
            failed, self._writer = self._writer, None
            failed.rollback()
            self._writer = failed
            raise


def _open(folder: Path) -> tantivy.Index:
    folder.mkdir(parents=True, exist_ok=True)
    index = tantivy.Index(_SCHEMA, path=str(folder))
    # Texts come in words already: the index has no opinion on what a word is.
    for name, tokenizer in (("whole", tantivy.Tokenizer.raw()), ("spaced", tantivy.Tokenizer.whitespace())):
        index.register_tokenizer(name, tantivy.TextAnalyzerBuilder(tokenizer).build())
    index.config_reader("manual")
    index.reload()
    return index


def _laid_over(layers: Iterable[Layer], collection: Collection) -> dict[int, Document | None]:
    found: dict[int, Document | None] = {}
    for layer in reversed(tuple(layers)):
        found |= layer.documents(collection)
    return found


def _found(layers: Sequence[Layer], collection: Collection, query: Query) -> list[Document]:
    found: list[Document] = []
    for place, layer in enumerate(layers):
        newer = [above.documents(collection) for above in layers[:place]]
        found += [d for d in layer.find(collection, query) if not any(d.id in above for above in newer)]
    return found


def _write_all(writer: tantivy.IndexWriter, changes: Iterable[Change]) -> None:
    for collection, key, document in changes:
        writer.delete_documents_by_term(collection.value, key)
        if document is not None:
            writer.add_document(_document(collection, document))


def _document(collection: Collection, document: Document) -> tantivy.Document:
    made = tantivy.Document()
    made.add_integer(collection.value, document.id)
    made.add_integer(_VERSION, document.version)
    made.add_integer(_AUTHOR, document.author_id)
    for term in document.exact:
        made.add_text(_EXACT, term)
    if document.words:
        made.add_text(_WORDS, " ".join(document.words))
    return made


def _compiled(query: Query) -> tantivy.Query:
    parts = [tantivy.Query.term_query(_SCHEMA, _EXACT, term, "basic") for term in query.exact]
    for phrase in query.phrases:
        if len(phrase) == 1:
            parts.append(tantivy.Query.term_query(_SCHEMA, _WORDS, phrase[0]))
        else:
            parts.append(tantivy.Query.phrase_query(_SCHEMA, _WORDS, list(phrase)))
    return tantivy.Query.boolean_query([(tantivy.Occur.Must, part) for part in parts])


def _bounded(query: tantivy.Query, collection: Collection, bound: int, *, descending: bool) -> tantivy.Query:
    if not bound:
        return query
    # Inclusive, as tantivy wants it of a range open to one side.
    limits: dict[str, Any] = {"upper_bound": bound - 1} if descending else {"lower_bound": bound + 1}
    within = tantivy.Query.range_query(_SCHEMA, collection.value, tantivy.FieldType.Integer, **limits)
    # It says nothing about how well a text fits.
    within = tantivy.Query.const_score_query(within, 0.0)
    return tantivy.Query.boolean_query([(tantivy.Occur.Must, query), (tantivy.Occur.Must, within)])


def _page(
    searcher: tantivy.Searcher, collection: Collection, query: tantivy.Query, bound: int, limit: int, descending: bool
) -> list[int]:
    order = tantivy.Order.Desc if descending else tantivy.Order.Asc
    bounded = _bounded(query, collection, bound, descending=descending)
    found = searcher.search(bounded, limit, count=False, order_by_field=collection.value, order=order)
    # Documents of the other collection have no such id.
    return [key for key, _ in found.hits if key is not None]


def _ranked(searcher: tantivy.Searcher, query: tantivy.Query, limit: int, preferred: Sequence[str]) -> list[Hit]:
    hits = searcher.search(query, limit, count=False).hits
    if not hits:
        return []
    places = [place for _, place in hits]
    ids: Sequence[Any] = searcher.fast_field_values(Collection.TWEETS.value, places)
    authors: Sequence[Any] = searcher.fast_field_values(_AUTHOR, places)
    with_preferred: set[int] = set()
    if preferred:
        wanted = tantivy.Query.term_set_query(_SCHEMA, _EXACT, list(preferred))
        both = tantivy.Query.boolean_query([(tantivy.Occur.Must, query), (tantivy.Occur.Must, wanted)])
        found = searcher.search(both, MAX_FOUND, count=False, order_by_field=Collection.TWEETS.value)
        with_preferred = {key for key, _ in found.hits}
    most = max(score for score, _ in hits) or 1.0
    return [
        Hit(key, author, score / most, key in with_preferred)
        for (score, _), key, author in zip(hits, ids, authors, strict=True)
    ]


def _stored(searcher: tantivy.Searcher, collection: Collection, ids: Sequence[int], field: str) -> dict[int, int]:
    """A field of the committed documents of these ids."""
    if not ids:
        return {}
    wanted = tantivy.Query.term_set_query(_SCHEMA, collection.value, list(ids))
    places = [place for _, place in searcher.search(wanted, len(ids), count=False).hits]
    if not places:
        return {}
    keys: Sequence[Any] = searcher.fast_field_values(collection.value, places)
    values: Sequence[Any] = searcher.fast_field_values(field, places)
    return dict(zip(keys, values, strict=True))


def _standing_terms(searcher: tantivy.Searcher, prefix: str, limit: int) -> list[tuple[str, int]]:
    """Terms that a document still has: the index counts removed ones too until it merges them away."""
    return [
        (term, count)
        for term, count in searcher.terms_with_prefix(_EXACT, prefix, limit=limit)
        if searcher.search(tantivy.Query.term_query(_SCHEMA, _EXACT, term, "basic"), 1, count=False).hits
    ]
