"""The findings on transformers and onnxruntime-genai against the tables that those libraries make.

transformers 5 is run here; the other two were run by the scripts in tests/golden. A verdict must
follow from what a library does: an error is `refused`, another table than the settings mean is
`dropped` or `misread`, and the same table is neither.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctx_export.frontends.checkpoint import model_spec
from ctx_export.inspection.runtimes import judge
from ctx_export.inspection.runtimes.base import Finding, Verdict
from ctx_export.inspection.runtimes.transformers import WHOLE_HEAD
from ctx_export.inspection.scaling_settings import read_scaling_settings
from ctx_export.scaling import resolve
from tests.golden.rope_cases import BASE, CASES, LONGROPE, OF_MISTRAL, ORIGINAL, length

GOLDEN = Path(__file__).parents[3] / "golden"
GENAI = json.loads((GOLDEN / "genai_tables.json").read_text())
TRANSFORMERS_4 = json.loads((GOLDEN / "transformers_4_tables.json").read_text())
# cos and sin of one radian and less in float32; the tables that are to differ do so by 1e-2.
RELATIVE = 1e-5


def meant(config: dict[str, Any]) -> tuple[np.ndarray, float]:
    """inv_freq and multiplier that the settings stand for (FORMULAS, computed by `scaling`)."""
    spec = model_spec(config, "fp32")
    shape, rope = spec.rotary_shape(), spec.rope
    made = resolve(rope.method, shape, length(config), None, rope.parameters)
    return made.table.inv_freq, made.table.multiplier


def same(config: dict[str, Any], inv_freq: Any, multiplier: float) -> bool:
    expected, multiplies = meant(config)
    found = np.asarray(inv_freq, np.float64)
    return (
        found.shape == expected.shape
        and np.allclose(found, expected, rtol=RELATIVE, atol=1e-9)
        and bool(np.isclose(multiplier, multiplies, rtol=RELATIVE))
    )


def found(config: dict[str, Any], runtime: str) -> tuple[Finding, ...]:
    """Findings on tables; what becomes of cached keys, no table shows."""
    findings = judge(read_scaling_settings(config), [runtime])
    return tuple(finding for finding in findings if finding.setting != "cached keys")


def check(config: dict[str, Any], runtime: str, golden: dict[str, Any]) -> None:
    verdicts = {finding.verdict for finding in found(config, runtime)}
    if "error" in golden:
        assert verdicts == {Verdict.REFUSED}, golden["error"]
    elif same(config, golden["inv_freq"], golden["multiplier"]):
        assert verdicts <= {Verdict.HONOURED}
    else:
        assert verdicts and all(verdict.silent for verdict in verdicts)


@pytest.mark.parametrize("case", CASES)
def test_onnxruntime_genai_treats_a_llama_as_found(case):
    check(CASES[case], "onnxruntime-genai", GENAI["llama"][case])


@pytest.mark.parametrize("case", OF_MISTRAL)
def test_onnxruntime_genai_treats_a_mistral_as_found(case):
    check(OF_MISTRAL[case], "onnxruntime-genai", GENAI["mistral"][case])


@pytest.mark.parametrize("case", CASES)
def test_transformers_4_treats_a_llama_as_found(case):
    golden = TRANSFORMERS_4["tables"][case]
    expected, _ = meant(CASES[case])
    if "error" not in golden and 2 * len(golden["inv_freq"]) != 64:
        assert len(golden["inv_freq"]) == len(expected)
        golden = {"error": "the table covers half of a head that llama rotates as a whole"}
    check(CASES[case], "transformers-4", golden)


def test_the_goldens_are_of_the_versions_that_are_judged():
    from ctx_export.inspection.runtimes import runtimes

    assert GENAI["onnxruntime-genai"] == runtimes()["onnxruntime-genai"].version
    assert TRANSFORMERS_4["transformers"] == runtimes()["transformers-4"].version


@pytest.mark.parametrize("case", CASES)
def test_transformers_treats_a_llama_as_found(case):
    check(CASES[case], "transformers", transformers_table(CASES[case]))


def transformers_table(config: dict[str, Any]) -> dict[str, Any]:
    """What the installed transformers rotates a head by at the last position."""
    import torch
    from transformers import AutoConfig
    from transformers.models.llama import modeling_llama

    entries = json.loads(json.dumps({k: v for k, v in config.items() if k != "model_type"}))
    try:
        made = AutoConfig.for_model("llama", **entries)
        rotary = modeling_llama.LlamaRotaryEmbedding(made)
        last = torch.tensor([[length(config) - 1]])
        head = torch.ones(1, 1, 1, config["head_dim"])
        cos, sin = rotary(head, last)
        modeling_llama.apply_rotary_pos_emb(head, head, cos, sin)
    except (KeyError, RuntimeError) as error:
        return {"error": str(error)}
    return {"inv_freq": rotary.inv_freq.tolist(), "multiplier": rotary.attention_scaling}


def test_the_installed_transformers_is_the_version_that_is_judged():
    import transformers

    from ctx_export.inspection.runtimes import runtimes

    assert transformers.__version__ == runtimes()["transformers"].version


@pytest.mark.parametrize(
    ("rope", "wrong"),
    [
        ({"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}, True),
        ({"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}, False),
    ],
    ids=["dynamic", "linear"],
)
def test_transformers_decodes_otherwise_than_it_reads_where_cached_keys_are_misread(
    rope, wrong, tmp_path
):
    """Oracle: its own logits, decoded token by token and computed at once, past the context."""
    import torch

    from tests.support import tiny

    checkpoint = tiny.save(tmp_path, rope_parameters=rope)
    ids = torch.randint(0, tiny.VOCAB, (1, 100), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole = tiny.load(checkpoint)(ids).logits[:, -1]
        model, cache = tiny.load(checkpoint), None
        for token in ids[0]:
            step = model(token[None, None], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
    error = float((step.logits[:, -1] - whole).abs().max() / whole.abs().max())
    config = json.loads((checkpoint / "config.json").read_text())
    findings = judge(read_scaling_settings(config), ["transformers"])
    assert ("cached keys" in {finding.setting for finding in findings}) is wrong
    assert (error > 1e-2) if wrong else (error < 1e-4)


def test_transformers_looks_for_truncate_beside_nested_settings():
    """Oracle: its own ramp, of gemma3's layers that see every token."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    yarn = {
        "rope_type": "yarn",
        "factor": 4.0,
        "rope_theta": 1e4,
        "original_max_position_embeddings": 512,
        "truncate": False,
    }
    config = {
        "vocab_size": 97,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": yarn,
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    }
    made = AutoConfig.for_model("gemma3_text", **json.loads(json.dumps(config)))
    inv_freq, _ = ROPE_INIT_FUNCTIONS["yarn"](made, layer_type="full_attention")
    config = {**config, "model_type": "gemma3_text"}
    assert not np.allclose(inv_freq.numpy(), meant(config)[0], rtol=1e-3)
    (finding,) = found(config, "transformers")
    assert (finding.setting, finding.verdict) == ("truncate", Verdict.DROPPED)


