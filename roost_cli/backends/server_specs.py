"""Defines the version, settings and command line of each server that runs as a local process.

All servers are configured for development and tests: single node, loopback only, little memory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from roost_cli.backends.java import NO_MAVEN, SHORT_LIVED, jars, java
from roost_cli.backends.layout import BackendError, Layout, ServerCommand
from roost_cli.backends.opensearch import JAVA as OPENSEARCH_JAVA
from roost_cli.backends.opensearch import opensearch

CASSANDRA_VERSION = "5.0.5"
KAFKA_VERSION = "4.1.0"
# Not 4.1.0, which does not start.
S3PROXY_VERSION = "2.6.0"
# The lowest and the highest usable Java version. Cassandra 5 supports 11 and 17; Kafka 4 needs 17.
JAVA = (17, 17)
NO_REDIS = "redis-server is missing; install Redis 7 or newer (on Debian: apt-get install redis-server)"
# Number of databases of the Redis server. Each mesh and each test worker uses one of its own.
REDIS_DATABASES = 256
# The id of the Kafka cluster: 16 bytes in base64. It is constant, because Kafka does not start on data with another id.
KAFKA_CLUSTER = "cm9vc3QtZGV2LWthZmthMQ"

# Internal packages of Java that Cassandra needs, by module. Cassandra's own start script makes the same packages
# accessible.
EXPORTS = {
    "java.base": "jdk.internal.misc jdk.internal.ref java.lang.ref sun.nio.ch",
    "java.management.rmi": "com.sun.jmx.remote.internal.rmi",
    "java.rmi": "sun.rmi.registry sun.rmi.server",
    "java.sql": "java.sql",
    "jdk.attach": "sun.tools.attach",
    "jdk.compiler": "com.sun.tools.javac.file",
    "jdk.unsupported": "sun.misc",
}
OPENS = {
    "java.base": (
        "java.lang java.lang.module java.lang.reflect java.io java.nio java.util java.util.concurrent "
        "java.util.concurrent.atomic sun.nio.ch jdk.internal.loader jdk.internal.ref jdk.internal.reflect jdk.internal.math "
        "jdk.internal.module jdk.internal.util.jar"
    ),
    "jdk.management": "com.sun.management.internal",
}

CASSANDRA_YAML = """\
cluster_name: roost
num_tokens: 1
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
dynamic_snitch: false
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters:
      - seeds: "127.0.0.1:{storage_port}"
listen_address: 127.0.0.1
rpc_address: 127.0.0.1
storage_port: {storage_port}
native_transport_port: {port}
data_file_directories: [{data}/data]
commitlog_directory: {data}/commitlog
saved_caches_directory: {data}/saved_caches
hints_directory: {data}/hints
cdc_raw_directory: {data}/cdc_raw
# With `group`, a write is acknowledged when it is on disk, which tests of durability need. With `periodic`, only a
# power failure loses writes.
commitlog_sync: {sync}
{sync_period}
commitlog_disk_access_mode: legacy
# A snapshot before TRUNCATE and DROP takes longer than the statement itself.
auto_snapshot: false
hinted_handoff_enabled: false
# The defaults (32, 32 and 128) are for many cores. On few cores, threads would spend most of the time on switching.
concurrent_reads: 8
concurrent_writes: 8
native_transport_max_threads: 16
memtable_heap_space: 96MiB
memtable_offheap_space: 96MiB
concurrent_compactors: 1
compaction_throughput: 0MiB/s
# No key cache: each TRUNCATE and DROP goes through all keys of the cache, which takes 50 ms if the cache is full.
# Without a key cache a TRUNCATE takes 3 ms.
key_cache_size: 0MiB
file_cache_size: 32MiB
networking_cache_size: 16MiB
prepared_statements_cache_size: 16MiB
"""

LOGBACK_XML = """\
<configuration>
  <appender name="STDOUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d{ISO8601} %-5level %logger{0} %msg%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="STDOUT"/></root>
</configuration>
"""

KAFKA_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={data}/logs
num.network.threads=2
num.io.threads=4
background.threads=2
log.cleaner.threads=1
auto.create.topics.enable=false
num.partitions=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=2
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# A consumer starts without waiting for other members of its group.
group.initial.rebalance.delay.ms=0
# Tests create and delete thousands of topics, so the files of a partition are small and are deleted soon.
log.segment.bytes=16777216
log.index.size.max.bytes=262144
log.segment.delete.delay.ms=1000
"""

