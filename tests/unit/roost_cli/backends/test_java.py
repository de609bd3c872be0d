"""Tests the choice of a JDK and the error if there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost_cli.backends import java as module
from roost_cli.backends.java import java, open_to_others, version_of
from roost_cli.backends.layout import BackendError
from roost_cli.backends.server_specs import missing_programs


def jdk(folder: Path, name: str, version: str) -> Path:
    """Creates a JDK directory with a `release` file."""
    home = folder / name
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "java").write_text("#!/bin/sh\n")
    (home / "bin" / "java").chmod(0o755)
    (home / "release").write_text(f'IMPLEMENTOR="Somebody"\nJAVA_VERSION="{version}"\n')
    return home


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hides the JDKs of this machine; only those created in the returned directory are found."""
    monkeypatch.setattr(module, "JDK_DIRECTORIES", ((str(tmp_path), "*"),))
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    return tmp_path


@pytest.mark.parametrize(("text", "version"), [("17.0.15", 17), ("1.8.0_392", 8), ("25", 25), ("21.0.1-ea", 21)])
def test_version_of_jdk_is_parsed(tmp_path: Path, text: str, version: int) -> None:
    assert version_of(jdk(tmp_path, "one", text)) == version


def test_version_of_other_directory_is_zero(tmp_path: Path) -> None:
    assert version_of(tmp_path) == 0


def test_java_newest_within_bounds_is_chosen(homes: Path) -> None:
    for version in ("11.0.2", "17.0.1", "21.0.4", "25.0.1", "27"):
        jdk(homes, f"jdk-{version}", version)
    assert java(None, 17, 17) == homes / "jdk-17.0.1" / "bin" / "java"
    assert java(None, 21, 25) == homes / "jdk-25.0.1" / "bin" / "java"


def test_java_private_jdk_is_not_chosen_for_others(homes: Path) -> None:
    home = jdk(homes, "jdk-21", "21.0.4")
    home.chmod(0o700)
    assert not open_to_others(home)
    assert java(None, 21, 25)
    with pytest.raises(BackendError):
        java(None, 21, 25, for_others=True)


def test_java_missing_raises_with_install_hint(homes: Path, tmp_path: Path) -> None:
    jdk(homes, "jdk-11", "11.0.2")
    words = "\n".join(missing_programs(None))
    for name in ("Java 17", "Java 21 or newer", "Maven", "redis-server"):
        assert f"{name} is missing" in words
    (tmp_path / "elsewhere").mkdir()
    assert "Java 17 is missing" not in "\n".join(missing_programs(jdk(tmp_path / "elsewhere", "mine", "17.0.2")))
