"""Writes a new service from the templates in `scripts/skeleton/`, adds it to the catalog and to the tests of routes,
and generates stubs and manifests. `scripts/new-service NAME` calls it, first with `--check`, which needs only the
standard library.

The templates are a service named `example` with one RPC, which stores and returns a note. It works on both backends and
has tests, so a developer starts from a service that is complete and correct.
"""

from __future__ import annotations

import keyword
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKELETON = ROOT / "scripts" / "skeleton"
SERVICES = ROOT / "services"
PROTOS = ROOT / "protos" / "roost"
CATALOG = ROOT / "services" / "catalog.py"
ROUTES = ROOT / "tests" / "functional" / "test_routes.py"

# Names that a service cannot have, because packages, processes or callers have them.
TAKEN = {"batch", "catalog", "event", "example", "gateway", "operator", "options", "platform", "service", "shared"}
# First parts of the names of Protobuf packages. In a package `roost.buf.v1` protoc would look for `buf.validate` below
# `roost.buf`, and report that it does not exist.
PACKAGES = {"buf", "google", "roost"}
# `log.db` in the data directory is the event log, and `mesh` is the keyspace with the secrets of all services.
STORES = {"log", "mesh"}
# Words that YAML reads as a boolean or as null. The manifests contain the name without quotes.
YAML_WORDS = {"false", "null", "off", "true", "yes"}
# Packages in `services` that are not services.
NO_SERVICES = {"platform", "shared"}
# Minimum and maximum length of a name, which is also a host name, a folder and a column in the output of `roost`.
LENGTHS = (3, 20)

# What is run after the service is written, in this order.
GENERATORS = ("scripts/generate.py", "scripts/manifests.py")
# The exit code of a program that Ctrl-C ended.
INTERRUPTED = 130

RECIPE = '    Recipe("/roost.example.v1.ExampleService/SetNote", body={"text": "hello"}, shows="text"),\n'
USAGE = "usage: scripts/new-service NAME    (lowercase letters, in the singular, such as `poll`)"
NEXT = """
It works: SetNote answers at PUT /v1/{name}/note. Next:
  1. Write your RPCs in place of SetNote: protos/roost/{name}/v1/{name}_service.proto, services/{name}/service.py, the
     store and the tests, and one Recipe a route in tests/functional/test_routes.py.
  2. Say in services/{name}/__init__.py what the service owns, calls, publishes and consumes.
  3. Give it CPU, memory and replicas in k8s/needs.toml if the defaults do not fit.
  4. Name it in README.md, CHANGELOG.md, docs/architecture.md and docs/requirements.md.
  5. Run `{generate}`, `{manifests}`, scripts/check and scripts/test.
docs/add-a-service.md says more.

{undo}"""
UNDO = """\
To undo it, look at `git status` first, because this also discards your own changes of the files that it names:
  git checkout -- {changed} && rm -r {added}"""


class Refused(Exception):
    """The service cannot be written, and no file was changed. The message says why and what to do."""


def refuse_bad_name(name: str) -> None:
    """Raises Refused if the name is malformed, is reserved, or is that of an existing service in singular or plural."""
    shortest, longest = LENGTHS
    if not re.fullmatch(f"[a-z]{{{shortest},{longest}}}", name):
        raise Refused(
            f"{name!r} cannot be the name of a service: it needs {shortest} to {longest} lowercase letters and nothing "
            "else, such as `poll`"
        )
    if keyword.iskeyword(name) or keyword.issoftkeyword(name) or name in TAKEN | PACKAGES | STORES | YAML_WORDS:
        raise Refused(f"`{name}` has another meaning in Roost, Python, Protobuf or YAML: choose another name")
    if (SERVICES / name).exists() or (PROTOS / name).exists():
        raise Refused(f"there is already a service `{name}`: choose another name")
    for other in services():
        if name in plurals(other) or other in plurals(name):
            raise Refused(f"there is a service `{other}` already; names are singular: choose another name")


def services() -> list[str]:
    """Returns the names of the existing services in alphabetical order."""
    names = (path.parent.name for path in SERVICES.glob("*/__init__.py"))
    return sorted(name for name in names if name not in NO_SERVICES)


def plurals(word: str) -> set[str]:
    """Returns the possible plurals of a word: with the endings `s`, `es`, and `ies` in place of a final `y`."""
    return {f"{word}s", f"{word}es", f"{word.removesuffix('y')}ies"}


def named_for(text: str, name: str) -> str:
    """Returns the text with `example` replaced by the name of the service. `text` is a template or a path."""
    return text.replace("example", name).replace("Example", name.capitalize())


