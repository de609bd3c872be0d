"""Tests the project's rules that no linter checks: sizes, file layout, and references in the documents."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

from services import catalog
from services.platform.log_events import LogEvent
from services.platform.rpc.reasons import Reason

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("services", "gateway_http", "roost_cli", "roost_client")

# What fits on a screen and in a head.
FUNCTION_LINES = 70
CLASS_LINES = 200
CLASS_METHODS = 15
# From this many files of one folder with the same first word on, the word is the name of a folder.
FILES_OF_ONE_PREFIX = 3
COMPOSITION_LINES = 80

# Left for later, in the spellings that people use. Built from halves, so that this file may stand in the tree that it searches.
UNFINISHED = re.compile(
    "|".join((r"\bTO" + "DO", r"\bFIX" + "ME", r"\bX" + "XX", r"\bHA" + "CK", "NotImplemented" + "Error"))
)
# Where somebody's checkout or home lies.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|Users|work|root)/\w")
BINARY = {".png", ".ico", ".woff2", ".db"}

# What others wrote or a program generated.
NOT_OURS = re.compile(r"^protos/(third_party|buf)/|__pycache__/|_pb2|/node_modules/")
SERVICES = ROOT / "services"
TECHNOLOGIES = {"cassandra", "memory", "opensearch", "redis", "sqlite", "tantivy"}
# Everything else below services/ is a service.
NOT_A_SERVICE = {"platform", "shared", "__pycache__"}


def modules(*folders: str) -> Iterator[Path]:
    """Every Python module that people wrote, under the folders."""
    return chain.from_iterable((ROOT / folder).rglob("*.py") for folder in folders if (ROOT / folder).exists())


def service_folders() -> list[Path]:
    return sorted(path for path in SERVICES.iterdir() if path.is_dir() and path.name not in NOT_A_SERVICE)


@cache
def parsed(path: Path) -> ast.Module:
    """Returns the syntax tree of a module; several tests walk each."""
    return ast.parse(path.read_text())


def line_count(path: Path) -> int:
    return len(path.read_text().splitlines())


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_files() -> Iterator[Path]:
    """Every text file of the project, without what others wrote and what is generated."""
    for folder in (".ci", "docs", "k8s", "protos", "scripts", "tests", *PACKAGES):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in BINARY and not NOT_OURS.search(named(path)):
                yield path
    # A work tree of git has a file named .git, which is not part of the project.
    yield from (path for path in ROOT.glob("*.*") if path.is_file() and path.name != ".git")


def imported(node: ast.AST) -> list[str]:
    """Returns the modules that an import statement names, or an empty list for any other node."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def test_functions_are_at_most_max_lines() -> None:
    long = [
        f"{named(path)}:{node.lineno} {node.name}: {lines} lines"
        for path in modules(*PACKAGES, "scripts", "tests")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES
    ]
    assert not long


def classes(*folders: str) -> dict[str, ast.ClassDef]:
    """Returns every class that people wrote under the folders, by the path of its file and its name."""
    return {
        f"{named(path)} {node.name}": node
        for path in modules(*folders)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }


def public_methods(node: ast.ClassDef, known: dict[str, ast.ClassDef]) -> set[str]:
    """Returns the names of the class's public methods, with those of its base classes in `known`: to inherit from the
    other half of a class does not make it smaller."""
    bases = {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases} - {node.name}
    inherited = [public_methods(known[base], known) for base in bases & known.keys()]
    functions = (one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))
    return {one.name for one in functions if not one.name.startswith("_")}.union(*inherited)


def mirrored_methods() -> set[str]:
    """Returns the names under which the SDK offers RPCs: `create_tweet` for CreateTweet, `followers` for ListFollowers."""
    protos = (path.read_text() for path in (ROOT / "protos" / "roost").rglob("*.proto"))
    rpcs = chain.from_iterable(re.findall(r"^  rpc (\w+)\(", text, re.MULTILINE) for text in protos)
    return {re.sub(r"(?<=.)([A-Z])", r"_\1", rpc).lower().removeprefix("list_") for rpc in rpcs}


