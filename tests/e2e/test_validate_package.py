"""What validates a whole package: what is right passes, what is broken fails, also where only
positions beyond the trained context are wrong. Oracle: packages broken by hand in one place."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ctx_export.cli.validate import main
from ctx_export.core.errors import UserError
from ctx_export.core.manifest import Manifest
from ctx_export.runtime.session import Session, open_session
from ctx_export.scaling import names
from ctx_export.validate import memory, validation
from ctx_export.validate.report import ValidationReport
from ctx_export.validate.rows import Row
from tests.support import tiny
from tests.support.checkpoints import edit_config

LENGTH, TARGET, FACTOR = tiny.ORIGINAL_CONTEXT, 1024, 16.0
BUDGET = 96
POSITIONS = [0, 63, 64, 65, 128, 256, 512, 1023]
PAIRS = tiny.HEAD_DIM // 2
PLAIN = tiny.THETA ** (-np.arange(PAIRS) / PAIRS)
NODES = tiny.LAYERS  # an attention a layer, which rotates


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Lab:
    """One checkpoint, traced once a precision; packages of it by name."""

    root: Path
    family: str = "llama"
    config: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    @property
    def checkpoint(self) -> Path:
        directory = self.root / "checkpoint"
        return self._once("", lambda: tiny.save(directory, family=self.family, **self.config))

    def source(self, precision: str = "fp32") -> Any:
        return self._once(precision, lambda: tiny.source(self.checkpoint, precision))

    def package(self, method: str = "yarn", precision: str = "fp32", **options: Any) -> Path:
        name = f"{method}-{precision}-{len(options)}"
        options = {"target": TARGET, **options}
        return self._once(
            name,
            lambda: tiny.export(
                self.source(precision), self.root / name, method=method, **options
            ),
        )


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def copied(lab, tmp_path) -> Path:
    """The yarn package, to be broken."""
    return tiny.copy(lab.package(), tmp_path / "package")


def validated(package: Path, reference: Path, **options: Any) -> ValidationReport:
    return validation.run(package, reference, **{"budget": BUDGET, **options})


def at(report: ValidationReport, position: int) -> list[Row]:
    return [row for row in report.rows if row.position == row.last == position]


def failing(report: ValidationReport) -> list[int]:
    """Positions of the table that fail in one of the ways they are compared in."""
    return [p for p in POSITIONS if not all(row.passed for row in at(report, p))]


def edit_manifest(package: Path, **changes: Any) -> None:
    path = package / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_scaling(package: Path, **changes: Any) -> None:
    edit_manifest(package, scaling={**Manifest.load(package).scaling, **changes})


def test_a_good_package_agrees_at_every_position(lab):
    report = validated(lab.package(), lab.checkpoint)
    assert report.passed, report.lines()
    for position in POSITIONS:
        ways = ["prefill", "chunks", "decode"] if position < BUDGET else ["probe"]
        assert [row.how for row in at(report, position)] == ways
    ranges = [(r.position, r.last, r.how, r.compared) for r in report.rows if r.is_range]
    assert ranges == [
        (0, 95, "prefill", 96),
        (0, 95, "chunks", 96),
        (0, 67, "decode", 10),  # 0 to 2 and 61 to 67
        (128, 143, "probe", 16),
        (256, 271, "probe", 16),
        (512, 527, "probe", 16),
        (1008, 1023, "probe", 16),
    ]
    assert all(row.limit == 1e-3 and row.max_error < 2e-5 for row in report.rows)
    assert report.summary["last_position"] == TARGET - 1
    assert report.engine is None and report.skipped == () and report.problems == ()
    assert report.facts["compared"] == (
        "prefill, ragged chunks and decode of 96 tokens, 4 probes of 16 tokens"
    )
    assert "rope_parameters of type yarn" in report.facts["reference"]


PARAMETERS: dict[str, dict[str, Any]] = {
    "theta": {"parameters": {"rope_theta": 5e5}},
    "proportional": {"parameters": {"partial_rotary_factor": 0.5}},
    "longrope": {
        "factor": FACTOR,
        "parameters": {
            "short_factor": tuple(np.linspace(1.0, 1.6, PAIRS).tolist()),
            "long_factor": tuple(np.geomspace(1.1, 12.0, PAIRS).tolist()),
        },
    },
}


@pytest.mark.parametrize("method", names())
def test_a_package_of_every_method_agrees(lab, method):
    package = lab.package(method, target=256, **PARAMETERS.get(method, {}))
    report = validated(package, lab.checkpoint)
    assert report.passed, report.lines()
    assert report.reach == 255


def plain_table(package: Path) -> None:
    tiny.edit_table(package, "inv_freq", PLAIN)


def multiplier(package: Path) -> None:
    tiny.edit_table(package, "multiplier", np.array([1.0]))


def another_scale(package: Path) -> None:
    tiny.edit_attention(package, 1, "scale", 1.02 * tiny.HEAD_DIM**-0.5)


def weight(package: Path) -> None:
    """One number of one matrix: half a spread, in the second layer."""
    from safetensors.numpy import load_file, save_file

    path = package / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.self_attn.o_proj.weight"][3, 5] += 0.1
    path.unlink()
    # safetensors orders tensors by type and name: the graph's offsets stay right.
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("sabotage", [plain_table, multiplier, another_scale, weight])
def test_what_the_graph_does_wrong_fails_at_every_position_but_the_first(lab, copied, sabotage):
    sabotage(copied)
    report = validated(copied, lab.checkpoint)
    assert failing(report) in (POSITIONS, POSITIONS[1:])
    assert report.frequency_error < 2e-6 and report.multiplier_error == 0
    assert report.verdict().startswith("DOES NOT AGREE with PyTorch (")


@pytest.mark.parametrize(
    ("window", "wrong"), [(100, [128, 256, 512, 1023]), (300, [512, 1023]), (800, [1023])]
)
def test_what_only_goes_wrong_far_out_fails_there(lab, copied, window, wrong):
    """Keys that are lost beyond a window: all is well up to it."""
    tiny.edit_attention(copied, 0, "window", window)
    report = validated(copied, lab.checkpoint)
    assert failing(report) == wrong
    assert not report.passed


@pytest.mark.parametrize("relative", [1e-5, -1e-4])
def test_a_manifest_whose_table_was_altered_fails(lab, copied, relative):
    table = np.array(Manifest.load(copied).scaling["inv_freq"])
    table[3] *= 1 + relative
    edit_scaling(copied, inv_freq=table.tolist())
    report = validated(copied, lab.checkpoint)
    assert "inv_freq" in report.failures
    assert report.frequency_error == pytest.approx(abs(relative), rel=0.05)


def test_a_wrong_table_fails_also_where_graph_and_manifest_agree_on_it(lab, copied):
    plain_table(copied)
    edit_scaling(copied, inv_freq=[float(f) for f in PLAIN.astype(np.float32)])
    report = validated(copied, lab.checkpoint)
    assert report.failures == ["inv_freq"] and failing(report) == []


def test_a_wrong_multiplier_fails_also_in_the_manifest(lab, copied):
    edit_scaling(copied, multiplier=1.0)
    report = validated(copied, lab.checkpoint)
    assert report.failures == ["the multiplier"]
    assert report.multiplier_error == pytest.approx(1 - 1 / (0.1 * np.log(16) + 1))


def test_logits_that_are_no_numbers_fail_and_are_told(lab, copied):
    tiny.edit_table(copied, "inv_freq", np.full(PAIRS, np.nan))
    report = validated(copied, lab.checkpoint)
    assert failing(report) == POSITIONS
    assert "prefill of positions 0 to 95: NaN in 96 of 96 rows, first in row 0" in report.problems
    json.dumps([report.to_json(), report.summary], allow_nan=False)


def test_other_weights_of_the_same_shape_do_not_agree(lab, tmp_path):
    other = tiny.save(tmp_path, seed=2)
    assert failing(validated(lab.package(), other)) == POSITIONS


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"model_type": "mistral"}, "has family mistral, the package llama"),
        ({"num_hidden_layers": 1}, "has layers 1, the package 2"),
        ({"num_attention_heads": 2}, "has heads 2, the package 4"),
        ({"num_key_value_heads": 1}, "has kv_heads 1, the package 2"),
        ({"head_dim": 8}, "has head_dim 8, the package 16"),
        ({"vocab_size": 96}, "has vocab 96, the package 97"),
    ],
)
def test_the_reference_of_another_model_is_refused(lab, copied, tmp_path, entries, words):
    other = tiny.copy(lab.checkpoint, tmp_path / "other")
    edit_config(other, **entries)
    before = sorted(path.name for path in copied.iterdir())
    result = command(copied, "--reference", other)
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: reference {other} {words}: give the checkpoint that the package was made from\n"
    )
    assert sorted(path.name for path in copied.iterdir()) == before


def test_the_command_prints_the_report_and_writes_it_into_the_package(lab, copied):
    result = command(copied, "--reference", lab.checkpoint, "--budget", BUDGET)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    shown = [line.split()[0] for line in lines[1 : 1 + len(POSITIONS)]]
    assert shown == [str(position) for position in POSITIONS]
    assert lines[-1].startswith("agrees with PyTorch up to position 1023: largest error ")
    saved = json.loads((copied / "report.json").read_text())
    assert saved["passed"] is True and len(saved["rows"]) == 23
    assert lines[-1] in (copied / "report.md").read_text()
    summary = Manifest.load(copied).validation
    assert summary is not None
    assert (summary["passed"], summary["last_position"]) == (True, 1023)
    assert summary["max_error"] == max(row["max_error"] for row in saved["rows"])


def test_the_command_s_json_is_the_report(lab, copied):
    result = command(copied, "--reference", lab.checkpoint, "--budget", BUDGET, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads((copied / "report.json").read_text())


def test_a_package_that_does_not_agree_exits_1_with_its_report(lab, copied):
    plain_table(copied)
    result = command(copied, "--reference", lab.checkpoint, "--budget", BUDGET)
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: {copied} does not agree with PyTorch: see {copied}/report.md\n"
    )
    assert "DOES NOT AGREE" in result.stdout.splitlines()[-1]
    assert "DOES NOT AGREE" in (copied / "report.md").read_text()
    summary = Manifest.load(copied).validation
    assert summary is not None and summary["passed"] is False
    # A tolerance that is given replaces the rule; nothing near 1 is an agreement of logits.
    arguments = ["--reference", lab.checkpoint, "--budget", BUDGET, "--tolerance", 0.9]
    assert "error at most 0.9 of the logit scale" in command(copied, *arguments).stdout


@dataclass
class Recorder:
    """Stages with their updates."""

    stages: list[tuple[str, list[tuple[int, int]]]] = field(default_factory=list)

    def stage(self, name: str) -> None:
        self.stages.append((name, []))

    def update(self, done: int, total: int) -> None:
        self.stages[-1][1].append((done, total))


def test_progress_moves_with_every_layer_and_every_feed(lab):
    seen = Recorder()
    validated(lab.package(precision="fp16"), lab.checkpoint, progress=seen)
    assert [name for name, _ in seen.stages] == [
        "loading PyTorch",
        "running PyTorch",
        "running PyTorch in fp16",
        "comparing onnxruntime",
    ]
    updates = {name: found for name, found in seen.stages if found}
    # One prefill and four probes, in float32 under each of three rotations.
    assert updates["running PyTorch"] == [(n, 30) for n in range(1, 31)]
    assert updates["running PyTorch in fp16"] == [(n, 10) for n in range(1, 11)]
    fed = updates["comparing onnxruntime"]
    assert {total for _, total in fed} == {2 * BUDGET + 4 * 16}
    done = [number for number, _ in fed]
    assert done == sorted(set(done)) and done[-1] == 2 * BUDGET + 4 * 16
    assert len(done) > 4 * 4  # every probe is fed in several calls


def test_probes_without_memory_are_left_out_and_not_claimed(lab, copied, monkeypatch):
    """3 caches of 528 tokens take 792 KiB, of 1024 tokens 1.5 MiB; the weights 93 KiB."""
    tiny.edit_attention(copied, 0, "window", 800)  # wrong at 1023 alone
    monkeypatch.setattr(memory, "available_bytes", lambda: 1 << 20)
    report = validated(copied, lab.checkpoint)
    assert report.passed and "layer by layer" not in report.facts["reference"]
    assert at(report, 1023) == [] and len(at(report, 512)) == 1
    (told,) = report.skipped
    assert told.startswith("positions 1008 to 1023 need 0.0 GiB of memory for caches")
    assert f"not compared: {told}" in report.lines()
    assert report.verdict().startswith(
        "agrees with PyTorch up to position 527, NOT COMPARED beyond 527 up to 1023: "
    )
    assert report.summary["last_position"] == 527
    assert report.summary["not_compared"] == [told]


def test_a_model_too_big_for_memory_is_run_layer_by_layer(lab, monkeypatch):
    whole = validated(lab.package(), lab.checkpoint)
    monkeypatch.setattr(memory, "MEMORY_SHARE", 1e-9)
    layered = validated(lab.package(), lab.checkpoint)
    assert layered.facts["reference"].startswith("PyTorch float32, layer by layer, weights in")
    assert layered.passed and layered.rows == whole.rows


def test_a_model_too_big_for_memory_still_finds_what_is_broken(lab, copied, monkeypatch):
    plain_table(copied)
    monkeypatch.setattr(memory, "MEMORY_SHARE", 1e-9)
    assert failing(validated(copied, lab.checkpoint)) == POSITIONS[1:]


def test_a_float16_package_is_held_to_pytorch_in_float16(lab):
    report = validated(lab.package(precision="fp16"), lab.checkpoint)
    assert report.passed, report.lines()
    assert report.rule.startswith("error at most 2 × that of PyTorch in fp16 + 0.000488")
    assert "weights in fp16" in report.facts["reference"]
    for block in [row for row in report.rows if row.compared > 10]:
        assert block.peer is not None and 1e-4 < block.peer < 0.05
        assert block.limit == pytest.approx(2 * block.peer + 2**-11, rel=1e-12)
        assert block.max_error > 1e-5  # it is float16 that was run


@pytest.mark.parametrize("sabotage", [plain_table, multiplier])
def test_a_broken_float16_package_fails(lab, tmp_path, sabotage):
    package = tiny.copy(lab.package(precision="fp16"), tmp_path / "package")
    sabotage(package)
    report = validated(package, lab.checkpoint)
    assert failing(report) == POSITIONS[1:]


def test_a_bfloat16_package_is_held_to_float32_through_its_twin(lab):
    report = validated(lab.package(precision="bf16"), lab.checkpoint)
    assert report.passed, report.lines()
    assert {row.limit for row in report.rows} == {1e-3}
    assert max(row.max_error for row in report.rows) < 2e-5
    assert "float32 twin of the bfloat16 graph" in report.facts["runtime"]
    assert "weights in bf16" in report.facts["reference"]


def test_a_model_s_own_window_is_the_reference_s_too(tmp_path_factory):
    """mistral's, inside the prefill, across chunks and under the probes."""
    lab = Lab(tmp_path_factory.mktemp("mistral"), "mistral", {"sliding_window": 40})
    assert validated(lab.package(), lab.checkpoint).passed
    package = tiny.copy(lab.package(), lab.root / "wider")
    tiny.edit_attention(package, 1, "window", 80)
    assert failing(validated(package, lab.checkpoint)) == POSITIONS[1:]


