"""Computes the weighted length of a text by the rules of twitter-text v3, in linear time.

A URL weighs 23, and an emoji 2, whatever their numbers of code points. Of the other characters, those of European and
Near Eastern scripts weigh 1 and most others 2.

The top-level domains come from the package `twitter-text-parser`. Only its data files are used: its code imports
`pkg_resources`, which setuptools has removed, and its URL pattern backtracks for 0.75 s over 4 KB of `a-a-a-…`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import re
from pathlib import Path
from typing import NamedTuple

URL_WEIGHT = 23
EMOJI_WEIGHT = 2
# Maximum characters of a label of a host name, and of the slug of a t.co link (below). A longer one is not part of a
# URL. Both are limits of twitter-text.
_MAX_LABEL_CHARS = 63
# Prefix of a label that is encoded for DNS (Punycode).
_ENCODED_PREFIX = "xn--"
_MAX_TCO_SLUG_CHARS = 40

_DISTRIBUTION = "twitter-text-parser"
# A code point that weighs 2: any outside these ranges.
_HEAVY = re.compile("[^\u0000-\u10ff\u2000-\u200d\u2010-\u201f\u2032-\u2037]")

_SPACES = "\\x09-\\x0d\\x20\\x85\\xa0\u1680\u180e\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_DIRECTIONAL = "\u202a-\u202e\u061c\u200e\u200f\u2066-\u2069"
_INVALID = "\ufffe\ufeff\uffff"
_LATIN = (
    "\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0253\u0254\u0256\u0257\u0259\u025b\u0263\u0268\u026f"
    "\u0272\u0289\u028b\u02bb\u0300-\u036f\u1e00-\u1eff"
)
_CYRILLIC = "\u0400-\u04ff"
_PUNCTUATION = r"!'#%&()*+,\\\-./:;<=>?@\[\]^_{|}~$"
_HOST_CHAR = f"[^{_PUNCTUATION}{_SPACES}{_DIRECTIONAL}{_INVALID}]"

# A fast check: a text that does not match has no URL.
_MAYBE_URL = re.compile(r"[^\s.]\.[^\s.]")
# A host, with or without a scheme before it: a run of labels in any script that ends before the next scheme. Possessive
# quantifiers prevent backtracking.
_HOST = re.compile(
    rf"(https?://)?+({_HOST_CHAR}(?:(?!(?<![a-z0-9@$#])https?://)(?:{_HOST_CHAR}|[._-]))*+)", re.IGNORECASE
)
# A host without a scheme before it: only European letters, except in the top-level domain.
_BARE_HOST = re.compile(
    rf"[a-z0-9{_LATIN}][-a-z0-9{_LATIN}]*+(?:\.[-a-z0-9{_LATIN}]++)*+(?:\.{_HOST_CHAR}++)?+", re.IGNORECASE
)
_BARE_LABEL = re.compile(rf"[-a-z0-9{_LATIN}]++", re.IGNORECASE)
_TLD_RUN = re.compile(r"(?:xn--[-0-9a-z]++|[a-z]++)(?![0-9A-Za-z@+-])", re.IGNORECASE)
_PATH_CHAR = rf"[a-z{_CYRILLIC}0-9!*';:=+,.$/%#\[\]\-\u2013_~@|&{_LATIN}]"
_PARENS = rf"\((?>{_PATH_CHAR}++|\({_PATH_CHAR}++\))++\)"
_TAIL = re.compile(
    rf"(?::[0-9]++)?+(?P<path>/(?>{_PATH_CHAR}++|{_PARENS})*+)?+(?P<query>\?[a-z0-9!?*'@();:&=+$/%#\[\]\-_.,~|]*+)?+",
    re.IGNORECASE,
)
# Characters that a path or a query may contain, but not end with: a full stop after a URL belongs to the sentence.
_PATH_TRAIL = "!*';:,.$%[]\u2013~@|&"
_QUERY_TRAIL = "!?*'@();:+$%[].,~|"
_TCO = re.compile(r"https?://t\.co/([a-z0-9]+)", re.IGNORECASE)

_BAD_BEFORE = frozenset("@\uff20$#\uff03" + _INVALID + "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_BAD_BEFORE_BARE = _BAD_BEFORE | frozenset("-_./")


# Maximum number of elements that zero-width joiners combine into one emoji, as in a family of four.
_MAX_JOINED = 4
_FLAG_LETTERS = "".join(map(chr, range(0x1F1E6, 0x1F200)))
# The code points with Unicode's property Extended_Pictographic. It includes code points that are reserved for future
# emoji, so new emoji do not change it.
_PICTOGRAPHS = "".join(
    f"{chr(first)}-{chr(last)}"
    for first, last in (
        (0xA9, 0xA9), (0xAE, 0xAE), (0x203C, 0x203C), (0x2049, 0x2049), (0x2122, 0x2122), (0x2139, 0x2139), (0x2194, 0x2199),
        (0x21A9, 0x21AA), (0x231A, 0x231B), (0x2328, 0x2328), (0x2388, 0x2388), (0x23CF, 0x23CF), (0x23E9, 0x23F3), (0x23F8, 0x23FA),
        (0x24C2, 0x24C2), (0x25AA, 0x25AB), (0x25B6, 0x25B6), (0x25C0, 0x25C0), (0x25FB, 0x25FE), (0x2600, 0x2605), (0x2607, 0x2612),
        (0x2614, 0x2685), (0x2690, 0x2705), (0x2708, 0x2712), (0x2714, 0x2714), (0x2716, 0x2716), (0x271D, 0x271D), (0x2721, 0x2721),
        (0x2728, 0x2728), (0x2733, 0x2734), (0x2744, 0x2744), (0x2747, 0x2747), (0x274C, 0x274C), (0x274E, 0x274E), (0x2753, 0x2755),
        (0x2757, 0x2757), (0x2763, 0x2767), (0x2795, 0x2797), (0x27A1, 0x27A1), (0x27B0, 0x27B0), (0x27BF, 0x27BF), (0x2934, 0x2935),
        (0x2B05, 0x2B07), (0x2B1B, 0x2B1C), (0x2B50, 0x2B50), (0x2B55, 0x2B55), (0x3030, 0x3030), (0x303D, 0x303D), (0x3297, 0x3297),
        (0x3299, 0x3299),
        (0x1F000, 0x1F0FF), (0x1F10D, 0x1F10F), (0x1F12F, 0x1F12F), (0x1F16C, 0x1F171), (0x1F17E, 0x1F17F), (0x1F18E, 0x1F18E),
        (0x1F191, 0x1F19A), (0x1F1AD, 0x1F1E5), (0x1F201, 0x1F20F), (0x1F21A, 0x1F21A), (0x1F22F, 0x1F22F), (0x1F232, 0x1F23A),
        (0x1F23C, 0x1F23F), (0x1F249, 0x1F3FA), (0x1F400, 0x1F53D), (0x1F546, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F774, 0x1F77F),
        (0x1F7D5, 0x1F7FF), (0x1F80C, 0x1F80F), (0x1F848, 0x1F84F), (0x1F85A, 0x1F85F), (0x1F888, 0x1F88F), (0x1F8AE, 0x1F8FF),
        (0x1F90C, 0x1F93A), (0x1F93C, 0x1F945), (0x1F947, 0x1FAFF), (0x1FC00, 0x1FFFD),
    )
)  # fmt: skip


class Span(NamedTuple):
    """A part of a text. `start` and `end` are code point indices, `end` exclusive."""

    start: int
    end: int


def weighted_length(text: str, stop_above: int) -> int:
    """Returns the weighted length of a text in NFC. May stop counting once the result is above `stop_above`; a result
    above it is only a lower bound."""
    weight = position = 0
    for start, end in find_urls(text):
        weight += _plain_weight(text[position:start], stop_above - weight) + URL_WEIGHT
        position = end
        if weight > stop_above:
            return weight
    return weight + _plain_weight(text[position:], stop_above - weight)


def find_urls(text: str) -> list[Span]:
    """Returns the URLs of a text in its order, with and without a scheme (`http://`, `https://`)."""
    if _MAYBE_URL.search(text) is None:
        return []
    urls: list[Span] = []
    position = 0
    while (match := _HOST.search(text, position)) is not None:
        spans = _with_scheme(text, match) if match[1] else _without_scheme(text, match)
        urls.extend(spans)
        position = max(spans[-1].end if spans else 0, match.end())
    return urls


def _with_scheme(text: str, match: re.Match[str]) -> list[Span]:
    start = match.start()
    if start and text[start - 1] in _BAD_BEFORE:
        return []
    host_end = _host_end(text, match.start(2), match.end(2))
    if not host_end:
        return []
    url = Span(start, _tail_end(text, host_end))
    if (tco := _TCO.match(text, *url)) is None:
        return [url]
    if len(tco[1]) > _MAX_TCO_SLUG_CHARS:
        return []
    # A t.co link has no path after its slug.
    return [Span(start, tco.end() if text[tco.end() : tco.end() + 1] != "?" else _tail_end(text, tco.end()))]


def _without_scheme(text: str, match: re.Match[str]) -> list[Span]:
    spans: list[Span] = []
    for host in _BARE_HOST.finditer(text, *match.span(2)):
        if host.start() and text[host.start() - 1] in _BAD_BEFORE_BARE:
            continue
        if host_end := _host_end(text, *host.span()):
            spans.append(Span(host.start(), host_end))
    if spans and spans[-1].end == match.end(2):
        spans[-1] = Span(spans[-1].start, _tail_end(text, spans[-1].end))
    return spans


def _host_end(text: str, start: int, end: int) -> int:
    """Returns the end (exclusive) of the last top-level domain in the host between `start` and `end`; 0 if there is
    none."""
    found = 0
    labels = text[start:end].split(".")
    position = start + len(labels[0]) + 1
    for before, label in itertools.pairwise(labels):
        if not _is_host_label(before):
            break
        # A subdomain may contain an underscore, but not the label before the top-level domain.
        if "_" not in before:
            found = _tld_end(text, position, label) or found
        position += len(label) + 1
    return found


def _is_host_label(label: str) -> bool:
    if not label or label[0] in "-_" or label[-1] in "-_" or len(label) > _MAX_LABEL_CHARS:
        return False
    if label.isascii():
        return True
    # A label with the prefix of Punycode must be ASCII. Any other label must not exceed the limit after it is encoded.
    if label[:4].lower() == _ENCODED_PREFIX:
        return _BARE_LABEL.fullmatch(label) is not None
    return len(_ENCODED_PREFIX) + len(label.encode("punycode")) <= _MAX_LABEL_CHARS


def _tld_end(text: str, start: int, label: str) -> int:
    if run := _TLD_RUN.match(text, start):
        name = run[0].lower()
        return run.end() if name.startswith(_ENCODED_PREFIX) or name in _TLDS else 0
    if label.isascii():
        return 0
    for length in range(min(len(label), _LONGEST_TLD), 0, -1):
        if label[:length] in _TLDS:
            return start + length
    return 0


def _tail_end(text: str, host_end: int) -> int:
    """Returns the end (exclusive) of the URL whose host ends at `host_end`. The URL includes port, path and query, but
    not punctuation of the sentence after it."""
    tail = _TAIL.match(text, host_end)
    if tail is None:
        return host_end
    query = tail["query"]
    if query is not None and (kept := query.rstrip(_QUERY_TRAIL)):
        return tail.start("query") + len(kept)
    path = tail["path"]
    if path is not None:
        return tail.start("path") + len(path.rstrip(_PATH_TRAIL))
    return tail.end() if query is None else tail.start("query")


def _plain_weight(text: str, stop_above: int) -> int:
    """Returns the weight of a text without URLs. May stop counting once the result is above `stop_above`."""
    if text.isascii():
        return len(text)
    weight = position = 0
    for match in _EMOJI.finditer(text):
        weight += _letters_weight(text[position : match.start()]) + EMOJI_WEIGHT
        position = match.end()
        if weight > stop_above:
            return weight
    return weight + _letters_weight(text[position:])


def _letters_weight(text: str) -> int:
    return len(text) + len(_HEAVY.findall(text))


def _table(path: str) -> Path:
    return Path(str(importlib.metadata.distribution(_DISTRIBUTION).locate_file(f"twitter_text/regexp/{path}")))


def _load_tlds() -> frozenset[str]:
    names: set[str] = set()
    for name in ("valid_gtld", "valid_cctld"):
        spec = importlib.util.spec_from_file_location(f"_roost_{name}", _table(f"{name}.py"))
        if spec is None or spec.loader is None:
            raise ImportError(f"{_DISTRIBUTION} has no {name}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        # The pattern is `(?:(?:name|name|…)(?=…))`; the names are taken from it.
        names.update(getattr(module, name).pattern.partition(")(?=")[0].removeprefix("(?:(?:").split("|"))
    return frozenset(names)


_TLDS = _load_tlds()
_LONGEST_TLD = max(map(len, _TLDS))
# Matches an emoji by the grammar of Unicode Technical Standard #51, because a table of emoji would be outdated by each
# Unicode version. An emoji is: elements (a pictograph with style, skin tone or the tags of a regional flag) combined by
# zero-width joiners; two flag letters; or a keycap.
_ELEMENT = f"[{_PICTOGRAPHS}][\ufe0f\U0001f3fb-\U0001f3ff]?(?:[\U000e0030-\U000e007a]{{3,6}}\U000e007f)?"
_EMOJI = re.compile(
    f"{_ELEMENT}(?:\u200d{_ELEMENT}){{0,{_MAX_JOINED - 1}}}|[{_FLAG_LETTERS}]{{2}}|[#*0-9]\ufe0f?\u20e3", re.DOTALL
)
