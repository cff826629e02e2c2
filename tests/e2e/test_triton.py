"""Triton model repositories: read as Triton reads them, and run as its sequence batcher would.

config.pbtxt is parsed into Triton's published ModelConfig message and held against the graph and
against the rules by which Triton's core and its onnxruntime back end refuse a configuration. A
sequence is then run in a stock onnxruntime with the states that the configuration describes.
"""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import yaml
from google.protobuf import text_format

from ctx_export.cli.export import main as export_command
from ctx_export.core.errors import UserError
from ctx_export.core.manifest import Manifest
from ctx_export.core.recipe import Recipe
from ctx_export.frontends.source import Source
from ctx_export.pipeline import export_source, load_source, run
from ctx_export.runtime.session import open_session
from ctx_export.serving.pbtxt import text_format as written
from ctx_export.serving.triton import model_config

PACKAGES: dict[str, dict[str, Any]] = {
    "full": {"method": "yarn"},
    "bounded": {"method": "yarn", "sinks": 4, "window": 60},
    "by-length": {"method": "dynamic-ntk"},
    "memory": {"method": "memory"},
    "quantised": {"method": "yarn", "kv_cache_dtype": "int8"},
}
NUMPY = {"TYPE_FP32": np.float32, "TYPE_INT64": np.int64, "TYPE_INT8": np.int8}
ORT = {"TYPE_FP32": "tensor(float)", "TYPE_INT64": "tensor(int64)", "TYPE_INT8": "tensor(int8)"}


@cache
def source() -> Source:
    return load_source(Recipe(precision="fp32"))


def recipe(root: Path, name: str, **options: Any) -> Recipe:
    given = {"target": 512, "precision": "fp32", "max_batch": 2, "max_chunk": 32, **options}
    return Recipe(
        engine="none",
        validate=False,
        output=root / name,
        triton_repository=root / "repository",
        **given,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages by their names, and `repository` with a model of each."""
    root = tmp_path_factory.mktemp("triton")
    for name, options in PACKAGES.items():
        export_source(source(), recipe(root, name, **options))
    return root


def message() -> Any:
    """Triton's own message. Its module is loaded alone: the client around it needs gRPC."""
    package = find_spec("tritonclient")
    if package is None or package.origin is None:
        pytest.skip("tritonclient is not installed: make setup")
    path = Path(package.origin).parent / "grpc" / "model_config_pb2.py"
    spec = spec_from_file_location("model_config_pb2", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules.get("model_config_pb2")
    if module is None:
        module = module_from_spec(spec)
        sys.modules["model_config_pb2"] = module
        spec.loader.exec_module(module)
    return module.ModelConfig()


def parsed(text: str) -> Any:
    return text_format.Parse(text, message())


def read(model: Path) -> Any:
    return parsed((model / "config.pbtxt").read_text())


def model_dims(tensor: Any) -> list[int]:
    """What the model gets of an input, without the batch."""
    return list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)


def kind(tensor: Any) -> str:
    field = tensor.DESCRIPTOR.fields_by_name["data_type"]
    return str(field.enum_type.values_by_number[tensor.data_type].name)


def agrees(graph: Any, dims: list[int], *, exactly: bool) -> bool:
    """CompareDimsSupported of Triton's back ends, with a batch in front."""
    shape = [size if isinstance(size, int) else -1 for size in graph.shape]
    if shape[0] != -1 or len(shape) != 1 + len(dims):
        return False
    pairs = zip(shape[1:], dims, strict=True)
    return all(ours == theirs or (not exactly and ours == -1) for ours, theirs in pairs)


@pytest.mark.parametrize("name", PACKAGES)
def test_the_configuration_is_the_graph_s(root, name):
    model = root / "repository" / name
    config = read(model)
    assert (config.name, config.backend) == (name, "onnxruntime")
    assert config.max_batch_size == 2
    path = model / "1" / config.default_model_filename
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    states = config.sequence_batching.state
    given = [tensor.name for tensor in config.input] + [state.input_name for state in states]
    assert sorted(given) == sorted(inputs)  # Triton counts them, and refuses one more or less
    assert [t.name for t in config.output] == ["logits"]
    assert {s.output_name for s in states} | {"logits"} == set(outputs)
    for tensor in config.input:
        assert ORT[kind(tensor)] == inputs[tensor.name].type
        assert agrees(inputs[tensor.name], model_dims(tensor), exactly=False)
    for tensor in config.output:
        assert ORT[kind(tensor)] == outputs[tensor.name].type
        assert agrees(outputs[tensor.name], model_dims(tensor), exactly=True)
    for state in states:
        for graph in (inputs[state.input_name], outputs[state.output_name]):
            assert ORT[kind(state)] == graph.type
            assert agrees(graph, list(state.dims), exactly=False)
        assert state.input_name.replace("past_key_values", "present") == state.output_name


@pytest.mark.parametrize("name", PACKAGES)
def test_it_meets_what_triton_s_core_asks_of_a_configuration(root, name):
    config = read(root / "repository" / name)
    for tensor in (*config.input, *config.output):
        assert tensor.dims and all(size >= 1 or size == -1 for size in tensor.dims)
        if tensor.HasField("reshape"):  # an empty one stands for a single number
            assert list(tensor.dims) == [1] and not tensor.reshape.shape
    batching = config.sequence_batching
    assert batching.WhichOneof("strategy_choice") == "oldest"
    assert batching.oldest.max_candidate_sequences >= config.max_batch_size
    for state in batching.state:
        assert all(size >= 1 for size in state.dims)  # one size for every sequence of a batch
        (initial,) = state.initial_state
        assert initial.name and initial.data_type == state.data_type
        assert list(initial.dims) == list(state.dims)
        assert initial.WhichOneof("state_data") == "zero_data"
    assert len({state.input_name for state in batching.state}) == 10


class SequenceBatcher:
    """Sequences over a stock onnxruntime, their states as config.pbtxt describes them."""

    def __init__(self, model: Path) -> None:
        self.config = read(model)
        self.states: dict[int, dict[str, Any]] = {}
        path = model / "1" / self.config.default_model_filename
        self.session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])

    def infer(self, requests: dict[int, dict[str, Any]]) -> dict[int, Any]:
        """Requests of different sequences, computed together; a new sequence begins."""
        feeds: dict[str, Any] = {}
        for tensor in self.config.input:
            rows = [np.array(request[tensor.name], np.int64) for request in requests.values()]
            for row in rows:
                wanted = [1, *tensor.dims]
                assert len(row.shape) == len(wanted)
                assert all(w in (-1, s) for w, s in zip(wanted, row.shape, strict=True))
            whole = np.concatenate(rows)
            rest = whole.shape[1:] if model_dims(tensor) else ()
            feeds[tensor.name] = whole.reshape(len(rows), *rest)
        for state in self.config.sequence_batching.state:
            zeros = np.zeros([1, *state.initial_state[0].dims], NUMPY[kind(state)])
            held = [self.states.setdefault(s, {}).get(state.input_name, zeros) for s in requests]
            feeds[state.input_name] = np.concatenate(held)
        names = [value.name for value in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(names, feeds), strict=True))
        for state in self.config.sequence_batching.state:
            for row, sequence in enumerate(requests):
                held = outputs[state.output_name][row : row + 1]
                self.states[sequence][state.input_name] = held
        return {sequence: outputs["logits"][row, -1] for row, sequence in enumerate(requests)}


