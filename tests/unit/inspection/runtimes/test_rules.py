"""The tables of rules by themselves, and the runtimes whose sources were read but not run."""

from __future__ import annotations

from typing import Any

import pytest

from ctx_export.core.errors import UserError
from ctx_export.inspection.runtimes import judge, names, runtimes
from ctx_export.inspection.runtimes.base import Verdict
from ctx_export.inspection.scaling_settings import kinds, read_scaling_settings
from tests.golden.rope_cases import (
    BASE,
    BETAS,
    CASES,
    LLAMA3,
    LONGROPE,
    OF_MISTRAL,
    ORIGINAL,
    YARN,
    scaled,
)

PHI3 = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], **ORIGINAL}
KINDS = {"layer_types": ["full_attention"], "sliding_window": 8}
THETA = {"rope_theta": 1e4}
WITHOUT_THETA = {key: value for key, value in BASE.items() if key != "rope_theta"}


def per_kind(spelling: str, main: dict[str, Any], window: dict[str, Any]) -> dict[str, Any]:
    both = {"full_attention": {**main, **THETA}, "sliding_attention": {**window, **THETA}}
    return {**WITHOUT_THETA, "model_type": "gemma3_text", **KINDS, spelling: both}


PLAIN = {"rope_type": "default"}
MORE: dict[str, dict[str, Any]] = {
    "phi3 linear": scaled({"rope_type": "linear", "factor": 2.0}, **PHI3),
    "phi3 longrope": scaled(LONGROPE, **PHI3),
    "phi3 longrope, older key": scaled(
        {**LONGROPE, "type": "longrope", "attention_factor": 1.3}, **PHI3
    ),
    "longrope mscales": scaled({**LONGROPE, "short_mscale": 1.0, "long_mscale": 1.4}, **ORIGINAL),
    "yarn per kind": per_kind("rope_parameters", {**YARN, "truncate": False}, PLAIN),
    "yarn per kind, older spelling": per_kind("rope_scaling", YARN, PLAIN),
    "both kinds scaled": per_kind("rope_parameters", YARN, {"rope_type": "linear", "factor": 2.0}),
    "L not stated": scaled({"rope_type": "yarn", "factor": 4.0, **BETAS}),
    "gemma4 proportional": scaled(
        {"rope_type": "proportional", "factor": 2.0}, model_type="gemma4_text"
    ),
    "mistral with a window": {**OF_MISTRAL["plain"], "sliding_window": 64},
    "yarn attention_factor, truncated": {
        **OF_MISTRAL["plain"],
        "rope_scaling": {**YARN, **BETAS, "attention_factor": 1.0},
    },
    "share in the entries": {
        **WITHOUT_THETA,
        "rope_parameters": {**PLAIN, **THETA, "partial_rotary_factor": 0.5},
    },
    "mscale_all_dim alone": scaled({**YARN, "mscale_all_dim": 0.5}),
    "both mscales": scaled({**YARN, "mscale": 0.7, "mscale_all_dim": 0.3}),
}
ALL = {**CASES, **{f"{name} of mistral": case for name, case in OF_MISTRAL.items()}, **MORE}


@pytest.mark.parametrize("name", names())
def test_every_rule_is_reached_by_some_settings(name):
    settings = [read_scaling_settings(config) for config in ALL.values()]
    silent = [rule for rule in runtimes()[name].rules if not any(map(rule.when, settings))]
    assert [(rule.setting, rule.reason) for rule in silent] == []


@pytest.mark.parametrize("name", names())
def test_every_rule_has_a_source_that_names_a_file(name):
    runtime = runtimes()[name]
    for source in (runtime.source, *(rule.source for rule in runtime.rules)):
        assert any(ending in source for ending in (".py", ".cpp", ".c,"))


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("kind", kinds())
def test_a_type_that_a_runtime_does_not_honour_is_found(name, kind):
    runtime = runtimes()[name]
    if kind in runtime.honours:
        return
    fitting = [c for c in ALL.values() if read_scaling_settings(c).kind == kind]
    fitting = [c for c in fitting if "rope_scaling" in c]
    assert fitting
    for config in fitting:
        verdicts = {finding.verdict for finding in judge(read_scaling_settings(config), [name])}
        assert Verdict.HONOURED not in verdicts


