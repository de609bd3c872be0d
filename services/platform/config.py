"""Reads the settings of a process from `ROOST_…` variables and from the TOML file that ROOST_CONFIG names.

Every setting has a default that is safe for the embedded backend on one machine. The default addresses of Cassandra,
Redis, Kafka and OpenSearch are those at which `scripts/backends up` starts them.
"""

from __future__ import annotations

import difflib
import os
import re
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from services.platform.rpc.client_address import networks

# The parent directory of the package `services`: a checkout, or `site-packages` if Roost is installed as a package.
CHECKOUT = Path(__file__).resolve().parents[2]
# Minimum length of a secret in hexadecimal digits, and in characters if it is not hexadecimal: 128 random bits need
# this many, because a hexadecimal digit holds four bits and a base64 character six.
MIN_SECRET_HEX, MIN_SECRET_CHARS = 32, 22
# Minimum number of different characters in a secret. It rejects secrets such as `aaaa…`, which are long enough but can
# be guessed; a random secret of the minimum length has fewer different characters once in ten million.
MIN_DIFFERENT_CHARS = 8

# Ten years in seconds: the longest period of a setting. Cassandra refuses a TTL of more than twenty years, and a time
# that far ahead must fit into 64 bits in milliseconds.
MAX_PERIOD_S = 10 * 365 * 86_400
# The clock margin in seconds of a mesh of several processes, if nothing else is set. Their copies of the celebrity tiers
# may differ by the 30 s after which a silent stream counts as lost, and by the seconds of a poll.
SEVERAL_PROCESSES_MARGIN_S = 60.0
# An hour in seconds: the longest wait of a setting. A process that drains for longer looks hung.
MAX_WAIT_S = 3_600.0
# The largest number of a setting that counts people, timelines or requests. It fits into 32 bits, as all stores need.
MAX_COUNT = 2_000_000_000

# The largest file descriptor that Linux gives a process by default.
MAX_FD = 1_048_576

