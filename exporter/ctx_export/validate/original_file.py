"""An ONNX file as it came, run in a stock onnxruntime: the logits that rewriting must keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.errors import UserError

if TYPE_CHECKING:
    import onnx_ir as ir

Floats = NDArray[np.float32]
_PROVIDER = "CPUExecutionProvider"
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
# Names of a cache's inputs and the outputs that carry it on.
_CACHE_NAMES = (("past_key_values", "present"), ("past", "present"))


_ROUNDING = ("MatMulNBits", "accuracy_level")  # 4: to 8 bits


class CannotRun(Exception):
    """The file does not run here; says why."""


class OriginalFile:
    """A session over the file at `path`, on the CPU; raises CannotRun where there is none.

    `head_dim` is for files whose caches do not state it. With `optimise` False the graph runs node
    by node, as it is written.
    """

    unrounded: int  # places where activations were rounded to integers that no product needs

    def __init__(self, path: Path, head_dim: int, *, optimise: bool = True) -> None:
        import onnx_ir as ir
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        if not optimise:
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        folder = "session.model_external_initializers_file_folder_path"
        settings.add_session_config_entry(folder, str(path.parent.resolve()))
        try:
            model = _read(path)
            self.unrounded = _without_rounding(model.graph)
            self._least_slots = _least_slots(model.graph)
            content = ir.to_proto(model).SerializeToString()
            self._session = ort.InferenceSession(content, settings, providers=[_PROVIDER])
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise CannotRun(_first_line(error)) from None
        self._head_dim = head_dim
        self._quiet = ort.RunOptions()
        self._quiet.log_severity_level = 4
        self._inputs = {entry.name: entry for entry in self._session.get_inputs()}
        self._outputs = [entry.name for entry in self._session.get_outputs()]
        self._carried = self._cache_pairs()

    @property
    def has_cache(self) -> bool:
        """Whether it takes keys and values of earlier tokens and gives them on."""
        return bool(self._carried)

    def logits(self, tokens: NDArray[np.int64], pieces: Sequence[int] | None = None) -> Floats:
        """Logits [B,N,V] of `tokens` [B,N], or of one sequence after another fed in `pieces`
        through the file's own cache: not every attention takes pieces of several at once."""
        if pieces is not None and len(tokens) > 1:
            return np.concatenate([self.logits(row[None], pieces) for row in tokens])
        cache, parts, start = self._empty_cache(tokens.shape), [], 0
        for size in pieces or [tokens.shape[1]]:
            found = self._run(self._feed(tokens[:, start : start + size], start, cache))
            parts.append(np.asarray(found["logits"], np.float32))
            cache = {past: found[present] for past, present in self._carried.items()}
            start += size
        return np.concatenate(parts, axis=1)

    def _run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        try:
            made = self._session.run(self._outputs, dict(feed), self._quiet)
        except Exception as error:  # see __init__
            raise CannotRun(_first_line(error)) from None
        return dict(zip(self._outputs, made, strict=True))

    def _feed(
        self, tokens: NDArray[np.int64], start: int, cache: Mapping[str, Any]
    ) -> dict[str, Any]:
        batch, new = tokens.shape
        positions = np.broadcast_to(np.arange(start, start + new), (batch, new))
        known = {
            "input_ids": tokens,
            "position_ids": positions,
            "attention_mask": np.ones((batch, start + new), np.int64),
            "cache_position": np.arange(start, start + new),
        }
        feed = dict(cache)
        for name, entry in self._inputs.items():
            if name in cache:
                continue
            if name not in known:
                raise CannotRun(f"nothing is known about its input {name}")
            feed[name] = np.ascontiguousarray(known[name], self._type(name))
            if feed[name].ndim != len(entry.shape):
                raise CannotRun(f"its input {name} has shape {entry.shape}")
        return feed

    def _type(self, name: str) -> Any:
        kind = self._inputs[name].type
        if kind not in _TYPES:
            raise CannotRun(f"its input {name} is of type {kind}")
        return _TYPES[kind]

    def _cache_pairs(self) -> dict[str, str]:
        """Cache input → the output that carries it on."""
        pairs = {}
        for name in self._inputs:
            for past, present in _CACHE_NAMES:
                carried = name.replace(past, present, 1)
                if name.startswith(past) and carried in self._outputs:
                    pairs[name] = carried
                    break
        return pairs

    def _empty_cache(self, tokens: tuple[int, ...]) -> dict[str, Any]:
        """A cache of no tokens, for `tokens` [B,N] of them."""
        batch, count = tokens
        slots = max(self._least_slots, count) if self._least_slots else 0
        found = {}
        for name in self._carried:
            shape = list(self._inputs[name].shape)
            if len(shape) != 4 or not isinstance(shape[1], int):
                raise CannotRun(f"its cache {name} has shape {shape}")
            dim = shape[3] if isinstance(shape[3], int) else self._head_dim
            found[name] = np.zeros((batch, shape[1], slots, dim), self._type(name))
        return found


def _read(path: Path) -> ir.Model:
    """The file's graph; its weights stay where they are."""
    import onnx
    import onnx_ir as ir

    return ir.from_proto(onnx.load(str(path), load_external_data=False))


def _without_rounding(graph: ir.Graph) -> int:
    """Let `graph` compute as its rewritten form does: without rounding activations where no
    product with quantised weights needs it. A rounding jumps where two orders of computing fall on
    two sides of a border. Returns how many places that are outside of products."""
    from ctx_export.frontends.quantised_activations import drop_idle_pairs

    compute_in_float(graph)
    return drop_idle_pairs(graph)


def _least_slots(graph: ir.Graph) -> int:
    """Slots that an empty cache must have: 0, but for operators that keep a window only."""
    windows = [
        node.attributes.get_int("local_window_size", 0) or 0
        for node in graph.all_nodes()
        if node.attributes.get_int("sliding_window_cache", 0)
    ]
    return max(windows, default=0)


def compute_in_float(graph: ir.Graph) -> None:
    """Products with quantised weights do not round what they multiply, in place."""
    for node in graph.all_nodes():
        if node.op_type == _ROUNDING[0]:
            node.attributes.pop(_ROUNDING[1], None)


def check_shape(logits: Floats, expected: tuple[int, int, int]) -> None:
    """Raise UserError unless logits are [B,N,V]."""
    if logits.shape != expected:
        raise UserError(
            f"the file gives logits of shape {list(logits.shape)} for {expected[1]} tokens, not "
            f"{list(expected)}: export it with the logits of every token"
        )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
