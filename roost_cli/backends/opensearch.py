"""Prepares OpenSearch to run from its jars: creates its home directory, and if this process runs as root, a system user
for it, because OpenSearch does not run as root."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import subprocess
from pathlib import Path

from roost_cli.backends.java import SHORT_LIVED, jars, java, open_to_others
from roost_cli.backends.layout import BackendError, Layout, ServerCommand

VERSION = "3.3.0"
LIB = (
    f"org.opensearch:opensearch:{VERSION}",
    f"org.opensearch:opensearch-agent-bootstrap:{VERSION}",
    f"org.opensearch:opensearch-plugin-classloader:{VERSION}",
    "org.apache.logging.log4j:log4j-core:2.21.0",
)
# The modules of the OpenSearch distribution that the search service needs, by name: Maven artifact and plugin class.
MODULES = {
    "transport-netty4": ("transport-netty4-client", "org.opensearch.transport.Netty4ModulePlugin"),
    "analysis-common": ("analysis-common", "org.opensearch.analysis.common.CommonAnalysisModulePlugin"),
    "mapper-extras": ("mapper-extras-client", "org.opensearch.index.mapper.MapperExtrasModulePlugin"),
    "lang-painless": ("lang-painless", "org.opensearch.painless.PainlessModulePlugin"),
    "reindex": ("reindex-client", "org.opensearch.index.reindex.ReindexModulePlugin"),
}
# The lowest and the highest usable Java version. OpenSearch 3 needs 21; versions above 25 are untested.
JAVA = (21, 25)
USER = "roost-opensearch"
# Parent of OpenSearch's home directory if this process runs as root, because the OpenSearch user cannot access root's
# home directory.
SHARED_CACHE = Path("/var/cache/roost/opensearch")

SETTINGS = """\
cluster.name: roost
node.name: roost
discovery.type: single-node
network.host: 127.0.0.1
http.port: {port}
transport.port: {transport_port}
path.data: {home}/data
path.logs: {home}/logs
# Without this setting, OpenSearch makes every index read-only if the disk is nearly full, which is common on a
# developer's machine.
cluster.routing.allocation.disk.threshold_enabled: false
# A write to an index that does not exist is a defect of Roost, so it must fail.
action.auto_create_index: false
cluster.max_shards_per_node: 5000
indices.requests.cache.size: 1%
"""

LOGGING = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d %p %c{1} %m%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
"""

DESCRIPTOR = """\
name={name}
description={name}
version={version}
opensearch.version={version}
java.version=21
classname={classname}
has.native.controller=false
"""


def opensearch(layout: Layout) -> ServerCommand:
    """Prepares a single OpenSearch node with the modules that the search service needs, and returns its command.

    Raises BackendError if Java or Maven is missing, or if a download fails.
    """
    as_root = os.geteuid() == 0
    binary = java(layout.java_home, *JAVA, for_others=as_root)
    lib = jars(layout, "opensearch", LIB)
    modules = {
        name: jars(layout, f"opensearch-{name}", [f"org.opensearch.plugin:{artifact}:{VERSION}"])
        for name, (artifact, _) in MODULES.items()
    }
    home = home_of(layout)
    user = _user() if as_root else None
    _arrange(layout, home, lib, modules)
    if user is not None:
        for folder in (home / "data", home / "logs", home / "config", home):
            _chown(folder, user)
    flags = [
        "-Xms512m",
        "-Xmx512m",
        *SHORT_LIVED,
        f"-Dopensearch.path.home={home}",
        f"-Dopensearch.path.conf={home / 'config'}",
    ]
    flags += [
        "-Dopensearch.networkaddress.cache.ttl=60",
        "-Dlog4j2.disable.jmx=true",
        f"-Djava.io.tmpdir={home / 'tmp'}",
    ]
    if user is not None:
        _chown(home / "tmp", user)
    return ServerCommand(
        [str(binary), *flags, "-cp", f"{home}/lib/*", "org.opensearch.bootstrap.OpenSearch"], home, user
    )


def home_of(layout: Layout) -> Path:
    """Returns the path of OpenSearch's home directory, which is in the layout's data directory.

    If this process runs as root and other users cannot access the data directory, the home directory is in SHARED_CACHE
    instead.
    """
    usual = layout.of("opensearch")
    if os.geteuid() != 0:
        return usual
    existing = next(folder for folder in (usual, *usual.parents) if folder.is_dir())
    if open_to_others(existing):
        return usual
    return SHARED_CACHE / hashlib.sha256(str(usual).encode()).hexdigest()[:12]


def _arrange(layout: Layout, home: Path, lib: Path, modules: dict[str, Path]) -> None:
    for name in ("config", "data", "logs", "tmp"):
        (home / name).mkdir(parents=True, exist_ok=True)
    for name in ("lib", "modules"):
        shutil.rmtree(home / name, ignore_errors=True)
    shutil.copytree(lib, home / "lib", copy_function=_link)
    there = {path.name for path in lib.iterdir()}
    for name, folder in modules.items():
        target = home / "modules" / name
        target.mkdir(parents=True)
        for jar in folder.iterdir():
            # OpenSearch does not start if a class is in `lib` and in a module.
            if jar.name not in there:
                _link(jar, target / jar.name)
        words = DESCRIPTOR.format(name=name, version=VERSION, classname=MODULES[name][1])
        (target / "plugin-descriptor.properties").write_text(words)
    values = {"port": layout.port(9200), "transport_port": layout.port(9300), "home": home}
    (home / "config" / "opensearch.yml").write_text(SETTINGS.format_map(values))
    (home / "config" / "log4j2.properties").write_text(LOGGING)


def _link(source: Path | str, target: Path | str) -> object:
    """Creates a hard link, or a copy if the file system does not support the link. Returns `target`."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def _user() -> tuple[int, int]:
    try:
        found = pwd.getpwnam(USER)
    except KeyError:
        add = shutil.which("useradd")
        if add is None:
            raise BackendError(
                "OpenSearch does not run as root, and there is no useradd; run this as another user"
            ) from None
        argv = [add, "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", USER]
        subprocess.run(argv, check=True, capture_output=True)  # noqa: S603
        found = pwd.getpwnam(USER)
    return found.pw_uid, found.pw_gid


def _chown(folder: Path, user: tuple[int, int]) -> None:
    """Makes `user` (uid, gid) the owner of the directory and of its direct children, except `lib` and `modules`.

    All deeper files are created by OpenSearch itself, so they already have this owner.
    """
    os.chown(folder, *user)
    for path in folder.iterdir():
        if path.name not in ("lib", "modules"):
            os.chown(path, *user)
