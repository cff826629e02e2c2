"""What a path holds: a package, a checkpoint or an ONNX file, as a report of plain JSON values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import FILE_NAME

if TYPE_CHECKING:
    from ctx_export.inspection.question import Question

CONFIG_NAME = "config.json"
DEMO = "demo"  # the checkpoint that comes along
_BAKED = "is a package, whose method is baked in"


def inspect_path(path: Path, question: Question | None = None) -> dict[str, Any]:
    """The report on `path`; its `kind` says what was found. `question` is what is asked beyond
    that: a method, runtimes."""
    from ctx_export.inspection.question import METHOD, REFERENCE, RUNTIME, Question

    question = question or Question()
    if str(path) == DEMO and not path.exists():
        from ctx_export import demo

        path = demo.path()
    if not path.exists():
        raise UserError(
            f"{path} does not exist: name a package, a checkpoint directory or an .onnx file"
        )
    if path.is_dir() and (path / FILE_NAME).is_file():
        from ctx_export.inspection.package import inspect_package

        question.refuse(path, dict.fromkeys((METHOD, RUNTIME, REFERENCE), _BAKED))
        return inspect_package(path)
    if path.is_dir() and (path / CONFIG_NAME).is_file():
        from ctx_export.inspection.checkpoint import inspect_checkpoint

        question.refuse(path, {REFERENCE: "is a checkpoint, its own reference"})
        return inspect_checkpoint(path, question)
    if path.is_file() and path.suffix == ".onnx":
        from ctx_export.inspection.onnx_file import inspect_onnx

        question.refuse(path, {RUNTIME: "is a graph, and runtimes are judged by a config.json"})
        return inspect_onnx(path, question)
    raise UserError(
        f"{path} is neither a package (a directory with {FILE_NAME}), nor a checkpoint (one with "
        f"{CONFIG_NAME}), nor an .onnx file: name one that is"
    )
