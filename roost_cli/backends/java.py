"""Finds a suitable JDK, and downloads the jars of a server from Maven Central."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from roost_cli.backends.layout import BackendError, Layout, locked

# Directories in which distributions and Homebrew install JDKs.
JDK_DIRECTORIES = (
    ("/usr/lib/jvm", "*"),
    ("/Library/Java/JavaVirtualMachines", "*/Contents/Home"),
    ("/opt/homebrew/opt", "openjdk*/libexec/openjdk.jdk/Contents/Home"),
)
DEPENDENCIES_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"
# Maximum number of seconds for Maven, after which it is killed. The first run also downloads Maven's plugins, which
# takes minutes on a slow connection.
COLLECT_WITHIN_S = 900
SAY_EACH_S = 10
# JVM options for servers that run only for minutes and on few cores, as in tests. They disable the optimizing compiler
# and the concurrent garbage collector, which take 40 % of Cassandra's CPU time in its first five minutes and a third of
# OpenSearch's during the tests (measured), and save less than they take.
SHORT_LIVED = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
NO_MAVEN = "Maven is missing, which collects the servers' jars (on Debian: apt-get install maven)"


def java(java_home: Path | None, least: int, most: int, *, for_others: bool = False) -> Path:
    """Returns the path of `java` of the newest JDK whose version is from `least` to `most`.

    Searches `java_home` (a JDK's directory, or None), JDK_DIRECTORIES and PATH. If `for_others` is true, ignores JDKs
    that not all users can execute. Raises BackendError if no JDK fits; the message tells the user to install one or to
    set JAVA_HOME.
    """
    fitting = {
        version: home
        for home in candidates(java_home)
        if least <= (version := version_of(home)) <= most and (not for_others or open_to_others(home))
    }
    if not fitting:
        wanted = f"Java {least}" if least == most else f"Java {least} or newer"
        whence = "on Debian: apt-get install openjdk-17-jre-headless" if least <= 17 else "from adoptium.net, for one"
        raise BackendError(f"{wanted} is missing; install it ({whence}), or set JAVA_HOME to a JDK")
    return fitting[max(fitting)] / "bin" / "java"


def candidates(java_home: Path | None) -> Iterator[Path]:
    """Yields directories that may contain a JDK: `java_home`, the directories that JDK_DIRECTORIES matches, and the
    directory of the program `java` on PATH."""
    if java_home is not None:
        yield java_home
    for folder, pattern in JDK_DIRECTORIES:
        yield from sorted(Path(folder).glob(pattern))
    on_path = shutil.which("java")
    if on_path:
        yield Path(on_path).resolve().parent.parent


def version_of(home: Path) -> int:
    """Returns the feature version (17, 21, …) of the JDK in the directory `home`; 0 if there is none."""
    if not os.access(home / "bin" / "java", os.X_OK):
        return 0
    try:
        text = (home / "release").read_text()
    except OSError:
        done = subprocess.run([str(home / "bin" / "java"), "-version"], capture_output=True, text=True, check=False)  # noqa: S603
        text = done.stderr
    found = re.search(r'(?:JAVA_VERSION=|version )"(?:1\.)?(\d+)', text)
    return int(found.group(1)) if found else 0


def open_to_others(path: Path) -> bool:
    """Returns whether all users have execute permission on the path and on all its parent directories."""
    return all(folder.stat().st_mode & 0o001 for folder in (path.resolve(), *path.resolve().parents))


def jars(layout: Layout, name: str, dependencies: Sequence[str]) -> Path:
    """Returns a directory with the jars of the artifacts (`group:name:version`) and of all their dependencies.

    Maven downloads the jars once and verifies their checksums. Raises BackendError if Maven is missing or fails.
    """
    pom = _pom(dependencies)
    folder = layout.cache / "jars" / f"{name}-{hashlib.sha256(pom.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    # Maven's local repository does not support concurrent writers.
    with locked(layout.cache / "jars" / "lock"):
        if folder.is_dir():
            return folder
        _collect(layout, name, pom, folder)
    return folder


def _collect(layout: Layout, name: str, pom: str, folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise BackendError(NO_MAVEN)
    layout.say(name, "collecting its jars by Maven, once")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        draft = Path(scratch)
        (draft / "pom.xml").write_text(pom)
        goal = f"{DEPENDENCIES_PLUGIN}:copy-dependencies"
        argv = [
            maven,
            "-q",
            "-B",
            "--strict-checksums",
            "-f",
            str(draft / "pom.xml"),
            goal,
            f"-DoutputDirectory={draft / 'lib'}",
        ]
        log = layout.logs / f"{name}-jars.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)  # noqa: S603
            _await(layout, name, process)
        if process.returncode != 0:
            raise BackendError(f"Maven could not collect the jars of {name} (log: {log}):\n{tail(log)}")
        (draft / "lib").chmod(0o755)
        (draft / "lib").rename(folder)


def _await(layout: Layout, name: str, process: subprocess.Popen[bytes]) -> None:
    for waited in range(COLLECT_WITHIN_S):
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            if waited % SAY_EACH_S == SAY_EACH_S - 1:
                layout.say(name, f"still collecting its jars ({waited + 1} s)")
        else:
            return
    process.kill()
    process.wait()


def tail(log: Path, lines: int = 15) -> str:
    """Returns the last `lines` lines of a log file, or `(no log)` if it cannot be read."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"


def _pom(dependencies: Sequence[str]) -> str:
    entries = "".join(
        "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>".format(
            *dependency.split(":")
        )
        for dependency in dependencies
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion><groupId>roost</groupId>'
        f"<artifactId>backend</artifactId><version>1</version><packaging>pom</packaging><dependencies>{entries}</dependencies></project>"
    )
