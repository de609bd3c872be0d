"""Ctrl-C at any time of the `roost` command ends it without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from roost_cli.interrupts import INTERRUPTED

# Far longer than a mesh takes to start and stop on a busy machine.
GIVE_UP_S = 120
# Modules in the order in which `roost up` imports them: of the command line, of gRPC, of the services, of the gateway.
MOMENTS = (
    "typing",
    "typer.core",
    "grpc._cython",
    "roost_cli.commands",
    "asyncio",
    "services.platform.config",
    "roost_cli.server_runner",
    "services.identity.store.sqlite.schema",
    "gateway_http.app",
)


@pytest.mark.parametrize("module", MOMENTS)
def test_interrupt_after_import_of_module_shows_no_traceback(module: str, tmp_path: Path) -> None:
    places = [part for name in ("http", "grpc", "ops") for part in (f"--{name}", "127.0.0.1:0")]
    command = [sys.executable, "-X", "importtime", "-m", "roost_cli", "up", "--no-demo", "--data", str(tmp_path / "d")]
    process = subprocess.Popen(
        [*command, *places],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A process that starts this test in the background may ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert process.stderr is not None
    ready, sent, said = False, False, []
    # Ends a mesh that the test never interrupts, because it does not import the module.
    giving_up = threading.Timer(GIVE_UP_S, process.kill)
    giving_up.start()
    with process.stderr as lines:
        for line in lines:
            imported = line.rpartition("|")[2].strip() if line.startswith("import time:") else ""
            ready = ready or imported == "roost_cli.interrupts"
            if ready and imported == module:
                process.send_signal(signal.SIGINT)
                sent = True
            if not imported:
                said.append(line)
    giving_up.cancel()
    assert sent
    # A mesh that had begun to serve stops cleanly.
    assert process.wait() in (INTERRUPTED, 0)
    assert "Traceback" not in "".join(said)
    assert "KeyboardInterrupt" not in "".join(said)
