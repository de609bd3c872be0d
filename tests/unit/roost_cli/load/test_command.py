"""Tests that `roost load` creates reproducible keys and authors and reports everything that it leaves out."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from roost_cli.commands import run
from roost_cli.load import command, edge_list
from roost_cli.load.loader import PostOutcome


def test_tweet_lines_key_contains_file_hash_and_line_number() -> None:
    content = b"one\n\ntwo\r\n  three  \n"
    usable, blank = command.tweet_lines(content, "t.txt")
    digest = hashlib.sha256(content).hexdigest()[:32]
    assert [(line.number, line.text, line.key) for line in usable] == [
        (1, "one", f"load:{digest}:1"),
        (3, "two", f"load:{digest}:3"),
        (4, "three", f"load:{digest}:4"),
    ]
    assert blank == [2]


def test_tweet_lines_keys_satisfy_proto_rules() -> None:
    usable, _ = command.tweet_lines(b"x\n" * 3, "t.txt")
    assert all(len(line.key) <= 255 and line.key.isascii() and " " not in line.key for line in usable)


def test_tweet_lines_of_other_file_have_other_keys() -> None:
    assert command.tweet_lines(b"one\n", "t.txt")[0][0].key != command.tweet_lines(b"one\ntwo\n", "t.txt")[0][0].key


def test_tweet_lines_split_at_newlines_only() -> None:
    usable, _ = command.tweet_lines("a\u2028b\x0cc\nd\n".encode(), "t.txt")
    assert [line.text for line in usable] == ["a\u2028b\x0cc", "d"]


def test_tweet_lines_of_empty_file_are_none() -> None:
    assert command.tweet_lines(b"", "t.txt") == ([], [])


def test_authors_same_seed_is_reproducible_and_covers_all_nodes() -> None:
    nodes = list(range(20))
    chosen = command.authors(nodes, 2_000, seed=1)
    assert chosen == command.authors(nodes, 2_000, seed=1)
    assert chosen[:500] == command.authors(nodes, 500, seed=1)
    assert chosen != command.authors(nodes, 2_000, seed=2)
    shares = Counter(chosen)
    assert set(shares) == set(nodes)
    assert max(shares.values()) < 2 * min(shares.values())


def test_report_prints_everything_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    found = edge_list.parse(["1 2", "1 2", "3 3"])
    posted = PostOutcome(created=5, existing=2, refused={"too long": [f"line {n}" for n in range(1, 8)]})
    command.report(found, posted, blank=[9])
    said = capsys.readouterr().out
    assert "1 from a node to itself, 1 repeated" in said
    assert "5 posted, 2 already there" in said
    assert "left out: 7: too long (line 1, line 2, line 3, line 4, line 5, …)" in said
    assert "left out: 1: empty line (line 9)" in said


def test_load_malformed_graph_fails_before_any_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "g.edges").write_text("1 2\nnonsense\n")
    (tmp_path / "t.txt").write_text("hello\n")
    code = run(["load", "--graph", str(tmp_path / "g.edges"), "--tweets", str(tmp_path / "t.txt")])
    assert code == 2
    assert "g.edges, line 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("graph", "tweets", "fault"),
    [
        (b"1 2\n", "one\ntwo\ncaf\u00e9\n".encode("latin-1"), "t.txt, line 3: byte 0xe9 is not UTF-8"),
        (b"1 2\n", "one\n".encode("utf-16"), "t.txt, line 1: byte 0xff is not UTF-8"),
        (b"1 2\n", b"", "t.txt contains no tweet"),
        (b"1 2\n", b"\n  \n", "t.txt contains no tweet"),
        ("# caf\u00e9\n1 2\n".encode("latin-1"), b"one\n", "g.edges, line 1: byte 0xe9 is not UTF-8"),
        (b"", b"one\n", "g.edges contains no edge"),
    ],
)
def test_load_invalid_tweet_file_fails_before_any_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], graph: bytes, tweets: bytes, fault: str
) -> None:
    (tmp_path / "g.edges").write_bytes(graph)
    (tmp_path / "t.txt").write_bytes(tweets)
    assert run(["load", "--graph", str(tmp_path / "g.edges"), "--tweets", str(tmp_path / "t.txt")]) == 2
    assert fault in capsys.readouterr().err


def test_load_strips_byte_order_mark() -> None:
    usable, _ = command.tweet_lines("\ufeffone\ntwo\n".encode(), "t.txt")
    assert [line.text for line in usable] == ["one", "two"]
    assert list(command.utf8_lines(["\ufeff1 2\n".encode()], "g")) == ["1 2\n"]


def test_load_missing_file_returns_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["load", "--graph", "nowhere.edges", "--tweets", "nowhere.txt"]) == 2
    assert "nowhere.edges" in capsys.readouterr().err


def test_load_help_lists_options() -> None:
    from roost_cli.commands import app

    said = CliRunner().invoke(app, ["load", "--help"]).output
    assert all(option in said for option in ("--graph", "--tweets", "--directed", "--seed", "--concurrency", "--grpc"))


def test_load_without_work_raises_command_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["load"]) == 2
    assert "--mutate" in capsys.readouterr().err
    (tmp_path / "g.edges").write_text("1 2\n")
    assert run(["load", "--graph", str(tmp_path / "g.edges"), "--mutate", "5"]) == 2
    assert "give both --graph and --tweets" in capsys.readouterr().err
