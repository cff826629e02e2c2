"""What validates packages of bounded caches and of frequencies that follow the length: what is
right passes, what is broken fails where it is broken. Oracle: packages broken in one place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ctx_export.core.manifest import Manifest
from ctx_export.inspection.package import cache_bytes
from ctx_export.runtime.session import open_session
from ctx_export.validate import validation
from ctx_export.validate.report import ValidationReport
from tests.support import tiny

CHUNK = 16
SINKS, WINDOW = 4, 28
CAPACITY = SINKS + WINDOW + CHUNK - 1  # 47
BUDGET = 160  # 3 · 47 + 1 tokens and more: three wraps
BOUNDED = [0, 47, 63, 64, 65, 142, 470, 10**6, 1 << 31]
TARGET = 256
BY_LENGTH = [0, 63, 64, 65, 128, 255]
PAIRS = tiny.HEAD_DIM // 2
LISTS = {
    "short_factor": tuple(np.linspace(1.0, 1.6, PAIRS).tolist()),
    "long_factor": tuple(np.geomspace(1.1, 12.0, PAIRS).tolist()),
}
RING = {"sinks": SINKS, "window": WINDOW, "max_chunk": CHUNK}
PACKAGES: dict[str, dict[str, Any]] = {
    "streaming": {"method": "streaming", **RING},
    "lm-infinite": {"method": "lm-infinite", **RING},
    "sliding-window": {"method": "sliding-window", "window": 32, "max_chunk": CHUNK},
    "yarn over sinks": {"method": "yarn", "target": TARGET, **RING},
    "dynamic-ntk": {"method": "dynamic-ntk", "target": TARGET},
    "dynamic-yarn": {"method": "dynamic-yarn", "target": TARGET},
    "longrope": {"method": "longrope", "target": TARGET, "factor": 4.0, "parameters": LISTS},
    "longrope over sinks": {
        "method": "longrope",
        "factor": 4.0,
        "parameters": {**LISTS, "short_mscale": 1.05, "long_mscale": 1.25},
        **RING,
    },
}


def options(name: str) -> dict[str, Any]:
    """A recipe's fields: a policy is the cache, not the method."""
    given = dict(PACKAGES[name])
    if given["method"] in ("streaming", "lm-infinite", "sliding-window"):
        given["cache"] = given.pop("method")
    return given


