"""Child process of the plugin tests: builds one engine per case with TensorRT-RTX and prints JSON.

Run as `engine_builder.py LIBRARY CASES` with a directory on LD_LIBRARY_PATH that holds
libtensorrt_rtx.so; a crash of the builder then ends this process, not the tests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt


class Recorder(trt.ILogger):
    """Keeps errors for the report."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, msg: str) -> None:
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.errors.append(msg)


def build(builder: Any, recorder: Recorder, case: dict[str, Any]) -> dict[str, Any]:
    """Parses `case["model"]` and builds it with its optimization profiles and preview features."""
    recorder.errors.clear()
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, recorder)
    result: dict[str, Any] = {"parsed": parser.parse(Path(case["model"]).read_bytes())}
    if result["parsed"]:
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        result["layers"] = [layer.type.name for layer in layers]
        result["outputs"] = [
            [list(network.get_output(i).shape), network.get_output(i).dtype.name]
            for i in range(network.num_outputs)
        ]
        config = builder.create_builder_config()
        if case["alias"]:
            config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
        for shapes in case["profiles"]:
            profile = builder.create_optimization_profile()
            for name, (low, usual, high) in shapes.items():
                profile.set_shape(name, low, usual, high)
            config.add_optimization_profile(profile)
        engine = builder.build_serialized_network(network, config)
        result["engine_bytes"] = 0 if engine is None else engine.nbytes
    result["errors"] = list(recorder.errors) + [
        parser.get_error(i).desc() for i in range(parser.num_errors)
    ]
    return result


def main() -> None:
    library, cases = sys.argv[1:]
    recorder = Recorder()
    builder = trt.Builder(recorder)
    builder.get_plugin_registry().load_library(library)
    loading = list(recorder.errors)
    results = [build(builder, recorder, case) for case in json.loads(Path(cases).read_text())]
    print(json.dumps({"loading": loading, "results": results}))


if __name__ == "__main__":
    main()
