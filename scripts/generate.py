"""Generates the Python stubs from `protos/`. The build runs it as a hatch hook; run it by hand after changing a proto.

The stubs are written to the directories of their protos, below the import root `protos/`; git ignores them. The stubs
of `buf/validate` are generated too, because protovalidate does not contain them. Those of `google/api` come from the
package googleapis-common-protos.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
VALIDATE = "buf/validate/validate.proto"

# Matches a message that declares its wire type: `message X { option (roost.options.v1.wire_type) = "<package>.<message>";`.
WIRE_TYPE = re.compile(r'message (\w+) \{\s+option \(roost\.options\.v1\.wire_type\) = "([\w.]+)";')


def generate() -> int:
    """Generates every stub and returns the number of protos. Raises RuntimeError if protoc reports an error."""
    import grpc_tools
    from grpc_tools import protoc

    well_known = Path(grpc_tools.__file__).parent / "_proto"
    own = sorted(path.relative_to(PROTOS).as_posix() for path in (PROTOS / "roost").rglob("*.proto"))
    includes = [f"-I{PROTOS}", f"-I{PROTOS / 'third_party'}", f"-I{well_known}"]
    # The plugins of mypy-protobuf are in the interpreter's directory, which is not on PATH in an isolated build.
    beside = Path(sys.executable).parent
    plugins = [
        f"--plugin={name}={beside / name}"
        for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
        if (beside / name).exists()
    ]
    outputs = [f"--python_out={PROTOS}", f"--mypy_out=quiet:{PROTOS}"]
    services = [f"--grpc_python_out={PROTOS}", f"--mypy_grpc_out=quiet,only_async:{PROTOS}"]
    for arguments, files in ((outputs, [VALIDATE]), ([*outputs, *services], own)):
        if protoc.main(["protoc", *includes, *plugins, *arguments, *files]) != 0:
            raise RuntimeError("protoc refused the protos: its message stands above")
    for name in own:
        _adapt_types(PROTOS / name)
    return len(own)


def _adapt_types(proto: Path) -> None:
    """Adapts the generated types of the servicers in one proto.

    Methods are no longer abstract, because a missing one returns UNIMPLEMENTED. A method whose response message has a
    wire type may return the wire type.
    """
    stub_types = proto.with_name(f"{proto.stem}_pb2_grpc.pyi")
    if not stub_types.exists():
        return
    text = stub_types.read_text().replace("    @_abc_1.abstractmethod\n", "")
    for message, full_name in WIRE_TYPE.findall(proto.read_text()):
        package, _, name = full_name.rpartition(".")
        module = f"{package}.{_file_of(package, name)}_pb2"
        text = re.sub(rf"(\) -> _abc\.Awaitable\[\w+\.{message})\]:", rf"\1 | _wire_{name}.{name}]:", text)
        line = f"import {module} as _wire_{name}\n"
        if line not in text:
            text = text.replace(
                "from collections import abc as _abc\n", f"from collections import abc as _abc\n{line}", 1
            )
    stub_types.write_text(text)


def _file_of(package: str, message: str) -> str:
    for path in (PROTOS / package.replace(".", "/")).glob("*.proto"):
        if re.search(rf"^message {message} ", path.read_text(), re.MULTILINE):
            return path.stem
    raise RuntimeError(f"an option wire_type names {package}.{message}, which no proto defines")


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # Run by hand, outside a build.
    pass
else:

    class GenerateStubs(BuildHookInterface):  # type: ignore[type-arg,misc]
        """The build hook of this project. hatchling finds it by its base class."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Generates the stubs; hatchling calls it before it collects the files of the package."""
            generate()


if __name__ == "__main__":
    sys.stdout.write(f"{generate()} protos generated\n")