@pytest.mark.parametrize(
    ("runtime", "case", "setting", "verdict"),
    [
        ("vllm", "dynamic", "rope_type dynamic", Verdict.MISREAD),
        ("vllm", "yarn attention_factor", "rope_type yarn", Verdict.HONOURED),
        ("vllm", "yarn untruncated", "rope_type yarn", Verdict.HONOURED),
        ("vllm", "phi3 longrope", "short_factor", Verdict.MISREAD),
        ("vllm", "gemma4 proportional", "factor", Verdict.DROPPED),
        ("tensorrt-llm", "yarn in rope_parameters", "rope_parameters", Verdict.DROPPED),
        ("tensorrt-llm", "base in rope_parameters", "rope_theta", Verdict.DROPPED),
        ("tensorrt-llm", "dynamic", "factor", Verdict.DROPPED),
        ("tensorrt-llm", "yarn attention_factor", "attention_factor", Verdict.DROPPED),
        ("tensorrt-llm", "yarn untruncated", "truncate", Verdict.DROPPED),
        ("tensorrt-llm", "yarn mscale", "mscale, mscale_all_dim", Verdict.MISREAD),
        ("tensorrt-llm", "su", "rope_type", Verdict.REFUSED),
        ("tensorrt-llm", "yarn", "rope_type yarn", Verdict.HONOURED),
        ("llama-cpp", "dynamic", "rope_type dynamic", Verdict.DROPPED),
        ("llama-cpp", "yarn attention_factor", "attention_factor", Verdict.DROPPED),
        ("llama-cpp", "yarn both mscales", "mscale, mscale_all_dim", Verdict.DROPPED),
        ("llama-cpp", "llama3", "original_max_position_embeddings", Verdict.MISREAD),
        ("llama-cpp", "longrope", "short_factor, long_factor", Verdict.DROPPED),
        ("llama-cpp", "mistral with a window", "sliding_window", Verdict.DROPPED),
        ("llama-cpp", "yarn", "rope_type yarn", Verdict.HONOURED),
        ("llama-cpp", "linear, older key", "rope_type linear", Verdict.HONOURED),
    ],
)
def test_what_was_read_in_the_source(runtime, case, setting, verdict):
    findings = judge(read_scaling_settings(ALL[case]), [runtime])
    assert (setting, verdict) in {(finding.setting, finding.verdict) for finding in findings}


def test_llama_3_1_itself_loses_nothing():
    """Meta's settings, which every runtime was made to read."""
    config = scaled({**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 8192})
    config |= {"max_position_embeddings": 131072, "rope_theta": 500000.0}
    assert {f.verdict for f in judge(read_scaling_settings(config))} == {Verdict.HONOURED}


def test_an_attention_factor_that_changes_nothing_is_no_loss():
    stated = scaled({**YARN, **BETAS, "attention_factor": 1.1386294361119891})  # 0.1 · ln 4 + 1
    (finding,) = judge(read_scaling_settings(stated), ["llama-cpp"])
    assert finding.verdict is Verdict.HONOURED


def test_a_refusal_hides_what_would_come_after_it():
    config = {**OF_MISTRAL["yarn without betas"]}
    verdicts = [f.verdict for f in judge(read_scaling_settings(config), ["onnxruntime-genai"])]
    assert set(verdicts) == {Verdict.REFUSED}


def test_an_unknown_runtime_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="'tgi' is not known: choose one of llama-cpp"):
        judge(read_scaling_settings(BASE), ["tgi"])
