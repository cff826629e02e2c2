"""The child process that builds one engine: `python -m ctx_export.build.engine_worker ORDER.json`.

It answers on stdout in JSON lines, {"stage": …}, {"done": …, "total": …} and at last
{"result": …}; whatever the runtime prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from ctx_export.build.engine_network import BuildError, Order, build
from ctx_export.build.engine_profiles import Limits
from ctx_export.core.manifest import TensorInfo


def main() -> None:
    # The descriptor is copied before the runtime loads, which may print to stdout.
    with os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1) as channel:
        os.dup2(2, 1)

        def tell(**message: Any) -> None:
            channel.write(json.dumps(message) + "\n")

        try:
            result = build(read_order(Path(sys.argv[1])), tell)
        except BuildError as error:
            result = {"error": str(error)}
        except OSError as error:
            if error.errno is None:
                raise
            result = {"os_error": [error.errno, error.strerror, str(error.filename or "")]}
        tell(result=result)


def read_order(path: Path) -> Order:
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["limits"] = Limits(**raw["limits"])
    raw["io"] = tuple(TensorInfo(**{**t, "shape": tuple(t["shape"])}) for t in raw["io"])
    for name in ("model", "engine", "plugin_library"):
        raw[name] = Path(raw[name])
    return Order(**raw)


if __name__ == "__main__":
    main()
