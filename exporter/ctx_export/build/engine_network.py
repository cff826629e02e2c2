"""The runtime's side of an engine build; runs in the worker process only.

TensorRT and TensorRT-RTX have one Python API, so one code serves both; the module comes by name.
"""

from __future__ import annotations

import importlib
import mmap
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctx_export.build.engine_profiles import PROFILE_NAMES, Limits, ShapeRange, profiles
from ctx_export.core.manifest import TensorInfo
from ctx_export.ops.spec import DOMAIN, PLUGIN_ATTRIBUTES

Tell = Callable[..., None]
_DTYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int64": "INT64",
    "float8e4m3fn": "FP8",
    "int8": "INT8",
}


class BuildError(Exception):
    """The model or the plugin library cannot be built from; the message says why and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the parent process asks for; see EngineRequest."""

    module: str
    model: Path
    engine: Path
    plugin_library: Path
    optimization_level: int | None
    io: tuple[TensorInfo, ...]
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextNode:
    """A ctx node of the graph: its name, operator and the name of its first output."""

    name: str
    operator: str
    output: str


def build(order: Order, tell: Tell) -> dict[str, Any]:
    """Build and write the engine; the fields of EngineInfo that the runtime knows."""
    started = time.monotonic()
    trt: Any = importlib.import_module(order.module)
    nodes = context_nodes(order.model)
    tell(stage="parsing")
    logger = _logger(trt)
    builder = trt.Builder(logger)
    _load_plugins(builder, order.plugin_library, nodes)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)  # owns the weights: alive until the engine is built
    _parse(parser, order.model)
    _check_plugin_layers(trt, network, nodes, order.plugin_library)
    _check_contract(trt, network, order.io)
    ranges = profiles(_inputs(order.io), order.limits)
    tell(stage="building engine")
    config = _configure(trt, builder, ranges, order)
    config.progress_monitor = _monitor(trt, tell)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuildError(f"no engine could be built: {logger.last_error}")
    order.engine.write_bytes(memoryview(engine))
    _check_engine(order.engine, nodes)
    return {
        "version": str(trt.__version__),
        "profiles": _described(ranges),
        "plugin_layers": [node.name for node in nodes],
        "bytes": order.engine.stat().st_size,
        "seconds": round(time.monotonic() - started, 3),
    }


def context_nodes(model: Path) -> list[ContextNode]:
    """The ctx nodes of a model's graph in order; weights stay on disk."""
    import onnx

    graph = onnx.load(str(model), load_external_data=False).graph
    return [
        ContextNode(name=node.name or node.output[0], operator=node.op_type, output=node.output[0])
        for node in graph.node
        if node.domain == DOMAIN
    ]


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        last_error = "the builder gave no reason"

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.WARNING):
                print(f"{severity.name}: {message}", file=sys.stderr, flush=True)
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self.last_error = message

    return Log()


def _load_plugins(builder: Any, library: Path, nodes: Sequence[ContextNode]) -> None:
    """Load the library and check that it has a plugin for every operator of the graph."""
    if not nodes:
        return
    registry = builder.get_plugin_registry()
    if registry.load_library(str(library)) is None:
        raise BuildError(
            f"the plugin library {library} cannot be loaded: build it again with make setup"
        )
    version, namespace = PLUGIN_ATTRIBUTES.values()
    for operator in sorted({node.operator for node in nodes}):
        if registry.get_creator(operator, version, namespace) is None:
            raise BuildError(
                f"the plugin library {library} has no plugin {operator}, version {version}: "
                "build it again with make setup"
            )


def _parse(parser: Any, model: Path) -> None:
    if parser.parse_from_file(str(model)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    reasons = [
        f"{e.desc()} (node {e.node_name() or e.node()}, operator {e.node_operator()})"
        for e in errors
    ]
    raise BuildError(f"the parser refuses {model}: {'; '.join(reasons) or 'no reason given'}")


def _check_plugin_layers(
    trt: Any, network: Any, nodes: Sequence[ContextNode], library: Path
) -> None:
    """Every ctx node is exactly one plugin layer; a node's function body would be no engine of
    ours. The parser keeps output names, which is how a layer is told to be a node's."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    plugins = [layer for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]
    outputs = {layer.get_output(0).name for layer in plugins}
    missing = [f"{node.name} ({node.operator})" for node in nodes if node.output not in outputs]
    if missing or len(plugins) != len(nodes):
        raise BuildError(
            f"{len(plugins)} plugin layers for {len(nodes)} ctx nodes; without a plugin: "
            f"{', '.join(missing) or 'none'}; check that these nodes carry plugin_version "
            f"and plugin_namespace as {library} registers them"
        )


def _check_contract(trt: Any, network: Any, io: Iterable[TensorInfo]) -> None:
    """The network's inputs and outputs are the manifest's, by name and element type."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    found = {tensor.name: tensor.dtype for tensor in (*inputs, *outputs)}
    stated = {tensor.name: getattr(trt.DataType, _DTYPES[tensor.dtype]) for tensor in io}
    if found != stated:
        names = sorted(set(found) ^ set(stated)) or sorted(
            name for name in found if found[name] != stated[name]
        )
        raise BuildError(
            f"the network's inputs and outputs are not those of the manifest: {', '.join(names)}"
        )


def _inputs(io: Iterable[TensorInfo]) -> tuple[TensorInfo, ...]:
    outputs = ("logits", "present_key", "present_value")
    return tuple(tensor for tensor in io if tensor.role not in outputs)


def _configure(
    trt: Any, builder: Any, ranges: Sequence[Sequence[ShapeRange]], order: Order
) -> Any:
    config = builder.create_builder_config()
    # Present caches are written where past ones lie: plugin outputs that alias inputs.
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if order.optimization_level is not None:
        config.builder_optimization_level = order.optimization_level
    for shapes in ranges:
        profile = builder.create_optimization_profile()
        for shape in shapes:
            profile.set_shape(shape.name, shape.minimum, shape.optimum, shape.maximum)
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(f"the builder refuses an optimization profile: {list(shapes)}")
    return config


def _monitor(trt: Any, tell: Tell) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Passes on the outermost phase; the phases inside it come and go."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._total: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._total[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            self._total.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._total:
                tell(done=step + 1, total=self._total[phase_name])
            return True

    return Monitor()


def _check_engine(engine: Path, nodes: Sequence[ContextNode]) -> None:
    """What can be told without a GPU to load it: each plugin's name is among its layers' data."""
    with engine.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for operator in sorted({node.operator for node in nodes}):
            if data.find(operator.encode()) < 0:
                raise BuildError(f"the engine {engine} does not contain the plugin {operator}")


def _described(
    ranges: Sequence[Sequence[ShapeRange]],
) -> dict[str, dict[str, tuple[tuple[int, ...], ...]]]:
    return {
        name: {shape.name: (shape.minimum, shape.optimum, shape.maximum) for shape in shapes}
        for name, shapes in zip(PROFILE_NAMES, ranges, strict=True)
    }