class Lab:
    """One llama, traced once a precision, and its packages by name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoint = tiny.save(root / "checkpoint")
        self._sources: dict[str, Any] = {}
        self._packages: dict[str, Path] = {}

    def package(self, name: str, precision: str = "fp32") -> Path:
        key = f"{name}-{precision}"
        if precision not in self._sources:
            self._sources[precision] = tiny.source(self.checkpoint, precision)
        if key not in self._packages:
            source = self._sources[precision]
            self._packages[key] = tiny.export(source, self.root / key, **options(name))
        return self._packages[key]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


def validated(package: Path, reference: Path) -> ValidationReport:
    return validation.run(package, reference, budget=BUDGET)


def failing(report: ValidationReport) -> list[int]:
    """Positions of the table that fail in one of the ways they are compared in, probes as a
    whole: few of a probe's keys are the package's own."""
    wrong = [row for row in report.rows if not row.passed]
    return sorted({r.position for r in wrong if not r.is_range or r.how == "probe"})


def listed(report: ValidationReport) -> list[int]:
    return sorted({r.position for r in report.rows if not r.is_range})


@pytest.mark.parametrize("name", PACKAGES)
def test_a_good_package_agrees_at_every_position(lab, name):
    package = lab.package(name)
    report = validated(package, lab.checkpoint)
    assert report.passed, report.lines()
    bounded = Manifest.load(package).max_context is None
    positions = BOUNDED if bounded else BY_LENGTH
    assert listed(report) == positions
    for position in positions:
        ways = [r.how for r in report.rows if r.position == r.last == position]
        assert ways == (["prefill", "chunks", "decode"] if position < BUDGET else ["probe"])
    assert max(row.max_error for row in report.rows) < 5e-5
    assert report.reach == positions[-1] + (15 if bounded else 0)
    assert report.verdict().startswith(f"agrees with PyTorch up to position {report.reach}: ")
    # transformers' own forward has no sinks; it plans a length as the prefill does.
    shown = {row.how for row in report.rows if row.transformers is not None}
    assert shown == (set() if bounded else {"prefill"})
    assert all(row.transformers < 1e-3 for row in report.rows if row.transformers is not None)
    json.dumps([report.to_json(), report.summary], allow_nan=False)


@pytest.mark.parametrize("name", ["streaming", "longrope over sinks", "dynamic-ntk"])
def test_a_short_prefill_leaves_the_rest_to_probes(lab, name):
    """From within the ring on."""
    report = validation.run(lab.package(name), lab.checkpoint, budget=9)
    assert report.passed, report.lines()
    ways = {row.position: row.how for row in report.rows if not row.is_range}
    assert set(ways.values()) == {"decode", "probe"}  # of the ways, the last
    assert [p for p, how in ways.items() if how == "probe"] == listed(report)[1:]


def test_the_report_has_the_bytes_of_the_caches(lab):
    """2 · KV heads · head_dim · C · 4 bytes a layer (FORMULAS section 4), as the session has."""
    package = lab.package("streaming")
    report = validated(package, lab.checkpoint)
    expected = 2 * tiny.LAYERS * tiny.KV_HEADS * tiny.HEAD_DIM * CAPACITY * 4
    assert report.to_json()["cache_bytes_per_sequence"] == expected
    assert cache_bytes(Manifest.load(package)) == expected
    with open_session(package) as session:
        assert session.cache_bytes == expected
    assert f"{expected} bytes per sequence" in report.facts["caches"]


def test_layers_of_several_kinds_agree_and_only_the_broken_one_fails(tmp_path):
    """Rings of the model's own windows beside full caches; transformers has the same masks."""
    checkpoint = tiny.save(
        tmp_path / "checkpoint",
        family="qwen3",
        use_sliding_window=True,
        sliding_window=40,
        layer_types=["sliding_attention", "full_attention"],
    )
    package = tiny.export(
        tiny.source(checkpoint), tmp_path / "out", method="yarn", target=TARGET, max_chunk=CHUNK
    )
    assert [c.policy for c in Manifest.load(package).layers] == ["bounded", "full"]
    report = validated(package, checkpoint)
    assert report.passed, report.lines()
    assert listed(report) == [0, 55, 63, 64, 65, 128, 166, 255]
    prefill = [row for row in report.rows if row.how == "prefill"]
    assert all(r.transformers is not None and r.transformers < 1e-4 for r in prefill)
    tiny.edit_attention(package, 0, "window", 39)
    # 240: where the probe of 255 begins
    assert failing(validated(package, checkpoint)) == [55, 63, 64, 65, 128, 166, 240, 255]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_low_precision_is_held_to_its_rule(lab, precision):
    report = validated(lab.package("streaming", precision), lab.checkpoint)
    assert report.passed, report.lines()
    peers = {row.peer for row in report.rows if row.is_range}
    if precision == "bf16":  # a float32 twin on a CPU
        assert peers == {None} and {row.limit for row in report.rows} == {1e-3}
    else:
        assert all(peer is not None and 1e-4 < peer < 0.05 for peer in peers)


def test_float16_that_is_broken_fails(lab, tmp_path):
    package = tiny.copy(lab.package("streaming", "fp16"), tmp_path / "package")
    tiny.edit_attention(package, 1, "window", WINDOW - 1)
    assert set(BOUNDED[-3:]) <= set(failing(validated(package, lab.checkpoint)))


def changed(package: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    path = package / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model)
    onnx.save(model, path)


def attribute(layer: int, name: str, value: int) -> Callable[[Path], None]:
    return lambda package: tiny.edit_attention(package, layer, name, value)


def attentions(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == "SinkWindowAttention"]


def sink_position(by: int) -> Callable[[Path], None]:
    """Move the largest position at which queries meet the sinks."""

    def change(model: onnx.ModelProto) -> None:
        for node in attentions(model.graph):
            (position,) = [entry for entry in node.attribute if entry.name == "sink_position"]
            assert position.i > 0
            position.i += by

    return lambda package: changed(package, change)


def key_position(package: Path) -> None:
    """Keys at the positions of the sinks' queries: right until the window is full."""

    def change(model: onnx.ModelProto) -> None:
        (body,) = [f for f in model.functions if f.name == "SinkWindowAttention"]
        _, key, sink_query = [n for n in body.node if n.op_type == "RotaryEmbedding"]
        key.input[1:] = sink_query.input[1:]
        nodes = list(body.node)
        (rounded,) = [n for n in nodes if n.op_type == "CastLike" and n.input[0] == key.output[0]]
        moved = [key, rounded]  # behind what makes their table
        rest = [node for node in nodes if node not in moved]
        place = rest.index(sink_query)
        del body.node[:]
        body.node.extend([*rest[:place], *moved, *rest[place:]])

    changed(package, change)


def frequencies(relative: float) -> Callable[[Path], None]:
    """One frequency is off, enough to tell far from a trained position."""

    def sabotage(package: Path) -> None:
        table = np.array(Manifest.load(package).scaling["inv_freq"])
        table[2] *= 1 + relative
        tiny.edit_table(package, "inv_freq", table)

    return sabotage


