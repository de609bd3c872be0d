"""Files of the data directory are private to their owner."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MeshFactory

pytestmark = pytest.mark.embedded


@pytest.fixture
def _open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes_of(data: Path) -> set[tuple[bool, int]]:
    """Returns (is a directory, permissions) of everything in the data directory; the mesh may run and delete files meanwhile."""
    found = set()
    for path in [data, *data.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):
            mode = path.stat().st_mode
            found.add((stat.S_ISDIR(mode), stat.S_IMODE(mode)))
    return found


@pytest.mark.usefixtures("_open_umask")
async def test_data_dir_opened_before_restart_is_private_again(start_mesh: MeshFactory, tmp_path: Path) -> None:
    data = tmp_path / "data"
    mesh = await start_mesh(data_dir=data)
    (author,) = await mesh.people("ada")
    await mesh.post(author, "a first text")
    await mesh.process.stop()
    for path in [data, *data.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    os.umask(0)
    again = await start_mesh(data_dir=data)
    await again.post(author, "a second text")
    assert modes_of(data) == {(True, 0o700), (False, 0o600)}
    await again.process.stop()
    assert modes_of(data) == {(True, 0o700), (False, 0o600)}
