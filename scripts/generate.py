"""Generates the Python stubs of the protos in `protos/`. The build of the package runs it as a hatch hook. Run it by
hand after a change of a proto.

The stubs are written next to their protos, and git ignores them. The stubs of `buf/validate` are generated too, because
the package protovalidate does not contain them. The stubs of `google/api` are in the package googleapis-common-protos.
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
    """Generates all stubs and returns the number of protos. Raises RuntimeError if protoc reports an error."""
    import grpc_tools
    from grpc_tools import protoc

    well_known = Path(grpc_tools.__file__).parent / "_proto"
    own = sorted(path.relative_to(PROTOS).as_posix() for path in (PROTOS / "roost").rglob("*.proto"))
    includes = [f"-I{PROTOS}", f"-I{PROTOS / 'third_party'}", f"-I{well_known}"]
    # The plugins of mypy-protobuf are in the directory of the Python interpreter, which is not on PATH during a build.
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
            raise RuntimeError("protoc failed: correct the protos as its message above says")
    for name in own:
        _adapt_types(PROTOS / name)
    return len(own)


def _adapt_types(proto: Path) -> None:
    """Changes the generated type annotations of the servicers in one proto.

    The methods are not abstract afterwards, because gRPC implements a missing method by returning UNIMPLEMENTED. If the
    response message of a method has a wire type, the method may return the wire type.
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
            """Generates the stubs. hatchling calls it before it collects the files of the package."""
            generate()


if __name__ == "__main__":
    sys.stdout.write(f"{generate()} protos generated\n")
