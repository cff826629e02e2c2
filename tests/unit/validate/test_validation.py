"""Oracles: differences, plans and refusals computed by hand. Whole packages: tests/e2e."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import CacheInfo, Manifest
from ctx_export.validate import validation
from ctx_export.validate.report import ValidationReport
from ctx_export.validate.validation import relative_difference, run, update_package
from tests.support import tiny
from tests.unit.runtime.fakes import manifest


def table(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("ours", "theirs", "difference"),
    [
        ((1.0, 0.5), (1.0, 0.5), 0.0),
        ((1.0, 0.5), (1.0, 0.25), 1.0),
        ((3.0, 0.5), (4.0, 0.5), 0.25),
        ((-1.0,), (1.0,), 2.0),
        ((1.0, 0.0), (1.0, 0.0), 0.0),  # proportional: frequencies that do not turn
        ((1.0, 1e-9), (1.0, 0.0), math.inf),
        ((1.0, 0.0), (1.0, 0.5), 1.0),
    ],
)
def test_tables_differ_by_their_worst_frequency(ours, theirs, difference):
    assert relative_difference(table(*ours), table(*theirs)) == difference


def test_a_frequency_that_is_no_number_is_not_passed_over():
    assert math.isnan(relative_difference(table(1, math.nan), table(1, 1)))


def test_tables_of_different_lengths_are_of_different_models():
    with pytest.raises(UserError, match="the package has 1 frequencies, the reference 2"):
        relative_difference(table(1), table(1, 2))


def package_of(tokens: int, **changes) -> Manifest:
    cache = CacheInfo(policy="full", sinks=0, window=0, capacity=tokens, keys="rotated")
    return manifest(cache=cache, layers=2, kv_heads=3, head_dim=8, **changes)


def test_probes_are_kept_while_their_caches_fit():
    """A token takes 2·2·3·8·4 = 384 bytes, three times; original context 16."""
    package = package_of(256)
    plan, skipped = validation._affordable(package, 40, math.inf)
    assert [(probe.start, probe.end) for probe in plan.probes] == [
        (64, 80),
        (128, 144),
        (240, 256),
    ]
    assert skipped == ()
    plan, skipped = validation._affordable(package, 40, 3 * 384 * 144)
    assert [probe.start for probe in plan.probes] == [64, 128]
    assert [text.split(" need ")[0] for text in skipped] == ["positions 240 to 255"]
    plan, skipped = validation._affordable(package, 40, 3 * 384 * 80 - 1)
    assert plan.probes == () and plan.prefill == 40
    assert [text.split(" need ")[0] for text in skipped] == [
        "positions 64 to 79",
        "positions 128 to 143",
        "positions 240 to 255",
    ]


def test_what_is_missing_is_told_in_gibibytes():
    assert 3 * 384 * (1 << 22) == 4.5 * 2**30
    _, skipped = validation._affordable(package_of(1 << 22), 4096, 3 * 2.0**30)
    assert skipped == (
        "positions 4194288 to 4194303 need 4.5 GiB of memory for caches, the model leaves 3.0 GiB",
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("checkpoint"))


SCALING = {"inv_freq": [1.0] * 8, "multiplier": 1.0, "parameters": {}}


def tiny_manifest(**changes) -> Manifest:
    model = {
        "family": "llama",
        "layers": tiny.LAYERS,
        "heads": tiny.HEADS,
        "kv_heads": tiny.KV_HEADS,
        "head_dim": tiny.HEAD_DIM,
        "vocab": tiny.VOCAB,
        "original_context": tiny.ORIGINAL_CONTEXT,
    }
    return manifest(**{"model": model, "scaling": SCALING, **changes})


def cache(rule: str = "sliding-window") -> CacheInfo:
    return CacheInfo(policy="bounded", rule=rule, sinks=0, window=8, capacity=100, keys="rotated")


@pytest.mark.parametrize(
    ("package", "options", "words"),
    [
        (tiny_manifest(), {"budget": 0}, "budget is 0: give at least 1 token"),
        (tiny_manifest(), {"tolerance": 2.0}, "tolerance is 2: give a share of the logit scale"),
        (tiny_manifest(method="landmark"), {}, "method landmark has no PyTorch reference"),
        (
            tiny_manifest(cache=cache(rule="h2o")),
            {},
            "a cache of rule h2o with 0 sinks and window 8 has no PyTorch reference",
        ),
        (
            tiny_manifest(cache=cache(), method="landmark"),
            {},
            "method landmark has no PyTorch reference",
        ),
        (
            tiny_manifest(cache=cache(), scaling={**SCALING, "length_table": {"ramp": []}}),
            {},
            "scaling.length_table of the manifest is not valid: 'short_frequencies'",
        ),
        (tiny_manifest(), {"need_engine": True}, "has no engine to validate"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_pytorch_runs(
    checkpoint, tmp_path, monkeypatch, package, options, words
):
    monkeypatch.setattr(validation, "reference_logits", None)
    monkeypatch.setattr(validation, "pairwise_logits", None)
    package.save(tmp_path)
    with pytest.raises(UserError, match=words):
        run(tmp_path, checkpoint, **options)


def test_a_directory_that_is_no_package_is_refused(checkpoint, tmp_path):
    with pytest.raises(UserError, match="is not a package: it has no manifest"):
        run(tmp_path, checkpoint)


@pytest.mark.parametrize(
    ("precision", "ort", "engine", "peers"),
    [
        ("fp32", 1e-3, 1e-3, [(), (), ()]),
        ("fp16", None, None, [("fp16",)] * 3),
        ("bf16", 1e-3, None, [(), (), ("bf16",)]),
    ],
)
def test_a_cpu_computes_bfloat16_in_float32_an_engine_does_not(precision, ort, engine, peers):
    """PyTorch runs in a low precision only where a runtime that can run here is held to it."""
    package = manifest(precision=precision)
    engines = [
        None,
        validation._Engine(runtime="tensorrt", plugin_layers=1, sites=1, missing="no GPU"),
        validation._Engine(runtime="tensorrt", plugin_layers=1, sites=1, missing=None),
    ]
    rules = [validation._rules(package, None, found) for found in engines]
    assert set(rules[0]) == {"ort"}
    assert (rules[2]["ort"].tolerance, rules[2]["engine"].tolerance) == (ort, engine)
    assert rules[2]["engine"].precision == precision
    found = [validation._peers(*pair) for pair in zip(rules, engines, strict=True)]
    assert found == peers


def test_the_report_is_written_into_package_and_manifest(tmp_path):
    before = tiny_manifest()
    before.save(tmp_path)
    report = ValidationReport(
        facts={"runtime": "onnxruntime, CPU"},
        rule="none",
        max_context=100,
        rows=(),
        frequency_error=math.inf,
        multiplier_error=0.0,
    )
    after = update_package(tmp_path, report)
    assert after.validation == report.summary
    assert Manifest.load(tmp_path) == after
    assert Manifest.load(tmp_path).method == before.method
    assert {path.name for path in tmp_path.iterdir()} == {
        "manifest.json",
        "report.json",
        "report.md",
    }