# First position of the table from which all of it is wrong.
BROKEN: dict[str, tuple[str, Callable[[Path], None], int]] = {
    "a sink less": ("streaming", attribute(0, "sinks", SINKS - 1), 47),
    "a sink more": ("streaming", attribute(0, "sinks", SINKS + 1), 47),
    "a window less": ("streaming", attribute(0, "window", WINDOW - 1), 47),
    "a window more": ("streaming", attribute(1, "window", WINDOW + 1), 47),
    "sinks too near": ("streaming", sink_position(-1), 47),
    "sinks too far": ("streaming", sink_position(1), 47),
    "keys elsewhere": ("streaming", key_position, 47),
    "a frequency": ("streaming", frequencies(0.01), 47),
    "yarn's window": ("yarn over sinks", attribute(0, "window", WINDOW + 1), 47),
    "yarn's sinks": ("yarn over sinks", sink_position(1), 47),
    "lm-infinite's reach": ("lm-infinite", sink_position(-1), 63),
    "lm-infinite's window": ("lm-infinite", attribute(0, "window", WINDOW - 1), 47),
    "a window alone": ("sliding-window", attribute(1, "window", 31), 47),
    "longrope's sinks": ("longrope over sinks", sink_position(1), 47),
}


@pytest.mark.parametrize(("name", "sabotage", "first"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_fails_from_where_it_shows(lab, tmp_path, name, sabotage, first):
    package = tiny.copy(lab.package(name), tmp_path / "package")
    sabotage(package)
    report = validated(package, lab.checkpoint)
    assert not report.passed
    assert failing(report) == [p for p in BOUNDED if p >= first]


def scalar(index: int, factor: float) -> Callable[[Path], None]:
    """One of threshold, slope, offset, short and long multiplier, gain, gain_all."""

    def sabotage(package: Path) -> None:
        model = onnx.load(package / "model.onnx", load_external_data=False)
        (held,) = [t for t in model.graph.initializer if t.name == "rope.scalars"]
        scalars = numpy_helper.to_array(held).copy()
        scalars[index] *= factor
        tiny.edit_table(package, "scalars", scalars)

    return sabotage


def row(index: int, factor: float) -> Callable[[Path], None]:
    """One of the rows short, long, ramp, exponent."""

    def sabotage(package: Path) -> None:
        model = onnx.load(package / "model.onnx", load_external_data=False)
        (held,) = [t for t in model.graph.initializer if t.name == "rope.tables"]
        tables = numpy_helper.to_array(held).copy()
        tables[index] *= factor
        tiny.edit_table(package, "tables", tables)

    return sabotage


BROKEN_BY_LENGTH: dict[str, tuple[str, Callable[[Path], None]]] = {
    "dynamic-ntk's slope": ("dynamic-ntk", scalar(1, 1.1)),
    "dynamic-ntk's exponent": ("dynamic-ntk", row(3, 0.8)),
    "dynamic-yarn's ramp": ("dynamic-yarn", row(2, 0.8)),
    "dynamic-yarn's gain": ("dynamic-yarn", scalar(5, 1.5)),
    "longrope's long list": ("longrope", row(1, 1.05)),
    "longrope's multiplier": ("longrope", scalar(4, 1.05)),
    "longrope never switches": ("longrope", scalar(0, 100.0)),
}


@pytest.mark.parametrize(("name", "sabotage"), BROKEN_BY_LENGTH.values(), ids=BROKEN_BY_LENGTH)
def test_a_broken_table_by_length_fails_past_the_switch(lab, tmp_path, name, sabotage):
    package = tiny.copy(lab.package(name), tmp_path / "package")
    sabotage(package)
    report = validated(package, lab.checkpoint)
    past = [r for r in report.rows if r.position == r.last and r.position > tiny.ORIGINAL_CONTEXT]
    assert {r.position for r in past if not r.passed} >= {128, 255}
    # A short text, fed token by token, never meets what is wrong.
    early = [r for r in report.rows if r.how == "decode" and r.position == r.last == 0]
    assert all(r.passed for r in early)
    assert report.frequency_error < 2e-6  # the manifest is right


@pytest.mark.parametrize("name", ["dynamic-ntk", "dynamic-yarn", "longrope"])
def test_a_table_by_length_that_the_manifest_has_wrong_fails(lab, tmp_path, name):
    package = tiny.copy(lab.package(name), tmp_path / "package")
    manifest = json.loads((package / "manifest.json").read_text())
    held = manifest["scaling"]["length_table"]
    if name == "longrope":
        held["long_frequencies"][3] *= 1 + 1e-5
    else:
        held["slope"] *= 1 + 1e-3
    (package / "manifest.json").write_text(json.dumps(manifest))
    assert "inv_freq" in validated(package, lab.checkpoint).failures