PREFIX = "ROOST_"
# Maximum number of settings that an error suggests in place of an unknown one. Most words occur in the names of one or
# two settings. `cassandra` occurs in more; the first declared, the addresses, is the most likely one.
MAX_SUGGESTIONS = 3
CONFIG_VARIABLE = "ROOST_CONFIG"
# Variables that are not settings but must be accepted. ROOST_REQUIRE lists the backends whose tests `scripts/test` must
# not skip, ROOST_SEED is the random seed of the tests; processes that tests start inherit both.
_OTHER_VARIABLES = frozenset({CONFIG_VARIABLE, "ROOST_REQUIRE", "ROOST_SEED"})
# Ends the address of a service: host:port, or a gRPC target such as dns:///host:port.
_PORT = re.compile(r".+:(\d{1,5})")
_PLAIN_NAME = re.compile(r"[a-z][a-z0-9_]{0,23}")
# Kubernetes sets variables with the address of each Service of the namespace in every pod. For a Service called `roost`
# or `roost-…` their names begin with ROOST_, so they must not be reported as unknown settings.
_SERVICE_LINK = re.compile(r"ROOST_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
# A variable ROOST_…_PORT could be a misspelt setting. It comes from Kubernetes if its value is a URL such as
# tcp://10.0.0.1:80.
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")


def _plain_name(name: str) -> str:
    """Returns the name unchanged if Cassandra keyspaces, Kafka topics and OpenSearch indexes can have it as a prefix.

    Raises ValueError otherwise.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise ValueError("must be 1 to 24 lower-case letters, digits and underscores, and begin with a letter")
    return name


def _split(value: object) -> object:
    """Splits comma-separated text into a tuple; returns other values unchanged."""
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


def _split_peers(value: object) -> object:
    """Splits `name=address,…` into a dict; returns other values unchanged. Raises ValueError if an entry has no `=`."""
    if not isinstance(value, str):
        return value
    pairs = [pair.split("=", 1) for pair in value.split(",") if pair.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("must be written as name=host:port,name=host:port")
    return {name.strip(): target.strip() for name, target in pairs}


def _check_peers(value: dict[str, str]) -> dict[str, str]:
    """Returns the addresses. Raises ValueError if a name is empty or an address has no port."""
    for name, target in value.items():
        if not name or not _has_port(target):
            raise ValueError(f"must be written as name=host:port,name=host:port, not {name}={target}")
    return value


def _check_address(value: str) -> str:
    """Returns the address. Accepts "". Raises ValueError if it has no port."""
    if value and not _has_port(value):
        raise ValueError(f"must be host:port, such as 127.0.0.1:50051, not {value!r}")
    return value


def _has_port(address: str) -> bool:
    found = _PORT.fullmatch(address)
    return found is not None and int(found[1]) <= 65_535


def _check_data_dir(value: object) -> object:
    """Returns the path. Raises ValueError if it is empty, because that would be the current directory."""
    if value == "":
        raise ValueError("must name a directory: leave the variable out for the default, or write `.` for this one")
    return value


def _check_secret(value: str) -> str:
    """Returns the secret unchanged. Raises ValueError if it is too short, or has too few different characters, to hold
    128 random bits.

    Also raises it if the secret has characters that an HTTP header cannot carry. Accepts "". A secret that passes may
    still be weak, because the randomness of a string cannot be measured.
    """
    if not value:
        return value
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError(
            "must be one word of letters, digits and signs in ASCII, because calls carry it in a header. Make one with: "
            "openssl rand -hex 32"
        )
    is_hex = all(digit in string.hexdigits for digit in value)
    if len(value) < (MIN_SECRET_HEX if is_hex else MIN_SECRET_CHARS) or len(set(value)) < MIN_DIFFERENT_CHARS:
        raise ValueError(
            f"must be random, of at least {MIN_SECRET_HEX} hexadecimal digits or {MIN_SECRET_CHARS} characters of "
            "base64: a shorter one can be guessed. Make one with: openssl rand -hex 32"
        )
    return value


def _check_networks(value: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the networks unchanged. Raises ValueError if one of them is written neither as `address/bits` nor as an
    address."""
    try:
        networks(value)
    except ValueError as error:
        raise ValueError(f"must be networks such as 10.0.0.0/8,fd00::/8: {error}") from error
    return value


def _check_origins(value: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the origins in lower case. Raises ValueError if an origin is not written as scheme://host[:port]; the
    single origin `*` is also allowed."""
    if value == ("*",):
        return value
    # Browsers send origins in lower case, and the gateway compares them byte by byte.
    origins = tuple(origin.lower() for origin in value)
    for origin in origins:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}":
            raise ValueError(
                f"must be origins such as https://app.example.org, without a path, or `*` alone, not {origin!r}"
            )
    return origins


# Types of settings. In a variable, a list is written with commas; in the file it may be a TOML list.
PlainName = Annotated[str, AfterValidator(_plain_name)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Networks = Annotated[Names, AfterValidator(_check_networks)]
Origins = Annotated[Names, AfterValidator(_check_origins)]
PeerAddresses = Annotated[dict[str, str], NoDecode, BeforeValidator(_split_peers), AfterValidator(_check_peers)]
Address = Annotated[str, AfterValidator(_check_address)]
Secret = Annotated[str, AfterValidator(_check_secret)]


def default_data_dir(checkout: Path) -> Path:
    """Returns the folder `data` in `checkout`. If `checkout` contains no `pyproject.toml`, Roost is installed as a
    package: then returns `data` in the current directory."""
    return checkout / "data" if (checkout / "pyproject.toml").is_file() else Path("data")


class Settings(BaseSettings):
    """All settings of a process. A variable overrides the file; a command-line argument overrides both.

    Constructing it raises ValueError if a value is invalid, if a `ROOST_…` variable or a key of the file is not a
    setting, or if the file cannot be read.
    """

    # Errors do not contain the invalid value, because it may be a secret.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True
    )

    backend: Literal["embedded", "cluster"] = "embedded"
    # The data directory, which holds everything that the embedded backend stores. By default `data` in the checkout, so
    # that a command uses the same data from any current directory; `data` in the current directory if Roost is
    # installed as a package.
    data_dir: Annotated[Path, BeforeValidator(_check_data_dir)] = Field(
        default_factory=lambda: default_data_dir(CHECKOUT)
    )
    # Addresses to listen on for HTTP and for gRPC, as host:port. Port 0 is a free port that the system chooses.
    http_address: str = "127.0.0.1:8080"
    grpc_address: str = "127.0.0.1:50051"
    # If true, this process shares `grpc_address` with others of the same user, and the operating system spreads the
    # connections over them. The process then also listens on a port of its own, which it registers. The supervisor of
    # `roost up` sets it.
    grpc_address_shared: bool = False
    # The file descriptor of a listening socket that this process inherits and accepts HTTP connections from, together
    # with other processes; -1 if the process itself listens on `http_address`. The supervisor of `roost up` sets it.
    inherited_listener_fd: int = Field(default=-1, ge=-1, le=MAX_FD)
    # Address of the ops port, as host:port. By default the operating system chooses a free port, so that several
    # processes can run on one machine; the process prints the port when it is ready.
    ops_address: str = "127.0.0.1:0"

    # The settings from here to `worker_id` apply to the cluster backend only. The namespace is the prefix of the names
    # of keyspaces, topics and indexes, so that several meshes can share servers.
    namespace: PlainName = "roost"
    # The prefix of keyspace names, if it differs from the namespace. Tests use a new namespace for topics and indexes
    # but share keyspaces, because Cassandra creates tables slowly.
    keyspace_prefix: Annotated[str, AfterValidator(lambda name: name and _plain_name(name))] = ""
    # Addresses of some Cassandra nodes, as host:port, comma-separated; the driver learns the addresses of all other
    # nodes from these.
    cassandra_contact_points: Names = ("127.0.0.1:9042",)
    cassandra_datacenter: str = "datacenter1"
    cassandra_username: str = ""
    cassandra_password: str = Field(default="", repr=False)
    cassandra_replication: int = Field(default=1, ge=1, le=7)
    # If true, a process applies missing migrations of Cassandra when it starts. If false, the process refuses to start
    # while migrations are missing: run `roost migrate` before you start a new release.
    migrate_at_start: bool = True
    # URL of one Redis server, of the Sentinels of a master, or of a Redis Cluster; `platform/redis/url.py` describes
    # the forms.
    redis_url: str = Field(default="redis://127.0.0.1:6379/0", repr=False)
    # Timeout in seconds of connecting to Redis and of each command. If the timeout expires, a call continues without
    # Redis: slower, but with the same result.
    redis_timeout_s: float = Field(default=0.2, ge=0.05, le=5.0)
    # Addresses of some Kafka brokers, as host:port, comma-separated.
    kafka_bootstrap_servers: str = "127.0.0.1:9092"
    # Number of partitions of each topic that Roost creates. At most this many processes of a consumer group get events.
    # Adding partitions later moves keys to other partitions, and once breaks the order of events of one key.
    kafka_partitions: int = Field(default=12, ge=1, le=1_000)
    kafka_replication: int = Field(default=1, ge=1, le=7)
    # URLs of OpenSearch nodes, comma-separated.
    opensearch_urls: str = Field(default="http://127.0.0.1:9200", repr=False)
    # Number of primary shards of each search index; a change takes effect when the index is next rebuilt. One shard
    # holds about 50 million tweets; more shards spread a search over more nodes.
    opensearch_shards: int = Field(default=1, ge=1, le=64)
    # The worker id in Snowflake ids. With -1 the process leases a free worker id from Cassandra; a StatefulSet sets the
    # ordinal of the pod.
    worker_id: int = Field(default=-1, ge=-1, le=1023)

    # Number of followers at which an author becomes a celebrity, whose tweets are pulled on read instead of fanned out
    # on write. 1,000 suits a single-process mesh, 100,000 a cluster.
    celebrity_threshold: int = Field(default=1_000, ge=1, le=MAX_COUNT)
    # How tweets get into home timelines: `push` fans out the tweets of all authors on write, `pull` pulls the tweets of
    # all authors on read, `hybrid` pulls the tweets of celebrities and fans out all others.
    timeline_mode: Literal["hybrid", "push", "pull"] = "hybrid"
    # The margin in seconds: at least the difference between the clocks of two machines plus the time from a row's
    # timestamp to its commit. The default suits a single-process mesh. In a mesh of several processes it must be
    # SEVERAL_PROCESSES_MARGIN_S, which `roost up` sets if you set nothing.
    clock_margin_s: float = Field(default=5.0, ge=0, le=MAX_WAIT_S)
    # Maximum number of warm home timelines in memory. Beyond it the least recently read one is evicted.
    warm_timelines: int = Field(default=100_000, ge=1, le=MAX_COUNT)

    # Cost factor of bcrypt for passwords. With 12 each log-in takes about 240 ms of one core; each increase by 1
    # doubles this time. Tests use 4.
    bcrypt_cost: int = Field(default=12, ge=4, le=16)
    access_token_ttl_s: int = Field(default=300, ge=1, le=3600)
    refresh_token_ttl_s: int = Field(default=30 * 86_400, ge=60, le=MAX_PERIOD_S)
    # Usernames, in upper or lower case, whose access tokens contain the role `admin`. Nobody can sign up with one of
    # these names: name existing accounts, or import the accounts as the operator (UserService.ImportUsers).
    admins: Names = ()

    # `edit_window_s`: number of seconds after its creation in which a tweet can be edited, long enough to correct a
    # text, short enough that most replies still refer to the text that their authors read. `delete_grace_s`: number of
    # seconds after which a deleted tweet is purged, and a deactivated account erased.
    edit_window_s: int = Field(default=1_800, ge=0, le=MAX_PERIOD_S)
    delete_grace_s: int = Field(default=30 * 86_400, ge=0, le=MAX_PERIOD_S)

    rate_limits: bool = True
    reflection: bool = True
    # A file that contains `mesh_secret`; set either this or `mesh_secret`, not both.
    mesh_secret_file: Path | None = None
    # The mesh secret, by which the processes of a mesh authenticate to each other; the same in all of them. If empty, a
    # random one is created at each start, which suffices for a single-process mesh.
    mesh_secret: Secret = Field(default="", repr=False)
    # The addresses of services in other processes, as name=host:port, comma-separated.
    static_peers: PeerAddresses = Field(default_factory=dict)
    # The address (host:port) of the registry service, in which processes look up the addresses of services in other
    # processes. If empty, only the addresses in `static_peers` are used. An address in `static_peers` has priority over
    # the registry.
    registry_address: Address = ""
    # The gRPC address (host:port) that this process registers in the registry, so that other processes call it there.
    # If empty, it is `grpc_address`. Port 0 is replaced by the port that the process listens on.
    advertised_address: Address = ""
    # A file that contains `operator_token`, such as a mounted secret; set either this or `operator_token`, not both. A
    # file is safer, because other programs of the same user can read the variables of a process.
    operator_token_file: Path | None = None
    # The operator token, the same in all processes of a mesh and in the `roost` commands. If empty, a random one is
    # created at each start.
    operator_token: Secret = Field(default="", repr=False)
    # The groups of `roost up`: which services run in one process, and in how many, such as
    # `front=gateway,timeline,tweet,graph,identity,engagement*4;back=fanout,search`. Each service and the gateway is in one
    # group. If empty, the options of `roost up` choose.
    groups: str = ""
    # If true, the process stops when its standard input ends, that is, when its parent process has ended.
    exit_with_parent: bool = False
    # Origins whose pages may call the HTTP API from a browser, such as https://app.example.org, comma-separated. `*`
    # alone allows all origins; empty allows none.
    cors_origins: Origins = ()
    # Number of seconds for which a stopping process reports NOT_SERVING while it still accepts calls, so that load
    # balancers and callers stop sending calls first.
    drain_s: float = Field(default=0.0, ge=0, le=MAX_WAIT_S)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"

    # From here to `admin_calls_per_minute`: the limits of the rate limit classes. A limit applies to each user, or to
    # each client address if the call is anonymous, in the whole mesh: with the cluster backend, Redis counts the calls
    # of all processes. An active client makes about 5 reads a second; this limit allows 25.
    reads_per_minute: int = Field(default=1_500, ge=1, le=MAX_COUNT)
    # Tweets per minute: far more than a person writes, and too few to fill home timelines with the tweets of one
    # author.
    posts_per_minute: int = Field(default=200, ge=1, le=MAX_COUNT)
    # Follows, likes, mutes and so on per minute: enough to follow every user of a list of suggestions.
    actions_per_minute: int = Field(default=400, ge=1, le=MAX_COUNT)
    # Log-ins per minute for each client address. A log-in takes 240 ms of one core. All users of an office may log in
    # from one address.
    logins_per_minute: int = Field(default=100, ge=1, le=MAX_COUNT)
    # Sign-ups per hour for each client address, failed attempts included. The limit is enough for a household or an
    # office; to create accounts in bulk, an attacker needs many addresses.
    sign_ups_per_hour: int = Field(default=30, ge=1, le=MAX_COUNT)
    # Searches per minute: enough for clients that search on every keystroke.
    searches_per_minute: int = Field(default=300, ge=1, le=MAX_COUNT)
    admin_calls_per_minute: int = Field(default=600, ge=1, le=MAX_COUNT)

    # Networks of proxies whose X-Forwarded-For header is trusted, comma-separated, such as 10.0.0.0/8,fd00::/8. If
    # empty, the client address is the address of the connection's peer.
    trusted_proxies: Networks = ()

    @field_validator("mesh_secret", "operator_token", mode="before")
    @classmethod
    def _read_secret(cls, value: object, info: ValidationInfo) -> object:
        """Returns the content of the secret's file if the setting `<name>_file` is set, otherwise `value`.

        Raises ValueError if both are set, or if the file cannot be read or is empty. Pydantic validates fields in the
        order of their declaration, so `<name>_file` must be declared before the secret.
        """
        path: Path | None = info.data.get(f"{info.field_name}_file")
        if path is None:
            return value
        if value:
            raise ValueError(f"is set, and so is {info.field_name}_file; set one of them")
        return _secret_of(path)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources: list[PydanticBaseSettingsSource] = [init_settings, env_settings]
        known = list(settings_cls.model_fields)
        faults = _unknown_variables(known)
        if path := os.environ.get(CONFIG_VARIABLE):
            source = _file_source(settings_cls, Path(path))
            faults += [
                f"{path}: {_not_a_setting(key, known)}"
                for key in source.toml_data
                if key not in settings_cls.model_fields
            ]
            sources.append(source)
        if faults:
            raise ValueError("\n".join(faults))
        return tuple(sources)


def storage_text(settings: Settings) -> str:
    """Returns where a process keeps its data, for people: the backend, and with the cluster backend the namespace."""
    return f"backend {settings.backend}" + (
        f", namespace {settings.namespace}" if settings.backend == "cluster" else ""
    )


def _secret_of(path: Path) -> str:
    """Returns the text of the file. Raises ValueError if it cannot be read or is empty."""
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"cannot be read from {path}: {getattr(error, 'strerror', 'the file is not UTF-8 text')}"
        ) from error
    if not text:
        raise ValueError(f"must be in the file {path}, but the file is empty: write it there")
    return text


def _unknown_variables(known: Sequence[str]) -> list[str]:
    """Returns an error sentence for each ROOST_… variable that is not a setting, because it is probably misspelt."""
    names = {f"{PREFIX}{name.upper()}" for name in known} | _OTHER_VARIABLES
    return [
        _not_a_setting(variable, known)
        for variable, value in sorted(os.environ.items())
        if variable.upper().startswith(PREFIX)
        and variable.upper() not in names
        and not _SERVICE_LINK.fullmatch(variable)
        and not (variable.endswith("_PORT") and _SERVICE_URL.match(value))
    ]


def _file_source(settings_cls: type[BaseSettings], path: Path) -> TomlConfigSettingsSource:
    """Returns the settings in the file. Raises ValueError if it does not exist, cannot be read or is not TOML."""
    if not path.is_file():
        raise ValueError(f"{CONFIG_VARIABLE} names {path}, which is not a file")
    try:
        return TomlConfigSettingsSource(settings_cls, path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error


def _not_a_setting(name: str, known: Sequence[str]) -> str:
    """Returns an error sentence about an unknown setting, with up to MAX_SUGGESTIONS settings that may be meant.

    Suggests the settings that begin with the unknown name (`redis`: `redis_url`, `redis_timeout_s`); if there are none,
    the most similar setting (`timelin_mode`: `timeline_mode`); if there is none, settings that share a word with the
    unknown name (`peers`: `static_peers`). `name` is the name of a variable (with ROOST_) or a key of the file.
    """
    prefix = PREFIX if name.upper().startswith(PREFIX) else ""
    unknown = name[len(prefix) :].lower()
    alike = [other for other in known if other.startswith(f"{unknown}_")] or difflib.get_close_matches(
        unknown, known, 1
    )
    if not alike:
        words = set(unknown.split("_"))
        alike = [other for other in known if not words.isdisjoint(other.split("_"))]
    alike = alike[:MAX_SUGGESTIONS]
    written = " or ".join(prefix + (other.upper() if prefix else other) for other in alike)
    hint = f"did you mean {written}?" if alike else "services/platform/config.py lists the settings."
    return f"{name} is not a setting; {hint}"


def runtime_dir(base: Path | None = None) -> Path:
    """Returns the directory of the run files.

    It is `$XDG_RUNTIME_DIR/roost/run`; without that variable `~/.cache/roost/run`; for a user without a home directory,
    as in containers, `roost-<uid>/run` in the temporary directory. `base` replaces the variable: pass it to get the
    directory of a process that was started with another XDG_RUNTIME_DIR.
    """
    given = base or os.environ.get("XDG_RUNTIME_DIR")
    if given:
        return Path(given) / "roost" / "run"
    try:
        return Path.home() / ".cache" / "roost" / "run"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"roost-{os.getuid()}" / "run"


def process_environment(**settings: str) -> dict[str, str]:
    """Returns the environment for a child process: the environment of this process, in which each item of `settings`
    sets a ROOST_… variable."""
    return {**os.environ, **{f"ROOST_{name.upper()}": value for name, value in settings.items()}}


def child_environment(runtime_base: Path, **settings: str) -> dict[str, str]:
    """Returns the environment for a child process that writes its run files below `runtime_base`.

    It is the environment of this process, with XDG_RUNTIME_DIR and the ROOST_… variables of `settings` set.
    """
    return {**process_environment(**settings), "XDG_RUNTIME_DIR": str(runtime_base)}


def margin_of_several_processes_s(settings: Settings) -> float:
    """Returns the clock margin in seconds of a mesh of several processes that `roost up` starts with these settings:
    `clock_margin_s` if it was set, otherwise SEVERAL_PROCESSES_MARGIN_S."""
    return settings.clock_margin_s if "clock_margin_s" in settings.model_fields_set else SEVERAL_PROCESSES_MARGIN_S
