from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ctx_export.cli.plan import main
from ctx_export.core.recipe import Recipe
from ctx_export.planning.devices import devices
from ctx_export.planning.memory import ACTIVATIONS
from tests.unit.cli.conftest import RunPython
from tests.unit.planning.configs import GEMMA3_1B, LLAMA2_70B, MIXTRAL, write

HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "onnx_ir", "onnxscript", "tensorrt")


@pytest.fixture
def llama(tmp_path: Path) -> str:
    return write(tmp_path / "llama2-70b.json", LLAMA2_70B)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def lines(*arguments: object) -> list[str]:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def report(*arguments: object) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refusal(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and result.stderr.count("\n") == 1
    return result.stderr


def test_llama_2_70b_at_128k(llama: str) -> None:
    """KV: 2 · 80 · 8 · 128 · 131072 · 2 bytes = 40 GiB; weights: 68976648192 · 2 = 128.5 GiB; a
    decode reads both but the embeddings, 32000 · 8192 · 2 = 0.5 GiB. Workspace: 32768 rows of 128
    sums and a state of 8 bytes = 16.25 MiB, for each of two contexts."""
    shown = lines(llama, "--target", "128k", "--method", "yarn", "--method", "streaming")
    assert shown == [
        "model          llama2-70b: llama, 80 layers, 64 heads on 8, head dimension 128, "
        "vocabulary 32000",
        "weights        128.5 GiB in fp16, 68976648192 parameters (counted from config.json)",
        "target         128k tokens, trained on 4k; 1 sequence",
        "activations    200.1 MiB for each of 2 execution contexts (estimate), 1024 new tokens a "
        "call",
        "caches         yarn: 80 layers that grow (causal), 131072 slots, 8 KV heads, float16",
        "caches         streaming: 80 layers of fixed size (streaming), 5119 slots, 8 KV heads, "
        "float16",
        "",
        "method      KV/token  KV/sequence  workspace      total     prefill     decode",
        "yarn       320.0 KiB     40.0 GiB   16.2 MiB  168.5 GiB  40.5 PFLOP  168.0 GiB",
        "streaming        0 B      1.6 GiB   16.2 MiB  130.1 GiB  19.3 PFLOP  129.2 GiB",
        "",
        *shown[11:],
    ]


def test_no_context_at_all_says_how_to_plan_for_fewer(llama: str) -> None:
    """Weights of 128.5 GiB leave 0.5 GiB of 129 GiB: a cache of 4k tokens takes 1.25 GiB. A cache
    of fixed size does not get smaller with the context."""
    common = (llama, "--target", "8k", "--reserve", "0", "--memory")
    told = "none: not even the tokens that the model was trained on fit"
    assert told in " ".join(lines(*common, "129GiB", "--method", "yarn"))
    assert told not in " ".join(lines(*common, "140GiB", "--method", "yarn"))
    assert told not in " ".join(lines(*common, "129GiB", "--method", "streaming"))


def test_the_exact_bytes_are_in_json(llama: str) -> None:
    found = report(llama, "--target", "128k", "--method", "yarn", "--max-batch", "2")
    (method,) = found["methods"]
    assert found["weights"]["bytes"] == 2 * 68976648192
    assert (found["weights"]["origin"], found["weights"]["exact"]) == ("counted", True)
    assert method["kv_cache"]["bytes_per_sequence"] == 2 * 80 * 8 * 128 * 131072 * 2
    assert method["kv_cache"]["bytes"] == 2 * 42949672960
    assert method["kv_cache"]["bytes_per_token"] == 327680
    assert method["workspace"] == {"bytes": 32768 * 520, "contexts": 2, "layers": [32768 * 520]}
    exact = 2 * 68976648192 + 2 * 42949672960 + 2 * 32768 * 520
    assert method["exact_bytes"] == exact
    estimated = method["estimated"]
    assert estimated["formula"] == ACTIVATIONS
    assert estimated["needed_bytes"] == (
        exact + 2 * estimated["activation_bytes"] + estimated["growing_bytes"]
    )
    (kind,) = method["kv_cache"]["layers"]
    assert (kind["policy"], kind["rule"], kind["capacity"]) == ("full", "causal", 131072)
    assert (kind["layers"], kind["kv_heads"], kind["dtype"]) == (80, 8, "float16")
    assert method["decode"]["sequences"] == 2
    assert method["prefill"]["tokens"] == 131072


def test_lines_stay_narrow(llama: str, tmp_path: Path) -> None:
    models = [llama, write(tmp_path / "g.json", GEMMA3_1B), write(tmp_path / "m.json", MIXTRAL)]
    for model in models:
        for more in ((), ("--device", "h200"), ("--device", "all")):
            shown = lines(model, "--target", "256k", *more)
            assert max(map(len, shown)) <= 110


def test_columns_are_aligned(llama: str) -> None:
    shown = lines(llama, "--target", "128k", "--device", "b200")
    start = next(i for i, line in enumerate(shown) if line.startswith("method"))
    table = shown[start : shown.index("", start)]
    rows = [line for line in table if not line.startswith(" ") and "refused" not in line]
    assert len(rows) == 17  # sixteen methods and the header
    assert len({len(line) for line in rows}) == 1
    for name in ("KV/token", "KV/sequence", "total", "decode", "context", "batch", "ms ≥"):
        end = table[0].index(name) + len(name)
        assert all(line[end - 1] != " " and line[end : end + 1] in (" ", "") for line in rows)


def test_a_method_that_refuses_shows_its_reason(llama: str) -> None:
    shown = " ".join(lines(llama, "--target", "128k"))
    assert "theta           refused: scaling.rope_theta is missing" in shown
    refused = {m["method"] for m in report(llama, "--target", "128k")["methods"] if m["refused"]}
    assert refused == {"theta", "longrope"}
    with_theta = report(
        llama, "--target", "128k", "--method", "theta", "--set", "scaling.rope_theta=1e6"
    )
    assert with_theta["methods"][0]["refused"] is None


def test_one_memory_is_in_the_table(llama: str) -> None:
    shown = lines(llama, "--target", "8k", "--method", "yarn", "--memory", "200GiB")
    assert "memory         200GiB: 180.0 GiB of 200.0 GiB, 10% kept free" in shown
    (header,) = (line for line in shown if line.startswith("method"))
    assert header.split()[-2:] == ["context", "batch"]  # no bandwidth, no time
    (row,) = (line for line in shown if line.startswith("yarn  "))
    fit = report(llama, "--target", "8k", "--method", "yarn", "--memory", "200GiB")["methods"][0][
        "fits"
    ][0]
    assert row.split()[-2:] == [str(fit["largest_context"]), str(fit["largest_batch"])]
    assert fit["usable_bytes"] == 180 * (1 << 30)
    assert fit["fits"] and fit["decode_ms_lower_bound"] is None


def test_a_device_with_a_bandwidth_has_a_bound(llama: str) -> None:
    """H200: 4.8 TB/s."""
    found = report(
        llama,
        "--target",
        "8k",
        "--method",
        "streaming",
        "--device",
        "h200",
        "--kv-cache-dtype",
        "fp8",
        "--reserve",
        "0",
    )["methods"][0]
    (fit,) = found["fits"]
    assert fit["decode_ms_lower_bound"] == pytest.approx(found["decode"]["bytes"] / 4.8e9)
    assert (fit["any_context"], fit["largest_context"]) == (True, None)
    shown = lines(
        llama,
        "--target",
        "8k",
        "--method",
        "streaming",
        "--device",
        "h200",
        "--kv-cache-dtype",
        "fp8",
        "--reserve",
        "0",
    )
    (row,) = (line for line in shown if line.startswith("streaming "))
    assert row.split()[-3] == "any"
    assert any("a lower bound of one step and no measurement" in line for line in shown)


def test_several_devices_have_a_table_each(llama: str) -> None:
    shown = lines(llama, "--target", "8k", "--device", "all", "--memory", "1TB")
    for device in devices():
        assert any(line.startswith(f"{device.name}: ") for line in shown)
    start = shown.index("1TB: 838.2 GiB of 931.3 GiB")
    assert shown[start + 1].split() == ["context", "batch", "methods"]
    assert any("a Jetson's memory is also the CPU's" in line for line in shown)


def test_a_recipe_is_planned_alone(tmp_path: Path, llama: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"model: {llama}\nmethod: yarn\ntarget: 64k\ncache: streaming\n")
    (method,) = report("--recipe", file)["methods"]
    assert (method["method"], method["cache"]) == ("yarn + streaming", "streaming")
    assert report("--recipe", file, "--target", "128k")["target"] == 131072


def test_the_default_is_the_demo_at_its_own_context() -> None:
    found = report()
    assert (found["model"]["name"], found["target"]) == ("demo", 256)
    assert found["weights"]["origin"] == "headers"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing"], "nothing is not there: name a checkpoint directory"),
        (["owner/model"], "could not be downloaded from the hub"),
        (["demo", "--method", "yarm"], "did you mean"),
        (["demo", "--target", "many"], "--target 'many' is not a size"),
        (["demo", "--target", "100"], "target 100 is below the original context 256"),
        (["demo", "--memory", "lots"], "memory 'lots' is not a size"),
        (["demo", "--device", "abacus"], "unknown device 'abacus'"),
        (["demo", "--reserve", "200%"], "reserve '200%'"),
        (["demo", "--precision", "int3"], "precision is 'int3'"),
        (["demo", "--kv-cache-dtype", "int3"], "kv_cache_dtype is 'int3'"),
        (["demo", "--cache", "heap"], "unknown cache 'heap'"),
        (["demo", "--recipe", "none.yaml"], "recipe none.yaml cannot be read"),
        (["demo", "--method", "theta"], "scaling.rope_theta is missing"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], told: str) -> None:
    assert told in refusal(*arguments)


def test_a_decoder_that_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    model = write(tmp_path / "mla.json", LLAMA2_70B, kv_lora_rank=512)
    assert "kv_lora_rank = 512" in refusal(model, "--target", "128k")


def test_every_size_option_of_an_export_is_taken() -> None:
    """Those of a recipe that change memory; the others are about building and checking."""
    of_building = {
        "model",
        "reference",
        "output",
        "method",
        "calibration",
        "engine",
        "io",
        "triton_repository",
        "parameters",
        "copy_weights",
        "validate",
        "tolerance",
        "force",
    }
    taken = {parameter.name for parameter in main.params}
    assert set(Recipe.__dataclass_fields__) - of_building <= taken


def test_nothing_heavy_is_imported(run_python: RunPython, llama: str) -> None:
    done = run_python(
        "import sys\n"
        "from ctx_export.cli.plan import main\n"
        "try:\n"
        f"    main([{llama!r}, '--target', '128k', '--device', 'all', '--max-batch', '2'])\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
    assert "40.0 GiB" in done.stdout