LOG4J_YAML = """\
Configuration:
  Appenders:
    Console: {name: out, PatternLayout: {pattern: "%d %p %c{1} %m%n"}}
  Loggers:
    Root: {level: info, AppenderRef: {ref: out}}
"""

S3_PROPERTIES = """\
s3proxy.endpoint=http://127.0.0.1:{port}
s3proxy.authorization=none
jclouds.provider=filesystem
jclouds.filesystem.basedir={data}/objects
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A server: its default port, its other default ports, and the function that prepares it and returns its command.

    If `second_start_after_kill` is true, the server must be started twice after it was killed: the first start recovers
    the data, and only the second start reads all of it.
    """

    port: int
    prepare: Callable[[Layout], ServerCommand]
    others: tuple[int, ...] = ()
    second_start_after_kill: bool = False


def cassandra(layout: Layout) -> ServerCommand:
    """Prepares a single Cassandra node and returns its command.

    Raises BackendError if Java is missing or the jars cannot be downloaded.
    """
    binary = java(layout.java_home, *JAVA)
    lib = jars(layout, "cassandra", [f"org.apache.cassandra:cassandra-all:{CASSANDRA_VERSION}"])
    data = layout.of("cassandra")
    sync, period = (
        ("group", "commitlog_sync_group_window: 5ms") if layout.durable else ("periodic", "commitlog_sync_period: 1s")
    )
    values = {
        "port": layout.port(9042),
        "storage_port": layout.port(7000),
        "data": data,
        "sync": sync,
        "sync_period": period,
    }
    _write(data / "conf" / "cassandra.yaml", CASSANDRA_YAML.format_map(values))
    _write(data / "conf" / "logback.xml", LOGBACK_XML)
    flags = [
        *_packages("--add-exports", EXPORTS),
        *_packages("--add-opens", OPENS),
        "-Djdk.attach.allowAttachSelf=true",
        "-Dio.netty.tryReflectionSetAccessible=true",
        "-Xms512m",
        "-Xmx768m",
        "-XX:+ExitOnOutOfMemoryError",
        *SHORT_LIVED,
        f"-Dcassandra.config=file://{data}/conf/cassandra.yaml",
        f"-Dcassandra.storagedir={data}",
        "-Dcassandra-foreground=yes",
        "-Dcassandra.skip_wait_for_gossip_to_settle=0",
        "-Dcassandra.initial_token=0",
        "-Dcassandra.ring_delay_ms=100",
        "-Dcassandra.superuser_setup_delay_ms=0",
    ]
    if not layout.durable:
        # Tests create and truncate tables all the time. Without these options, Cassandra flushes memtables after each
        # schema change, which makes the change four times slower. With them, a schema change is only in the commit log
        # until a flush. Cassandra reads the schema before it replays the commit log, so after a kill it finds new
        # keyspaces only at its second start.
        flags += ["-Dcassandra.test.flush_local_schema_changes=false", "-Dcassandra.unsafesystem=true"]
    argv = [str(binary), *flags, "-cp", f"{data / 'conf'}:{lib}/*", "org.apache.cassandra.service.CassandraDaemon"]
    return ServerCommand(argv, data)