def engine_package(package: Path, layers: int = NODES) -> Path:
    """`package` as if an engine with that many plugin layers were in it."""
    plugin_layers = [f"layer {number}" for number in range(layers)]
    edit_manifest(package, engine={"runtime": "tensorrt-rtx", "plugin_layers": plugin_layers})
    return package


@pytest.fixture
def no_gpu(monkeypatch) -> None:
    monkeypatch.setattr("ctx_export.targets._cuda_device.missing_gpu", lambda: "none here")


def test_an_engine_without_a_gpu_is_counted_and_told(lab, copied, no_gpu):
    report = validated(engine_package(copied), lab.checkpoint)
    assert report.passed and report.engine is not None
    assert (report.engine.sites, report.engine.rows) == (NODES, ())
    assert report.summary["engine"]["state"] == "not measured: no GPU (none here)"


def test_an_engine_that_lost_a_plugin_layer_fails(lab, copied, no_gpu):
    report = validated(engine_package(copied, NODES - 1), lab.checkpoint)
    assert report.failures == ["the engine"]


def test_an_engine_that_must_be_measured_is_refused_before_any_work(
    lab, copied, no_gpu, monkeypatch
):
    monkeypatch.setattr(validation, "reference_logits", None)
    arguments = ["--reference", lab.checkpoint, "--engine"]
    result = command(copied, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {copied} has no engine to validate: export it with")
    result = command(engine_package(copied), *arguments)
    assert result.exit_code == 2
    assert result.stderr == (
        "error: the tensorrt-rtx engine cannot be validated here: none here; run where there is a "
        "GPU, or leave --engine out\n"
    )
    assert not (copied / "report.json").exists()


@pytest.mark.parametrize("broken", [False, True])
def test_an_engine_is_held_to_the_same_reference(lab, copied, tmp_path, monkeypatch, broken):
    """A session of onnxruntime stands for the engine's; in one case of another package."""
    engine = tiny.copy(copied, tmp_path / "engine")
    if broken:
        tiny.edit_attention(engine, 0, "window", 300)

    def opened(package: Path, backend: str, **options: Any) -> Session:
        if backend == "tensorrt-rtx":
            return open_session(engine)
        return open_session(package, backend, **options)

    monkeypatch.setattr("ctx_export.targets._cuda_device.missing_gpu", lambda: None)
    monkeypatch.setattr("ctx_export.runtime.session.open_session", opened)
    report = validated(engine_package(copied), lab.checkpoint, need_engine=True)
    assert report.engine is not None and report.engine.state == "measured"
    assert [(r.position, r.how) for r in report.engine.rows] == [
        (r.position, r.how) for r in report.rows
    ]
    assert all(row.passed for row in report.rows)
    wrong = [row.position for row in report.engine.rows if not row.passed]
    assert wrong == ([512, 512, 1023, 1008] if broken else [])
    assert report.failures == (["the engine"] if broken else [])


def export_command(lab: Lab, out: Path, monkeypatch) -> Result:
    from ctx_export.cli.export import main as export_main

    source = lab.source()
    monkeypatch.setattr("ctx_export.pipeline.load_source", lambda *_: source)
    arguments = ["--method", "yarn", "--target", "1k", "--engine", "none", "-o", str(out)]
    return CliRunner().invoke(export_main, [str(lab.checkpoint), *arguments])


def test_an_export_validates_its_package(lab, tmp_path, monkeypatch):
    out = tmp_path / "out"
    result = export_command(lab, out, monkeypatch)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "agrees with PyTorch up to position 1023" in result.stdout.splitlines()[-1]
    summary = Manifest.load(out).validation
    assert summary is not None and summary["passed"] is True
    assert json.loads((out / "report.json").read_text())["passed"] is True


def test_an_export_that_cannot_be_validated_leaves_nothing_and_names_the_way_out(
    lab, tmp_path, monkeypatch
):
    def refused(stage: Path, *_: object, **__: object) -> Any:
        raise UserError(f"{stage} cannot be compared")

    monkeypatch.setattr("ctx_export.validate.run", refused)
    out = tmp_path / "out"
    result = export_command(lab, out, monkeypatch)
    assert result.exit_code == 2
    wanted = f"error: {out} cannot be compared; --no-validate exports without the comparison\n"
    assert result.stderr == wanted
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_went_wrong_exits_1_and_leaves_the_package_with_its_report(
    lab, tmp_path, monkeypatch
):
    from ctx_export.passes import rewrite

    shared = rewrite._shared_inputs

    def without_multiplier(graph: Any, plan: Any, values: Any) -> Any:
        return shared(graph, replace(plan, table=replace(plan.table, multiplier=1.0)), values)

    monkeypatch.setattr(rewrite, "_shared_inputs", without_multiplier)
    out = tmp_path / "out"
    result = export_command(lab, out, monkeypatch)
    assert result.exit_code == 1
    assert result.stderr == f"error: {out} does not agree with PyTorch: see {out}/report.md\n"
    assert "DOES NOT AGREE with PyTorch" in result.stdout.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    summary = Manifest.load(out).validation
    assert summary is not None and summary["passed"] is False
    assert "DOES NOT AGREE with PyTorch" in (out / "report.md").read_text()
    report = json.loads((out / "report.json").read_text())
    assert {row["position"] for row in report["rows"] if not row["passed"]} > {64, 512, 1023}
    with open_session(out) as session:  # a whole package
        assert session.feed(np.arange(5)[None]).shape == (1, 5, tiny.VOCAB)
