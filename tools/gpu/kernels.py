"""ctypes binding of the kernels' C interface; its structs are read from ctx_kernels.h itself."""

from __future__ import annotations

import ctypes
import re
from functools import cache
from pathlib import Path
from typing import Any

HEADER = Path(__file__).resolve().parents[2] / "plugins/include/ctx_plugins/ctx_kernels.h"
DATA_TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}  # CtxDataType
CACHE_TYPES = {"same": 0, "float8": 1, "int8": 2}  # CtxCacheType
ROTATION_ON_WRITE = 1  # CtxRotation
_WORKSPACE = "ctxSinkWindowAttentionWorkspace"
_SCALARS: dict[str, Any] = {
    "uint64_t": ctypes.c_uint64,
    "int64_t": ctypes.c_int64,
    "int32_t": ctypes.c_int32,
    "float": ctypes.c_float,
}
_STRUCT = re.compile(r"typedef struct (\w+)\n\{\n(.*?)\n\} \1;", re.DOTALL)
_FIELD = re.compile(r"^\s*([\w ]+?)\s*(\*?) ?(\w+);", re.MULTILINE)


class KernelError(RuntimeError):
    """A status other than success, with the library's message."""


@cache
def struct(name: str) -> Any:
    """The ctypes structure of the header's struct `name`; a pointer of any kind is an address."""
    bodies = dict(_STRUCT.findall(HEADER.read_text(encoding="utf-8")))
    fields = [
        (field, ctypes.c_void_p if star else _SCALARS[kind] if kind in _SCALARS else struct(kind))
        for kind, star, field in _FIELD.findall(bodies[name])
    ]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def parameters(name: str, **values: Any) -> Any:
    """A struct of the header with its size set; what is not given is 0 or null."""
    kind = struct(name)
    return kind(size=ctypes.sizeof(kind), **values)


class Kernels:
    """The launchers of libctx_plugins.so, or of libctx_kernels_host.so on host memory."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.ctxLastErrorMessage.restype = ctypes.c_char_p

    def status(self, function: str, params: Any, stream: int | None = None) -> tuple[int, str]:
        """Status of a launch and, unless it is 0, the library's message."""
        status = int(getattr(self._library, function)(ctypes.byref(params), _address(stream)))
        return status, self._library.ctxLastErrorMessage().decode() if status else ""

    def launch(self, function: str, params: Any, stream: int | None = None) -> None:
        """Enqueue on `stream`. Raises KernelError where the library refuses."""
        status, text = self.status(function, params, stream)
        if status:
            raise KernelError(text)

    @property
    def has_workspace(self) -> bool:
        """Whether the library knows the fields from cacheType on, which came with workspaces."""
        return hasattr(self._library, _WORKSPACE)

    def workspace(self, params: Any) -> int:
        """Bytes with which the attention of `params` may split its keys; 0 if it never does."""
        if not self.has_workspace:
            return 0
        operator = type(params).__name__.removeprefix("Ctx").removesuffix("Params")
        function = getattr(self._library, f"ctx{operator}Workspace")
        function.restype = ctypes.c_uint64
        return int(function(ctypes.byref(params)))


def _address(stream: int | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(stream)
