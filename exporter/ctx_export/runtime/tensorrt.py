"""The backend of engines. TensorRT and TensorRT-RTX have one Python API: one code serves both."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.build.engine_profiles import DECODE, PREFILL
from ctx_export.core.errors import UserError
from ctx_export.core.manifest import ENGINE_NAME, Manifest
from ctx_export.runtime.backend import Floats, Ints, Step
from ctx_export.runtime.contract import Contract
from ctx_export.runtime.cuda import CudaDevice, Device
from ctx_export.runtime.device_cache import DeviceTensor
from ctx_export.runtime.ort_cache import NUMPY_TYPES
from ctx_export.runtime.twin import widen

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}


def open_engine(
    name: str, directory: Path, manifest: Manifest, contract: Contract, batch: int
) -> EngineBackend:
    """The package's engine on this machine's GPU.

    Raises UserError where the package has no engine of runtime `name`, the runtime is missing or
    of another version, or there is no GPU it runs on.
    """
    _check_engine(name, manifest, contract, batch)
    try:
        trt: Any = importlib.import_module(_MODULES[name])
    except ImportError:
        raise UserError(
            f"backend {name} is not installed: pip install 'ctx-export[{_EXTRAS[name]}]', or open "
            "the package with backend ort"
        ) from None
    assert manifest.engine is not None
    built = str(manifest.engine.get("version", ""))
    if built != str(trt.__version__):
        raise UserError(
            f"the engine was built by {name} {built}, installed is {trt.__version__}: export the "
            f"package again, or install {built}"
        )
    from ctx_export.targets._cuda_device import missing_gpu

    if (reason := missing_gpu()) is not None:
        raise UserError(f"backend {name} needs a GPU and {reason}: use backend ort")
    engine = load_engine(trt, directory, manifest)
    return EngineBackend(engine, CudaDevice(), contract, batch)


def _check_engine(name: str, manifest: Manifest, contract: Contract, batch: int) -> None:
    engine = manifest.engine
    if engine is None or engine.get("runtime") != name:
        has = "no engine" if engine is None else f"an engine for {engine.get('runtime')}"
        raise UserError(
            f"the package has {has}: export it with --engine {name}, or open it with backend "
            + ("ort" if engine is None else f"{engine.get('runtime')}")
        )
    if batch > contract.max_batch:
        raise UserError(
            f"batch is {batch}, the engine takes at most {contract.max_batch} sequences: export "
            "with a larger --max-batch"
        )


def load_engine(trt: Any, directory: Path, manifest: Manifest) -> Any:
    """Deserialise `directory`/model.engine after loading the package's plugin library."""
    path = directory / ENGINE_NAME
    if not path.is_file():
        raise UserError(f"{directory} has no {ENGINE_NAME}: export the package again")
    logger = _logger(trt)
    runtime = trt.Runtime(logger)
    if manifest.plugins is not None:
        library = (directory / str(manifest.plugins["file"])).absolute()
        if (
            not library.is_file()
            or runtime.get_plugin_registry().load_library(str(library)) is None
        ):
            raise UserError(
                f"the plugin library {library} cannot be loaded: {logger.last_error}; export the "
                "package again"
            )
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise UserError(
            f"{path} cannot be loaded: {logger.last_error}; export the package again for this GPU"
        )
    return engine


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        last_error = "no reason was given"

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self.last_error = message

    return Log()