def kafka(layout: Layout) -> ServerCommand:
    """Prepares a Kafka broker that is also the controller, and returns its command.

    Formats the data directory before the first start. Raises BackendError if formatting fails, Java is missing or the
    jars cannot be downloaded.
    """
    binary = java(layout.java_home, *JAVA)
    lib = jars(
        layout,
        "kafka",
        # The second artifact writes Kafka's logs, which are discarded without it.
        [f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}", "org.apache.logging.log4j:log4j-slf4j-impl:2.24.3"],
    )
    data = layout.of("kafka")
    properties = data / "server.properties"
    values = {"port": layout.port(9092), "controller_port": layout.port(9093), "data": data}
    _write(properties, KAFKA_PROPERTIES.format_map(values))
    _write(data / "log4j2.yaml", LOG4J_YAML)
    logging = f"-Dlog4j2.configurationFile={data / 'log4j2.yaml'}"
    base = [str(binary), logging, "-Xmx512m", *SHORT_LIVED, "-cp", f"{lib}/*"]
    if not (data / "logs" / "meta.properties").exists():
        argv = [*base, "kafka.tools.StorageTool", "format", "-t", KAFKA_CLUSTER, "-c", str(properties)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            raise BackendError(f"Kafka could not format {data}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return ServerCommand([*base, "kafka.Kafka", str(properties)], data)


def redis(layout: Layout) -> ServerCommand:
    """Prepares a Redis server that stores nothing on disk, and returns its command.

    If redis-server is missing, installs it with apt-get. Raises BackendError if redis-server cannot be installed.
    """
    binary = shutil.which("redis-server") or _install_redis(layout)
    data = layout.of("redis")
    data.mkdir(parents=True, exist_ok=True)
    argv = [binary, "--bind", "127.0.0.1", "--port", str(layout.port(6379)), "--databases", str(REDIS_DATABASES)]
    argv += [
        "--save",
        "",
        "--appendonly",
        "no",
        "--maxmemory",
        "1gb",
        "--maxmemory-policy",
        "noeviction",
        "--daemonize",
        "no",
    ]
    return ServerCommand(argv, data)


def s3(layout: Layout) -> ServerCommand:
    """Prepares S3Proxy, an S3 server that stores its objects in a local directory, and returns its command.

    Raises BackendError if Java is missing or the jars cannot be downloaded.
    """
    binary = java(layout.java_home, *JAVA)
    lib = jars(layout, "s3", [f"org.gaul:s3proxy:{S3PROXY_VERSION}"])
    data = layout.of("s3")
    (data / "objects").mkdir(parents=True, exist_ok=True)
    _write(data / "s3proxy.properties", S3_PROPERTIES.format_map({"port": layout.port(9080), "data": data}))
    properties = str(data / "s3proxy.properties")
    return ServerCommand(
        [str(binary), "-Xmx256m", "-cp", f"{lib}/*", "org.gaul.s3proxy.Main", "--properties", properties], data
    )


def _packages(option: str, modules: Mapping[str, str]) -> list[str]:
    return [f"{option}={module}/{name}=ALL-UNNAMED" for module, names in modules.items() for name in names.split()]


def missing_programs(java_home: Path | None) -> list[str]:
    """Returns one sentence for each program that the servers need as local processes and that is not installed."""
    found = []
    for bounds in (JAVA, OPENSEARCH_JAVA):
        try:
            java(java_home, *bounds)
        except BackendError as error:
            found.append(str(error))
    if shutil.which("mvn") is None:
        found.append(NO_MAVEN)
    if shutil.which("redis-server") is None and installer() is None:
        found.append(NO_REDIS)
    return found


def installer() -> str | None:
    """Returns the path of apt-get if it is installed and this process runs as root, otherwise None."""
    return shutil.which("apt-get") if os.geteuid() == 0 else None


def _install_redis(layout: Layout) -> str:
    apt = installer()
    if apt is None:
        raise BackendError(NO_REDIS)
    layout.say("redis", "installing redis-server by apt-get")
    log = layout.logs / "redis-apt.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        for argv in ([apt, "-qq", "update"], [apt, "-qq", "-y", "--no-install-recommends", "install", "redis-server"]):
            noninteractive = ["/usr/bin/env", "DEBIAN_FRONTEND=noninteractive", *argv]
            subprocess.run(noninteractive, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)  # noqa: S603
        systemctl = shutil.which("systemctl")
        if systemctl:
            # Stops the Redis service that the package may have started, because it would use the port.
            subprocess.run([systemctl, "disable", "--now", "redis-server"], stdout=output, stderr=output, check=False)  # noqa: S603
    found = shutil.which("redis-server")
    if found is None:
        raise BackendError(f"redis-server could not be installed (log: {log})")
    return found


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


SERVERS: Mapping[str, Server] = {
    "cassandra": Server(9042, cassandra, (7000,), second_start_after_kill=True),
    "redis": Server(6379, redis),
    "kafka": Server(9092, kafka, (9093,)),
    "opensearch": Server(9200, opensearch, (9300,)),
    "s3": Server(9080, s3),
}
# The servers that `up` starts if it is called without names. No service stores objects yet, so s3 is not among them.
DEFAULT_SERVERS = ("cassandra", "redis", "kafka", "opensearch")