def request(tokens: list[int], seen: int, config: Any) -> dict[str, Any]:
    made = {
        "input_ids": [tokens],
        "seen": [[seen]],
        "new": [[len(tokens)]],
        "logit_rows": [[len(tokens) - 1]],
        "rope_length": [[400]],
    }
    return {tensor.name: made[tensor.name] for tensor in config.input}


@pytest.mark.parametrize("name", PACKAGES)
def test_sequences_of_requests_give_the_session_s_logits(root, name):
    """Two texts in chunks, then tokens of both together; past the wrap of a bounded cache."""
    # In int8 a key that is a rounding error off the middle between two numbers becomes either.
    tolerance = 5e-4 if name == "quantised" else 2e-5
    batcher = SequenceBatcher(root / "repository" / name)
    rng = np.random.default_rng(5)
    texts = {7: rng.integers(3, 2048, 150), 9: rng.integers(3, 2048, 83)}
    after = rng.integers(3, 2048, (6, 2))
    found: dict[int, list[Any]] = {7: [], 9: []}
    for sequence, text in texts.items():
        for start in range(0, len(text), 32):
            given = request(text[start : start + 32].tolist(), start, batcher.config)
            last = batcher.infer({sequence: given})
        found[sequence].append(last[sequence])
    for step, tokens in enumerate(after):
        together = {
            sequence: request([int(token)], len(texts[sequence]) + step, batcher.config)
            for sequence, token in zip(texts, tokens, strict=True)
        }
        for sequence, logits in batcher.infer(together).items():
            found[sequence].append(logits)
    for row, (sequence, text) in enumerate(texts.items()):
        with open_session(root / name, chunk=32) as session:
            planned = 400 if session.contract.rope_length is not None else None
            expected = [session.feed([text], planned, logits="last")[0]]
            for tokens in after:
                fed = session.feed([[int(tokens[row])]], planned, logits="last")
                expected.append(fed[0])
        for ours, theirs in zip(found[sequence], expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def test_files_are_shared_with_the_package(root):
    manifest = Manifest.load(root / "full")
    version = root / "repository" / "full" / "1"
    names = ["model.onnx", *manifest.weights["files"]]
    assert sorted(path.name for path in version.iterdir()) == sorted(names)
    for name in names:
        ours, theirs = version / name, root / "full" / name
        assert ours.read_bytes() == theirs.read_bytes()
        if manifest.weights["storage"] == "linked":
            assert ours.samefile(theirs)


def test_the_readme_holds_valid_manifests_and_code(root):
    for name in ("full", "by-length", "bounded"):
        text = (root / "repository" / name / "README.md").read_text()
        assert "$" not in text.replace('"$PWD', "")
        (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        compile(code, "README.md", "exec")
        assert all(f'"{t.name}": ' in code for t in read(root / "repository" / name).input)
        (manifests,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        deployment, service, scaler = yaml.safe_load_all(manifests)
        assert deployment["spec"]["template"]["metadata"]["labels"] == service["spec"]["selector"]
        assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"] == name
    assert "any number of tokens" in text


def engine_manifest(package: Path, runtime: str) -> Manifest:
    raw = json.loads((package / "manifest.json").read_text())
    raw["engine"] = {"runtime": runtime, "version": "11.1", "compute_capabilities": ["9.0"]}
    raw["plugins"] = {"file": "libctx_plugins.so", "sha256": "", "operators": []}
    return Manifest.from_json(raw, package)


def test_an_engine_of_tensorrt_s_is_served_by_its_back_end(root, tmp_path):
    """Both profiles of the engine, on GPUs; the plugin library lies beside and is named."""
    from ctx_export.serving.triton import write_repository

    manifest = engine_manifest(root / "full", "tensorrt")
    config = parsed(written(model_config(manifest, "full")))
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.engine")
    (group,) = config.instance_group
    assert group.kind == group.KIND_GPU and list(group.profile) == ["0", "1"]
    package = tmp_path / "served"
    package.mkdir()
    for name in ("model.engine", "libctx_plugins.so", "manifest.json"):
        (package / name).write_bytes(name.encode())
    write_repository(package, manifest, tmp_path / "models", recipe(tmp_path, "served"))
    version = tmp_path / "models" / "served" / "1"
    assert sorted(p.name for p in version.iterdir()) == ["libctx_plugins.so", "model.engine"]
    text = (version.parent / "README.md").read_text()
    assert "--backend-config=tensorrt,plugins=/models/served/1/libctx_plugins.so" in text


def test_an_engine_of_tensorrt_rtx_s_is_left_out(root):
    config = parsed(written(model_config(engine_manifest(root / "full", "tensorrt-rtx"), "full")))
    assert (config.backend, config.default_model_filename) == ("onnxruntime", "model.onnx")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"io": "genai"}, "io is genai: .* leave --io or --triton-repository out"),
        ({"kv_cache_dtype": "fp8"}, "float8e4m3fn, a type that Triton does not have"),
        ({"method": "landmark", "landmark_token": 5}, "leave --landmark-token or"),
    ],
    ids=["io", "type", "landmark"],
)
def test_what_triton_cannot_serve_is_refused_before_anything_is_written(tmp_path, options, reason):
    with pytest.raises(UserError, match=reason):
        run(recipe(tmp_path, "out", **{"method": "yarn", **options}))
    assert not list(tmp_path.iterdir())


def test_a_model_of_that_name_stays_unless_forced(root, capsys):
    given = ["--method", "none", "--target", "256", "--precision", "fp32", "--no-validate"]
    given += ["--engine", "none", "--triton-repository", str(root / "repository")]
    with pytest.raises(SystemExit) as stopped:
        export_command([*given, "-o", str(root / "more" / ".." / "quantised2")])
    assert stopped.value.code == 2  # the folder `more` is not there
    (root / "repository" / "third").mkdir()
    with pytest.raises(SystemExit) as stopped:
        export_command([*given, "-o", str(root / "third")])
    assert stopped.value.code == 2
    assert "give --force to replace it" in capsys.readouterr().err
    assert not (root / "third").exists()
    with pytest.raises(SystemExit) as stopped:
        export_command([*given, "-o", str(root / "third"), "--force"])
    assert stopped.value.code == 0
    assert "Triton moves the whole cache in every request" in capsys.readouterr().out
    assert (root / "repository" / "third" / "1" / "model.onnx").is_file()