class EngineBackend:
    """See `backend.Backend`. One execution context per profile: calls of several tokens run in the
    prefill profile, calls of one token in the decode profile."""

    def __init__(self, engine: Any, device: Device, contract: Contract, batch: int) -> None:
        self._device = device
        self._contract = contract
        self._batch = batch
        self._engine = engine
        self._caches: list[tuple[DeviceTensor, DeviceTensor]] = []
        self._buffers: dict[str, tuple[int, int]] = {}  # name → address, bytes
        self._check_names()
        self._contexts = {profile: self._context(profile) for profile in (PREFILL, DECODE)}

    def chunk_limit(self, slots: int) -> int:
        return self._contract.max_chunk

    def grow(self, capacity: int) -> None:
        if not self._caches:
            self._allocate(capacity)
            return
        grown: list[tuple[DeviceTensor, int]] = []
        try:
            for layer, pair in zip(self._contract.layers, self._caches, strict=True):
                for tensor in pair:
                    if layer.slots is None and tensor.shape[2] < capacity:
                        before = tensor.shape[2]
                        tensor.resize(capacity)
                        grown.append((tensor, before))
        except UserError:
            # The engine takes one number of slots for all layers.
            for tensor, before in grown:
                tensor.resize(before)
            raise

    def step(self, step: Step) -> Floats:
        names = self._contract
        tokens = step.input_ids.shape[1]
        context = self._contexts[DECODE if tokens == 1 else PREFILL]
        inputs = {
            names.input_ids: step.input_ids,
            names.seen: step.seen,
            names.new: step.new,
            names.logit_rows: step.logit_rows,
        }
        if names.rope_length is not None:
            assert step.rope_length is not None
            inputs[names.rope_length] = step.rope_length
        for name, array in inputs.items():
            self._bind_input(context, name, np.ascontiguousarray(array, np.int64))
        self._bind_caches(context)
        shape = (self._batch, step.logit_rows.shape[1], names.vocab)
        logits = np.empty(shape, NUMPY_TYPES[names.logits_dtype])
        address = self._buffer(names.logits, logits.nbytes)
        self._call(context.set_tensor_address(names.logits, address), "logits are not bound")
        self._call(context.execute_async_v3(self._device.stream), "the engine did not run")
        self._device.download(logits, address)
        if names.logits_dtype == "bfloat16":
            return widen(logits)
        return logits.astype(np.float32, copy=False)

    def copy_row(self, source: int, target: int, slots: int) -> None:
        for tensor in self._tensors():
            tensor.copy_row(source, target)

    def zero(self, row: int, slots: int) -> None:
        for tensor in self._tensors():
            tensor.zero(row)

    def write(self, layer: int, slots: Ints, keys: NDArray[Any], values: NDArray[Any]) -> None:
        for tensor, rows in zip(self._caches[layer], (keys, values), strict=True):
            tensor.write(slots, rows)

    def read(self, layer: int) -> tuple[Floats, Floats]:
        key, value = self._caches[layer]
        return key.read(), value.read()

    @property
    def cache_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors())

    def close(self) -> None:
        self._device.synchronize()
        self._contexts.clear()
        self._engine = None
        for tensor in self._tensors():
            tensor.free()
        self._caches.clear()
        for address, _ in self._buffers.values():
            self._device.free(address)
        self._buffers.clear()
        self._device.close()

    def _tensors(self) -> list[DeviceTensor]:
        return [tensor for pair in self._caches for tensor in pair]

    def _allocate(self, capacity: int) -> None:
        dtype = self._contract.cache_dtype
        made: list[DeviceTensor] = []
        try:
            for layer in self._contract.layers:
                slots = capacity if layer.slots is None else layer.slots
                shape = (self._batch, layer.kv_heads, slots, layer.head_dim)
                made += [DeviceTensor(self._device, shape, dtype) for _ in range(2)]
        except UserError:
            for tensor in made:
                tensor.free()
            raise
        self._caches = list(zip(made[::2], made[1::2], strict=True))

    def _context(self, profile: int) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise UserError(
                "the GPU has no memory for the engine's working space: use a GPU with more, or "
                "export with a smaller --max-chunk"
            )
        self._call(
            context.set_optimization_profile_async(profile, self._device.stream),
            f"profile {profile} cannot be chosen",
        )
        self._device.synchronize()
        return context

    def _bind_input(self, context: Any, name: str, array: NDArray[Any]) -> None:
        address = self._buffer(name, array.nbytes)
        self._device.upload(address, array)
        self._call(
            context.set_input_shape(name, tuple(array.shape)),
            f"the engine refuses {name} of shape {list(array.shape)}",
        )
        self._call(context.set_tensor_address(name, address), f"{name} is not bound")

    def _bind_caches(self, context: Any) -> None:
        """Present is written where past lies."""
        for layer, (key, value) in zip(self._contract.layers, self._caches, strict=True):
            for tensor, past, present in (
                (key, layer.past_key, layer.present_key),
                (value, layer.past_value, layer.present_value),
            ):
                self._call(
                    context.set_input_shape(past, tensor.shape),
                    f"the engine refuses {past} of shape {list(tensor.shape)}",
                )
                for name in (past, present):
                    self._call(
                        context.set_tensor_address(name, tensor.address), f"{name} is not bound"
                    )

    def _buffer(self, name: str, nbytes: int) -> int:
        """Device memory for a small tensor, kept from call to call."""
        address, size = self._buffers.get(name, (0, 0))
        if size < nbytes:
            if size:
                self._device.free(self._buffers.pop(name)[0])
            address, size = self._device.malloc(nbytes), nbytes
            self._buffers[name] = (address, size)
        return address

    def _check_names(self) -> None:
        """The engine's inputs and outputs are the manifest's."""
        engine, names = self._engine, self._contract
        found = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        plain = (names.input_ids, names.seen, names.new, names.logit_rows, names.logits)
        stated = {*plain, *([names.rope_length] if names.rope_length else [])}
        for layer in names.layers:
            stated |= {layer.past_key, layer.past_value, layer.present_key, layer.present_value}
        if found != stated:
            different = ", ".join(sorted(found ^ stated))
            raise UserError(
                f"the engine's inputs and outputs are not the manifest's ({different}): export "
                "the package again"
            )

    @staticmethod
    def _call(succeeded: bool, failure: str) -> None:
        if not succeeded:
            raise RuntimeError(f"TensorRT: {failure}")
