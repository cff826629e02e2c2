"""The backend of engines. TensorRT and TensorRT-RTX have one Python API: one code serves both."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.build.engine_profiles import DECODE, PREFILL
from ctx_export.core.errors import UserError
from ctx_export.core.manifest import Manifest
from ctx_export.runtime.backend import Floats, Ints, Step
from ctx_export.runtime.cache_codec import NUMPY_TYPES
from ctx_export.runtime.contract import Contract
from ctx_export.runtime.cuda import CudaDevice, Device
from ctx_export.runtime.device_cache import DeviceTensor
from ctx_export.runtime.device_inputs import DeviceInputs
from ctx_export.runtime.engine_file import LoadedEngine, load_engine, reason
from ctx_export.runtime.growth import grow_all
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
    trt = _runtime_module(name)
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
    loaded = load_engine(trt, directory, manifest)
    return EngineBackend(loaded, CudaDevice(), contract, batch)


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


def _runtime_module(name: str) -> Any:
    """The Python module of runtime `name`."""
    module = _MODULES[name]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(
            f"backend {name} is not installed: pip install 'ctx-export[{_EXTRAS[name]}]', or open "
            "the package with backend ort"
        ) from None
    except (ImportError, OSError) as error:  # a shared library of it is missing
        raise UserError(
            f"backend {name} cannot be loaded: {error}; install {module} again, or open the "
            "package with backend ort"
        ) from None


class EngineBackend:
    """See `backend.Backend`. One execution context per profile: calls of several tokens run in the
    prefill profile, calls of one token in the decode profile.

    The backend owns `device` from here on, also where it raises.
    """

    def __init__(
        self, loaded: LoadedEngine, device: Device, contract: Contract, batch: int
    ) -> None:
        self._device = device
        self._contract = contract
        self._batch = batch
        self._loaded: LoadedEngine | None = loaded
        self._errors = loaded.errors
        self._contexts: dict[int, Any] = {}
        self._caches: list[tuple[DeviceTensor, DeviceTensor]] = []
        self._inputs: DeviceInputs | None = None
        self._logits = (0, 0)  # address and bytes
        try:
            self._check_names(loaded.engine)
            # Tokens and their logit rows, and up to three numbers for every sequence.
            elements = batch * (2 * contract.max_chunk + 3)
            self._inputs = DeviceInputs(device, tensors=5, elements=elements)
            for profile in (PREFILL, DECODE):
                self._contexts[profile] = self._context(loaded.engine, profile)
        except BaseException:
            self.close()
            raise

    def chunk_limit(self, scores: int) -> int:
        return self._contract.max_chunk

    def grow(self, capacity: int) -> None:
        if not self._caches:
            self._allocate(capacity)
            return
        layers = zip(self._contract.layers, self._caches, strict=True)
        growing = [tensor for layer, pair in layers if layer.slots is None for tensor in pair]
        grow_all(growing, capacity)

    def step(self, step: Step) -> Floats:
        names = self._contract
        self._errors.clear()
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
        self._bind_caches(context)
        shape = (self._batch, step.logit_rows.shape[1], names.vocab)
        logits = np.empty(shape, NUMPY_TYPES[names.logits_dtype])
        self._bind_logits(context, logits.nbytes)
        try:
            self._bind_inputs(context, inputs)
            self._call(context.execute_async_v3(self._device.stream), "the engine did not run")
            self._device.download(logits, self._logits[0])
        except BaseException:
            self._device.synchronize()  # the next call reuses the inputs' memory
            raise
        if names.logits_dtype == "bfloat16":
            return widen(logits)
        return logits.astype(np.float32, copy=False)

    def copy_row(self, source: int, target: int, slots: int) -> None:
        for tensor in self._tensors():
            tensor.copy_row(source, target, slots)

    def zero(self, row: int, slots: int) -> None:
        for tensor in self._tensors():
            tensor.zero(row, slots)

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
        self._loaded = None
        for tensor in self._tensors():
            tensor.free()
        self._caches.clear()
        if self._inputs is not None:
            self._inputs.free()
        if self._logits[1]:
            self._device.free(self._logits[0])
        self._device.close()

    def _tensors(self) -> list[DeviceTensor]:
        return [tensor for pair in self._caches for tensor in pair]

    def _allocate(self, capacity: int) -> None:
        made: list[DeviceTensor] = []
        try:
            for layer in self._contract.layers:
                slots = capacity if layer.slots is None else layer.slots
                shape = (self._batch, layer.kv_heads, slots, layer.head_dim)
                for codec in layer.codecs:
                    made.append(DeviceTensor(self._device, shape, codec))
        except UserError:
            self._device.synchronize()
            for tensor in made:
                tensor.free()
            raise
        self._caches = list(zip(made[::2], made[1::2], strict=True))

    def _context(self, engine: Any, profile: int) -> Any:
        context = engine.create_execution_context()
        if context is None:
            raise UserError(
                f"the engine cannot be set up: {reason(self._errors)}; use a GPU with more "
                "memory, or export with a smaller --max-chunk"
            )
        self._call(
            context.set_optimization_profile_async(profile, self._device.stream),
            f"profile {profile} cannot be chosen",
        )
        return context

    def _bind_inputs(self, context: Any, inputs: dict[str, Ints]) -> None:
        assert self._inputs is not None
        for name, array in inputs.items():
            self._set_shape(context, name, array.shape)
        for name, address in self._inputs.put(inputs).items():
            self._set_address(context, name, address)

    def _bind_caches(self, context: Any) -> None:
        """Present is written where past lies."""
        for layer, (key, value) in zip(self._contract.layers, self._caches, strict=True):
            for tensor, past, present in (
                (key, layer.past_key, layer.present_key),
                (value, layer.past_value, layer.present_value),
            ):
                self._set_shape(context, past, tensor.shape)
                self._set_address(context, past, tensor.address)
                self._set_address(context, present, tensor.address)

    def _bind_logits(self, context: Any, nbytes: int) -> None:
        """Memory for the logits is kept from call to call."""
        address, size = self._logits
        if size < nbytes:
            if size:
                self._logits = (0, 0)
                self._device.free(address)
            self._logits = (self._device.malloc(nbytes), nbytes)
        self._set_address(context, self._contract.logits, self._logits[0])

    def _set_shape(self, context: Any, name: str, shape: tuple[int, ...]) -> None:
        refused = f"the engine refuses {name} of shape {list(shape)}"
        self._call(context.set_input_shape(name, tuple(shape)), refused)

    def _set_address(self, context: Any, name: str, address: int) -> None:
        self._call(context.set_tensor_address(name, address), f"{name} cannot be bound")

    def _check_names(self, engine: Any) -> None:
        """The engine's inputs and outputs are the manifest's."""
        names = self._contract
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

    def _call(self, succeeded: bool, failure: str) -> None:
        if not succeeded:
            raise RuntimeError(f"{failure}: {reason(self._errors)}")
