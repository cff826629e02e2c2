"""The onnxruntime backend: bound inputs and outputs, caches updated in place."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.errors import UserError
from ctx_export.runtime.backend import Floats, Ints, Step
from ctx_export.runtime.cache_codec import NUMPY_TYPES
from ctx_export.runtime.contract import Contract
from ctx_export.runtime.growth import grow_all
from ctx_export.runtime.model_file import fuse_weight_transposes, load_model
from ctx_export.runtime.opening import BackendOptions
from ctx_export.runtime.ort_cache import ONNX_TYPES, CacheTensor
from ctx_export.runtime.twin import is_bfloat16, widen, widen_types, widened_weights

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_DEVICES = {CPU: "cpu", CUDA: "cuda"}
# Attention materialises its scores, [B, heads, S, slots] float32; a call is kept below this.
_SCORE_BYTES = 256 << 20
_LEAST_CHUNK = 16  # rows; below it the caches are read too often for the memory saved
log = logging.getLogger(__name__)


class OrtBackend:
    """See `backend.Backend`."""

    def __init__(self, directory: Path, contract: Contract, options: BackendOptions) -> None:
        self._contract = contract
        self._batch = options.batch
        provider = _choose_provider(options.providers)
        self._on_cpu = provider == CPU
        self._weights: list[Any] = []  # memory that the runtime uses and does not own
        self._twin = False
        self._session = self._load(directory, provider, options)
        self._binding = self._session.io_binding()
        self._caches: list[tuple[CacheTensor, CacheTensor]] = []

    def chunk_limit(self, scores: int) -> int:
        if not self._on_cpu:
            return self._contract.max_chunk
        row = self._batch * self._contract.heads * scores * 4
        return max(_LEAST_CHUNK, _SCORE_BYTES // row)

    def grow(self, capacity: int) -> None:
        try:
            if not self._caches:
                self._caches = self._allocated(capacity)
            # The binding would hold on to a device's old memory until it gets the new one.
            self._binding.clear_binding_inputs()
            self._binding.clear_binding_outputs()
            grow_all(self._growing(), capacity)
        except (MemoryError, RuntimeError) as error:
            raise UserError(
                f"there is no memory for caches of {capacity} slots: {_first_line(error)}; use "
                "fewer tokens or a smaller batch"
            ) from None
        finally:
            self._bind_caches()

    def step(self, step: Step) -> Floats:
        names, binding = self._contract, self._binding
        inputs = {
            names.input_ids: step.input_ids,
            names.seen: step.seen,
            names.new: step.new,
            names.logit_rows: step.logit_rows,
        }
        if names.rope_length is not None:
            assert step.rope_length is not None
            inputs[names.rope_length] = step.rope_length
        # The binding refers to the arrays' memory: they live until the run is over.
        inputs = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        dtype = self._stored(names.logits_dtype)
        shape = (self._batch, step.logit_rows.shape[1], names.vocab)
        logits = np.empty(shape, NUMPY_TYPES[dtype])
        binding.bind_output(
            names.logits, "cpu", 0, ONNX_TYPES[dtype], list(shape), logits.ctypes.data
        )
        self._session.run_with_iobinding(binding)
        return widen(logits) if dtype == "bfloat16" else logits.astype(np.float32, copy=False)

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
        self._caches.clear()
        self._binding = self._session = None
        self._weights.clear()

    def _tensors(self) -> list[CacheTensor]:
        return [tensor for pair in self._caches for tensor in pair]

    def _growing(self) -> list[CacheTensor]:
        layers = zip(self._contract.layers, self._caches, strict=True)
        return [tensor for layer, pair in layers if layer.slots is None for tensor in pair]

    def _stored(self, dtype: str) -> str:
        """The element type that the loaded model really has."""
        return "float32" if self._twin and dtype == "bfloat16" else dtype

    def _allocated(self, capacity: int) -> list[tuple[CacheTensor, CacheTensor]]:
        device = "cpu" if self._on_cpu else _DEVICES[CUDA]
        caches = []
        for layer in self._contract.layers:
            slots = capacity if layer.slots is None else layer.slots
            shape = (self._batch, layer.kv_heads, slots, layer.head_dim)
            key, value = (
                CacheTensor(
                    shape,
                    codec.as_type(self._stored(codec.dtype)),
                    device,
                    staged=not self._on_cpu,
                )
                for codec in layer.codecs
            )
            caches.append((key, value))
        return caches

    def _bind_caches(self) -> None:
        """Present is written where past lies."""
        for layer, (key, value) in zip(self._contract.layers, self._caches, strict=False):
            for name, tensor in ((layer.past_key, key), (layer.past_value, value)):
                self._binding.bind_ortvalue_input(name, tensor.value)
            for name, tensor in ((layer.present_key, key), (layer.present_value, value)):
                self._binding.bind_ortvalue_output(name, tensor.value)

    def _load(self, directory: Path, provider: str, options: BackendOptions) -> Any:
        import onnxruntime as ort

        settings = _settings(directory, options.threads)
        model = load_model(directory)
        if self._on_cpu and is_bfloat16(model):
            self._twin = True
            log.warning(
                "onnxruntime's CPU provider has no bfloat16 matrix product: running a float32 "
                "twin of the model made in memory, twice the size of its weights"
            )
            for name, weight in widened_weights(model, directory):
                value = ort.OrtValue.ortvalue_from_numpy(weight)
                settings.add_initializer(name, value)
                self._weights += [weight, value]
            widen_types(model)
        if self._on_cpu and fuse_weight_transposes(model):
            # Packed copies of the weights would be all that the fusion saves.
            settings.add_session_config_entry("session.disable_prepacking", "1")
        providers = [provider] if provider == CPU else [provider, CPU]
        # Folding reads weights from their file, where a twin's are bfloat16 still.
        disabled = ["ConstantFolding"] if self._twin else []
        try:
            session = ort.InferenceSession(
                model.SerializeToString(),
                settings,
                providers=providers,
                disabled_optimizers=disabled,
            )
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise UserError(
                f"onnxruntime {ort.__version__} cannot load {directory}: {_first_line(error)}"
            ) from None
        if provider not in session.get_providers():
            raise UserError(
                f"onnxruntime cannot use {provider} here: install a matching GPU driver, CUDA and "
                f"cuDNN, or open the package with providers=['{CPU}']"
            )
        return session


def _settings(directory: Path, threads: int | None) -> Any:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    if threads is not None:
        settings.intra_op_num_threads = threads
    # The model comes as bytes, its weights from here.
    settings.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(directory.absolute())
    )
    # Dequantised 4-bit weights are multiplied as the graph says: by activations that are not
    # rounded to 8 bits, which onnxruntime would do by default.
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    # Threads wait actively for the next operator, not for the next call.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    return settings


def _choose_provider(asked: tuple[str, ...]) -> str:
    """The provider to run on: the first asked for, else CUDA where this onnxruntime has it."""
    import onnxruntime as ort

    available = ort.get_available_providers()
    for provider in asked:
        if provider not in _DEVICES:
            raise UserError(f"provider {provider!r} is unknown: use {' or '.join(_DEVICES)}")
        if provider not in available:
            raise UserError(
                f"this onnxruntime has no {provider}: pip install 'ctx-export[gpu]'"
                " (onnxruntime-gpu) in place of onnxruntime"
            )
    if asked:
        return asked[0]
    return CUDA if CUDA in available else CPU


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