def skeleton(name: str) -> dict[Path, str]:
    """Returns the text of every new file by path. Raises Refused if one of the files exists already."""
    files = {}
    for template in sorted(SKELETON.rglob("*.tmpl")):
        path = ROOT / named_for(template.relative_to(SKELETON).with_suffix("").as_posix(), name)
        if path.exists():
            raise Refused(f"{path.relative_to(ROOT)} exists: move it away, or choose another name")
        files[path] = named_for(template.read_text(), name)
    return files


def entries(name: str) -> dict[Path, str]:
    """Returns the new text of the catalog and of the tests of routes, by path. Raises Refused if the list to extend is
    not found."""
    return {
        CATALOG: _before_end_of(CATALOG, "NAMES = (\n", ")\n", f'    "{name}",\n'),
        ROUTES: _before_end_of(ROUTES, "RECIPES = [\n", "]\n", named_for(RECIPE, name)),
    }


def _before_end_of(path: Path, begin: str, end: str, line: str) -> str:
    before, found, rest = path.read_text().partition(f"\n{begin}")
    items, closed, after = rest.partition(f"\n{end}")
    if not found or not closed:
        raise Refused(f"{path.relative_to(ROOT)} has no list that begins with {begin.strip()!r}: mend it first")
    return f"{before}{found}{items}\n{line}{end}{after}"


def texts_of(name: str) -> dict[Path, str]:
    """Returns the text of every new and changed file by path. Raises Refused if the service cannot be written."""
    refuse_bad_name(name)
    return skeleton(name) | entries(name)


def write(name: str) -> list[Path]:
    """Writes the files of the service and returns the paths of the new and changed ones. Writes nothing if it raises.

    Raises Refused if the service cannot be written, OSError if a file cannot be written, and KeyboardInterrupt.
    """
    texts = texts_of(name)
    before = {path: path.read_text() if path.exists() else None for path in texts}
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        _sort_imports(texts)
    except BaseException:
        _restore(before)
        raise
    return list(texts)


def _sort_imports(paths: Iterable[Path]) -> None:
    """Sorts the imports of the Python files among these, because their order depends on the name of the service. Raises
    CalledProcessError if ruff fails."""
    files = [path for path in paths if path.suffix == ".py"]
    sorting = [sys.executable, "-m", "ruff", "check", "--quiet", "--no-cache", "--select", "I", "--fix", *files]
    subprocess.run(sorting, check=True, cwd=ROOT)


def _restore(before: Mapping[Path, str | None]) -> None:
    """Writes the texts back. Removes the files that have none, and their folders if these are empty then."""
    for path, text in before.items():
        if text is not None:
            path.write_text(text)
            continue
        path.unlink(missing_ok=True)
        for folder in path.parents:
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:  # It is not empty.
                break


def undo_paths(name: str) -> dict[str, str]:
    """Returns the paths that undo the service if they are checked out again (`changed`) or removed (`added`), relative
    to the checkout and space-separated."""
    changed = [path.relative_to(ROOT).as_posix() for path in (CATALOG, ROUTES)]
    tops = ("protos/roost", "services", "tests/unit/services", "tests/contract", "k8s/services")
    return {"changed": " ".join([*changed, "k8s/services"]), "added": " ".join(f"{top}/{name}" for top in tops)}


def main(arguments: list[str]) -> int:
    """Writes the service that the arguments name, generates stubs and manifests, and prints the paths of new and
    changed files. Returns the exit status.

    If the first argument is `--check`, only checks that the service can be written, and writes nothing.
    """
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    check = arguments[:1] == ["--check"]
    names = arguments[1:] if check else arguments
    if len(names) != 1 or names[0].startswith("-"):
        print(USAGE, file=sys.stderr)
        return 2
    (name,) = names
    try:
        if check:
            texts_of(name)
            return 0
        written = write(name)
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"nothing was written, because {error.filename} cannot be: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return INTERRUPTED
    for path in written:
        print(f"written: {path.relative_to(ROOT)}", flush=True)
    return generated(name)


def generated(name: str) -> int:
    """Generates the stubs and manifests of a service that is written, and prints what to do next. Returns the exit code."""
    generate, manifests = (f".venv/bin/python {script}" for script in GENERATORS)
    undo = UNDO.format(**undo_paths(name))
    for script in GENERATORS:
        try:
            failed = subprocess.run([sys.executable, script], cwd=ROOT, check=False).returncode
        except KeyboardInterrupt:
            print(f"interrupted: `{name}` is written; run `{generate}` and `{manifests}`.\n{undo}", file=sys.stderr)
            return INTERRUPTED
        if failed:
            print(
                f"{script} failed: mend what it says above, then run `{generate}` and `{manifests}`.\n{undo}",
                file=sys.stderr,
            )
            return 1
    print(NEXT.format(name=name, generate=generate, manifests=manifests, undo=undo))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