def large_classes() -> set[str]:
    """Returns the classes above CLASS_LINES or CLASS_METHODS, by path and name. How many methods a servicer has, or the
    SDK's client, is up to the protos."""
    found = classes(*PACKAGES, "scripts")
    uses = Counter(node.name for node in found.values())
    by_name = {node.name: node for node in found.values() if uses[node.name] == 1}
    large = set()
    for place, node in found.items():
        servicer = any(ast.unparse(base).endswith("Servicer") for base in node.bases)
        methods = set() if servicer else public_methods(node, by_name)
        if place.startswith("roost_client/"):
            methods -= mirrored_methods()
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > CLASS_LINES or len(methods) > CLASS_METHODS:
            large.add(place)
    return large


def test_classes_are_small() -> None:
    assert not large_classes(), "cut it into classes of one purpose each, which know each other by composition"


def test_public_methods_include_those_of_base_classes() -> None:
    tree = ast.parse("class Half:\n def a(self): ...\nclass Whole(Half[int]):\n def b(self): ...\n def _c(self): ...")
    known = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    assert public_methods(known["Whole"], known) == {"a", "b"}


def test_files_of_one_prefix_are_a_folder() -> None:
    prefixed = Counter(
        f"{named(path.parent)}/{path.stem.partition('_')[0]}"
        for path in modules(*PACKAGES, "scripts")
        if not path.stem.startswith("_")
    )
    assert not [prefix for prefix, files in prefixed.items() if files >= FILES_OF_ONE_PREFIX]