PHI3 = {**BASE, "model_type": "phi3", "pad_token_id": 0, **ORIGINAL}


@pytest.mark.parametrize(
    ("entries", "refused"),
    [
        ({"rope_type": "linear", "factor": 2.0}, True),
        ({"rope_type": "yarn", "factor": 4.0, **ORIGINAL}, True),
        (LONGROPE, False),
        ({**LONGROPE, "rope_type": "su"}, False),
    ],
    ids=["linear", "yarn", "longrope", "su"],
)
def test_transformers_takes_no_type_but_longrope_for_phi3(entries, refused):
    """Oracle: whether its own config can be made."""
    from transformers import AutoConfig

    config = {**PHI3, "rope_scaling": entries}
    given = json.loads(json.dumps({k: v for k, v in config.items() if k != "model_type"}))
    failed = False
    try:
        AutoConfig.for_model("phi3", **given)
    except Exception:
        failed = True
    verdicts = {finding.verdict for finding in found(config, "transformers")}
    assert failed is refused
    assert (Verdict.REFUSED in verdicts) is refused


@pytest.mark.parametrize("family", WHOLE_HEAD)
def test_families_that_rotate_whole_heads_do_not_read_the_share(family):
    """Oracle: their modeling files."""
    import transformers

    model = Path(transformers.__file__).parent / "models" / family
    assert "partial_rotary_factor" not in (model / f"modeling_{family}.py").read_text()
