"""Settings: `ROOST_…` variables, or a TOML file named by ROOST_CONFIG; the one module that reads the environment.

Every field has a default that is safe for the embedded backend on one machine; where the servers of the cluster backend are
is by default where `scripts/backends up` starts them.
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

from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from services.platform.rpc.client_address import networks

# The folder of the code that this process runs: a checkout, or where packages are installed.
CHECKOUT = Path(__file__).resolve().parents[2]
# What a secret must have of either alphabet to hold 128 bits: four bits for each hexadecimal digit, six for each of base64.
MIN_SECRET_HEX, MIN_SECRET_CHARS = 32, 22
# A random secret of that length has fewer different characters once in ten million; `aaaa…` and its like always have.
MIN_DIFFERENT_CHARS = 8

PREFIX = "ROOST_"
CONFIG_VARIABLE = "ROOST_CONFIG"
# Variables that are no settings: what scripts/test requires, and what the tests draw their random histories from. Meshes that
# tests start inherit them.
_OTHER_VARIABLES = frozenset({CONFIG_VARIABLE, "ROOST_REQUIRE", "ROOST_SEED"})
_PLAIN_NAME = re.compile(r"[a-z][a-z0-9_]{0,23}")
# Kubernetes gives pods the address of each Service of their namespace, so of one called `roost-…`, in variables of these names.
_SERVICE_LINK = re.compile(r"ROOST_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
# One link ends like a setting could: its value tells it.
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")


def _plain_name(name: str) -> str:
    """Returns the name if Cassandra, Kafka and OpenSearch all take it at the beginning of theirs; raises ValueError if not."""
    if not _PLAIN_NAME.fullmatch(name):
        raise ValueError("must be 1 to 24 lower-case letters, digits and underscores, and begin with a letter")
    return name


def default_data_dir(checkout: Path) -> Path:
    """Returns `data` in the checkout; a relative path, from the present folder, if the code is installed as a package."""
    return checkout / "data" if (checkout / "pyproject.toml").is_file() else Path("data")


class Settings(BaseSettings):
    """What can be set. Variables win over the file, arguments of a command over both."""

    # A value that does not fit may be a secret: errors do not repeat it.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True
    )

    backend: Literal["embedded", "cluster"] = "embedded"
    # By default beside the code of a checkout, so that it is the same data from wherever a command is run; else in the present folder.
    data_dir: Path = Field(default_factory=lambda: default_data_dir(CHECKOUT))
    http: str = "127.0.0.1:8080"
    grpc: str = "127.0.0.1:50051"
    # Health and metrics of this process, for machines that watch it. By default any free port, which the ready line names: several
    # processes on one machine need no setting.
    ops: str = "127.0.0.1:0"

    # The cluster backend. The namespace begins the names of keyspaces, topics and indexes, so that several meshes can share servers.
    namespace: Annotated[str, AfterValidator(_plain_name)] = "roost"
    # Begins the names of keyspaces where the namespace does not: tests take fresh topics and indexes, and keep tables, slow to make.
    keyspaces: Annotated[str, AfterValidator(lambda name: name and _plain_name(name))] = ""
    cassandra: Annotated[tuple[str, ...], NoDecode] = ("127.0.0.1:9042",)
    cassandra_datacenter: str = "datacenter1"
    cassandra_username: str = ""
    cassandra_password: str = Field(default="", repr=False)
    cassandra_replication: int = Field(default=1, ge=1, le=7)
    # Off where `roost migrate` runs before a release: then a process refuses to start on a schema that is behind.
    migrate_at_start: bool = True
    redis: str = Field(default="redis://127.0.0.1:6379/0", repr=False)
    # How long Redis may say nothing, also when connecting: beyond it a call goes on without Redis, which is slower but right.
    redis_timeout_s: float = Field(default=0.2, ge=0.05, le=5.0)
    kafka: str = "127.0.0.1:9092"
    # Of each topic that is made: how many processes can share a group out. More can be added, but then order per key breaks once.
    kafka_partitions: int = Field(default=12, ge=1, le=1_000)
    kafka_replication: int = Field(default=1, ge=1, le=7)
    opensearch: str = Field(default="http://127.0.0.1:9200", repr=False)
    # Of each search index, from its next rebuild on. One holds some 50 million tweets; more spread a search over nodes.
    opensearch_shards: int = Field(default=1, ge=1, le=64)
    # The worker part of ids: -1 leases one; a StatefulSet gives its ordinal.
    worker_id: int = Field(default=-1, ge=-1, le=1023)

    # Home timelines. 1,000 suits one process; a cluster takes 100,000.
    celebrity_threshold: int = Field(default=1_000, ge=1)
    timeline_mode: Literal["hybrid", "push", "pull"] = "hybrid"
    # Covers clock skew and the time from a row's stamp to its commit: 5 s in one process, 60 s between processes.
    clock_margin_s: float = Field(default=5.0, ge=0)
    # Warm home timelines kept in memory; the least recently read goes first.
    warm_timelines: int = Field(default=100_000, ge=1)

    # 12 costs about 240 ms of one core for each log-in; tests take 4.
    bcrypt_cost: int = Field(default=12, ge=4, le=16)
    access_token_ttl_s: int = Field(default=300, ge=1, le=3600)
    refresh_token_ttl_s: int = Field(default=30 * 86_400, ge=60)
    # Usernames, in whatever case, whose tokens carry the role `admin`. Nobody can sign up under them: name accounts that exist, or
    # import them as the operator (UserService.ImportUsers).
    admins: Annotated[tuple[str, ...], NoDecode] = ()

    # Long enough to mend a text, short enough that what people answered still stands there.
    edit_window_s: int = Field(default=1_800, ge=0)
    delete_grace_s: int = Field(default=30 * 86_400, ge=0)

    rate_limits: bool = True
    reflection: bool = True
    # A file that holds the mesh's secret.
    mesh_secret_file: Path | None = None
    # Authenticates services to each other over sockets; made anew at each start if it is empty.
    mesh_secret: str = Field(default="", repr=False)
    # name=host:port, comma-separated: where `roost serve` finds the services that it does not run itself.
    peers: Annotated[dict[str, str], NoDecode] = Field(default_factory=dict)
    # host:port of the mesh's registry: where services that run elsewhere are found, unless `peers` names them. Empty: nowhere.
    registry: str = ""
    # What the registry tells others of this process's gRPC address; the port of 0 is replaced by the one that was taken.
    advertise: str = ""
    # A file that holds the operator's token, as mounted secrets do; a variable can be read in the list of a machine's processes.
    operator_token_file: Path | None = None
    # The operator's credentials, the same for every process of a mesh and for the commands; made anew at each start if it is empty.
    operator_token: str = Field(default="", repr=False)
    # Whether the process ends with whoever started it, which is when its standard input ends.
    supervised: bool = False
    # Origins whose pages may call the HTTP API from a browser, such as https://app.example.org; `*` alone for all. Empty: none.
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    # How long watchers get to see NOT_SERVING before a server stops taking calls.
    drain_s: float = Field(default=0.0, ge=0)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"

    # Requests a minute and user (or address), by rate-limit class. A lively client reads 5 times a second, with room for bursts.
    reads_per_minute: int = Field(default=1_500, ge=1)
    # Far above what people write, below what fills a timeline with one author.
    posts_per_minute: int = Field(default=200, ge=1)
    # Follow, like, mute: a walk through a list of suggestions.
    actions_per_minute: int = Field(default=400, ge=1)
    # Each costs 240 ms of a core; an office behind one address may still log in together.
    logins_per_minute: int = Field(default=100, ge=1)
    # Of one address: a household or an office, with names that are taken and passwords that are refused. Accounts by the hundred need
    # addresses by the dozen.
    sign_ups_per_hour: int = Field(default=30, ge=1)
    # Searching while typing.
    searches_per_minute: int = Field(default=300, ge=1)
    admin_calls_per_minute: int = Field(default=600, ge=1)

    # Networks of proxies whose X-Forwarded-For is believed, comma-separated, such as 10.0.0.0/8,fd00::/8. None: the peer is the client.
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()

    @field_validator("mesh_secret", "operator_token", mode="before")
    @classmethod
    def _read_secret(cls, value: object, info: ValidationInfo) -> object:
        """Returns what the secret's file holds, if there is one: it is validated before the secret, for it stands before it."""
        path: Path | None = info.data.get(f"{info.field_name}_file")
        if path is None:
            return value
        if value:
            raise ValueError(f"is set, and so is {info.field_name}_file; set one of them")
        try:
            held = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot be read from {path}: {getattr(error, 'strerror', 'it is no text')}") from error
        if not held:
            raise ValueError(f"is to be read from {path}, which is empty")
        return held

    @field_validator("mesh_secret", "operator_token")
    @classmethod
    def _check_secret(cls, value: str) -> str:
        """Refuses what can be guessed. How random a text is cannot be seen; how much it could hold at most can."""
        if not value:
            return value
        is_hex = all(digit in string.hexdigits for digit in value)
        if len(value) < (MIN_SECRET_HEX if is_hex else MIN_SECRET_CHARS) or len(set(value)) < MIN_DIFFERENT_CHARS:
            raise ValueError(
                f"must be random, of at least {MIN_SECRET_HEX} hexadecimal digits or {MIN_SECRET_CHARS} characters of "
                "base64: a shorter one can be guessed. Make one with: openssl rand -hex 32"
            )
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            networks(value)
        except ValueError as error:
            raise ValueError(f"must be networks such as 10.0.0.0/8,fd00::/8: {error}") from error
        return value

    @field_validator("admins", "cassandra", "cors_origins", "trusted_proxies", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value == ("*",):
            return value
        # Browsers spell origins in lower case, and compare them byte by byte.
        origins = tuple(origin.lower() for origin in value)
        for origin in origins:
            parts = urlsplit(origin)
            if (
                parts.scheme not in ("http", "https")
                or not parts.netloc
                or origin != f"{parts.scheme}://{parts.netloc}"
            ):
                raise ValueError(
                    f"an origin is written as https://app.example.org, without a path, or `*` alone: {origin!r}"
                )
        return origins

    @field_validator("peers", mode="before")
    @classmethod
    def _split_peers(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [pair.split("=", 1) for pair in value.split(",") if pair.strip()]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError("must be written as name=host:port,name=host:port")
        return {name.strip(): target.strip() for name, target in pairs}

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


def _unknown_variables(known: Sequence[str]) -> list[str]:
    """Returns a sentence for each ROOST_… variable that nothing reads: a typing error would be ignored in silence."""
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
    """Returns the settings in the file. Raises ValueError, in words, if it cannot be read or is not TOML."""
    if not path.is_file():
        raise ValueError(f"{CONFIG_VARIABLE} names {path}, which is not a file")
    try:
        return TomlConfigSettingsSource(settings_cls, path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error


def _not_a_setting(name: str, known: Sequence[str]) -> str:
    """Returns the sentence about a name that is none of `known`; in variables the prefix that all share is not compared."""
    prefix = PREFIX if name.upper().startswith(PREFIX) else ""
    alike = difflib.get_close_matches(name[len(prefix) :].lower(), known, 1)
    written = prefix + (alike[0].upper() if prefix else alike[0]) if alike else ""
    hint = f"did you mean {written}?" if alike else "services/platform/config.py lists the settings."
    return f"{name} is not a setting; {hint}"


def runtime_dir(base: Path | None = None) -> Path:
    """Where run files are: `$XDG_RUNTIME_DIR/roost/run`, else `~/.cache/roost/run`, else (a user without a home, as in containers) a
    folder of this user's below the temporary one. `base` stands for the variable of a process to come."""
    given = base or os.environ.get("XDG_RUNTIME_DIR")
    if given:
        return Path(given) / "roost" / "run"
    try:
        return Path.home() / ".cache" / "roost" / "run"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"roost-{os.getuid()}" / "run"


def process_environment(**settings: str) -> dict[str, str]:
    """The environment for a process to come: this one's, with ROOST_… settings changed."""
    return {**os.environ, **{f"ROOST_{name.upper()}": value for name, value in settings.items()}}


def child_environment(runtime_base: Path, **settings: str) -> dict[str, str]:
    """The environment for a process whose run files lie under `runtime_base`: this one's, with ROOST_… settings changed."""
    return {**process_environment(**settings), "XDG_RUNTIME_DIR": str(runtime_base)}