def test_source_has_no_todo() -> None:
    found = [
        f"{named(path)}:{number}: {line.strip()}"
        for path in tree_files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert not found


def test_files_contain_no_machine_name() -> None:
    found = [
        f"{named(path)}:{number}: {line.strip()}"
        for path in tree_files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found


def test_code_refers_to_existing_documents_only() -> None:
    documents = {path.name for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]}
    found = [
        f"{named(path)}: {name}"
        for path in tree_files()
        if path.parts[len(ROOT.parts)] in (*PACKAGES, "protos", "scripts")
        for name in re.findall(r"([\w-]+\.md)\b|\b(design §)", path.read_text())
        if not documents & set(name)
    ]
    assert not found


def test_platform_imports_no_service_stub() -> None:
    """The platform must serve any set of services. So of the contract it may import only what belongs to none of them:

    `options` (the policies that its interceptors enforce), `batch` (calls between processes), `registry` (how processes find each other)
    and `event` (the envelope of every record in the log).
    """
    allowed = {"options", "batch", "registry", "event"}
    found = [
        f"{named(path)}:{node.lineno}: {module}"
        for path in modules("services/platform")
        for node in ast.walk(parsed(path))
        for module in imported(node)
        if module.startswith("roost.") and module.split(".")[1] not in allowed
    ]
    assert not found


def test_error_reasons_are_declared_and_used() -> None:
    """Two spellings of one reason are two things to a client. mypy checks what is raised; here is what it lets pass."""
    used: set[str] = set()
    spelt: list[str] = []
    for path in modules("services", "gateway_http", "roost_cli"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Reason":
                used.add(node.attr)
            texts: list[ast.expr] = []
            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr == "reason":
                texts = node.comparators
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("RoostError"):
                texts = [*node.args[2:], *(one.value for one in node.keywords if one.arg == "reason")]
            spelt += [
                f"{named(path)}:{one.lineno}: {one.value}"
                for one in texts
                if isinstance(one, ast.Constant) and isinstance(one.value, str) and one.value
            ]
    assert not spelt, "say Reason.X"
    assert used == set(Reason.__members__)


LOG_LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
# Regular participles, and the irregular ones in use.
PARTICIPLE = re.compile(r"[a-z_]+\.([a-z]+_)*([a-z]+ed|built|kept|lost|sought|taken)")


def log_calls(tree: ast.Module) -> list[ast.Call]:
    """Returns the calls of the loggers that a module makes at its top."""
    loggers = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("structlog.get_logger(")
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    levels = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in loggers
        and node.attr in LOG_LEVELS
    ]
    called = {node.func: node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    # A level that is passed on or assigned, such as `write = log.info if … else log.debug`, would hide the event.
    assert not [ast.unparse(level) for level in levels if level not in called], "call the logger directly"
    return [called[level] for level in levels]


def test_every_log_call_names_a_declared_event() -> None:
    used: set[str] = set()
    bare: list[str] = []
    for path in modules(*PACKAGES):
        for call in log_calls(ast.parse(path.read_text())):
            event = ast.unparse(call.args[0]) if call.args else ""
            if event.startswith("LogEvent."):
                used.add(event.removeprefix("LogEvent."))
            else:
                bare.append(f"{named(path)}:{call.lineno}: {event}")
    assert not bare, "say LogEvent.X"
    assert used == set(LogEvent.__members__)


def test_log_events_are_named_by_noun_and_participle() -> None:
    assert not [event.value for event in LogEvent if not PARTICIPLE.fullmatch(event)]
    assert not [name for name, event in LogEvent.__members__.items() if name != event.replace(".", "_").upper()]


def test_registry_lists_every_service_folder() -> None:
    assert sorted(catalog.SERVICES) == [folder.name for folder in service_folders()]


@pytest.mark.parametrize("folder", service_folders(), ids=lambda folder: folder.name)
def test_services_have_same_files(folder: Path) -> None:
    server = folder / "server.py"
    described = ast.parse((folder / "__init__.py").read_text())
    assert ast.get_docstring(described), "__init__.py says what the service owns"
    assert len(described.body) == 1, "and holds nothing else"
    assert line_count(server) <= COMPOSITION_LINES, "a composition root only composes"
    servicers = [path for path in folder.glob("*.py") if path.name == "service.py" or path.name.endswith("_service.py")]
    assert servicers, "the rules are RPC methods in service.py, or in one <name>_service.py for each gRPC service"
    if (folder / "store").exists():
        adapters = {path.stem for path in (folder / "store").iterdir()} & TECHNOLOGIES
        assert adapters, f"adapters are modules or folders named by technology: {', '.join(sorted(TECHNOLOGIES))}"
        assert "Protocol" in (folder / "store" / "__init__.py").read_text(), "the port is a Protocol"


@pytest.mark.parametrize("folder", service_folders(), ids=lambda folder: folder.name)
def test_servicer_methods_declare_the_message_that_they_return(folder: Path) -> None:
    """mypy compares it with the proto: the response, or its wire type. It compares nothing with Any."""
    methods = [
        (path, node)
        for path in [*folder.glob("service.py"), *folder.glob("*_service.py")]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0].isupper()
    ]
    assert methods
    untyped = {"", "Any", "object", "Message"}
    assert not [
        f"{named(path)}:{node.lineno} {node.name}"
        for path, node in methods
        if untyped & set(re.findall(r"\w+|^$", ast.unparse(node.returns) if node.returns else ""))
    ]


@pytest.mark.parametrize("folder", service_folders(), ids=lambda folder: folder.name)
def test_services_have_protos_of_their_name(folder: Path) -> None:
    assert list((ROOT / "protos" / "roost" / folder.name / "v1").glob("*.proto"))


def test_vendored_protos_carry_their_licence() -> None:
    third_party = ROOT / "protos" / "third_party"
    for proto in third_party.rglob("*.proto"):
        top = third_party / proto.relative_to(third_party).parts[0]
        assert (top / "LICENSE").exists(), f"{named(proto)} came without its licence"


def test_licence_is_full_apache_text() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert all(f"\n   {number}. " in text for number in range(1, 10))


# `tests/unit/x.py`, `tests/unit/x.py::test_y`, `scripts/up` in backquotes, and [links](to/files.md).
NAMED_FILE = re.compile(
    r"`((?:tests|scripts|docs|protos|services|gateway_http|roost_cli|roost_client|\.ci)/[\w./*-]*)(?:::(\w+))?[^`]*`"
)
LINK = re.compile(r"\]\(((?!https?:|#)[^)#]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize(
    "document", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]), ids=lambda path: path.name
)
def test_documents_reference_existing_files_and_tests(document: Path) -> None:
    text = document.read_text()
    missing = [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    for path, test in NAMED_FILE.findall(text):
        files = list(ROOT.glob(path.rstrip("/")))
        if not files:
            missing.append(path)
        elif test and f"def {test}(" not in files[0].read_text():
            missing.append(f"{path}::{test}")
    assert not missing


def test_requirement_rows_have_evidence() -> None:
    rows = [
        line.split("|")[1:-1]
        for line in (ROOT / "docs" / "requirements.md").read_text().splitlines()
        if re.match(r"\| *\d", line)
    ]
    assert rows
    assert not [row[0].strip() for row in rows if "`" not in row[-1]], "the last column names a test or a command"
