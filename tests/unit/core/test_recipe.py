from __future__ import annotations

from pathlib import Path

import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.recipe import Recipe, build_recipe


@pytest.fixture
def recipe_file(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


FULL = """
model: some/Model-1B
method: yarn
target: 128k
factor: 4
original_context: 32k
sinks: 4
window: 1k
precision: fp16
kv_cache_dtype: fp8
engine: none
max_batch: 2
max_chunk: 512
scaling:
  beta_fast: 16
  truncate: false
validate:
  enabled: false
  tolerance: 1e-4
"""


def test_every_key_of_a_file(recipe_file):
    assert build_recipe({}, file=recipe_file(FULL)) == Recipe(
        model="some/Model-1B",
        method="yarn",
        target=131072,
        factor=4.0,
        original_context=32768,
        sinks=4,
        window=1024,
        precision="fp16",
        kv_cache_dtype="fp8",
        engine="none",
        max_batch=2,
        max_chunk=512,
        parameters={"beta_fast": 16.0, "truncate": False},
        validate=False,
        tolerance=1e-4,
    )


def test_nothing_given_is_the_defaults(recipe_file):
    assert build_recipe({"target": None}, file=recipe_file("")) == Recipe()


def test_command_line_beats_set_beats_file_beats_defaults(recipe_file):
    file = recipe_file("target: 8k\nwindow: 8k\nsinks: 8\n")
    recipe = build_recipe({"target": 2048}, file=file, settings=["target=4k", "window=4k"])
    assert (recipe.target, recipe.window, recipe.sinks) == (2048, 4096, 8)
    assert recipe.max_chunk == Recipe().max_chunk


def test_scaling_parameters_merge_key_by_key(recipe_file):
    file = recipe_file("method: yarn\nscaling: {beta_fast: 16, beta_slow: 2}\n")
    recipe = build_recipe(
        {}, file=file, settings=["scaling.beta_slow=3", "scaling.truncate=false"]
    )
    assert recipe.parameters == {"beta_fast": 16.0, "beta_slow": 3.0, "truncate": False}


def test_null_takes_a_value_back(recipe_file):
    file = recipe_file("method: yarn\ntarget: 8k\nscaling: {beta_fast: 16}\n")
    recipe = build_recipe({}, file=file, settings=["target=null", "scaling.beta_fast="])
    assert (recipe.target, recipe.parameters) == (None, {})


def test_hugging_face_s_section_can_be_pasted(recipe_file):
    text = "method: yarn\nscaling: {factor: 4.0, original_max_position_embeddings: 32768}"
    recipe = build_recipe({}, file=recipe_file(text))
    assert (recipe.factor, recipe.original_context, recipe.parameters) == (4.0, 32768, {})


def test_command_line_factor_beats_the_file_s_scaling_factor(recipe_file):
    file = recipe_file("method: yarn\nscaling: {factor: 4.0}")
    assert build_recipe({"factor": 8.0}, file=file).factor == 8.0


def test_two_factors_in_one_file_contradict(recipe_file):
    file = recipe_file("method: yarn\nfactor: 2\nscaling: {factor: 4.0}")
    with pytest.raises(UserError, match=r"factor is 2.0 but scaling.factor is 4.0"):
        build_recipe({}, file=file)


def test_exponents_without_a_point_are_numbers():
    """PyYAML reads 1e6 as text."""
    recipe = build_recipe({"method": "theta"}, settings=["scaling.rope_theta=1e6"])
    assert recipe.parameters == {"rope_theta": 1e6}


def test_lists_can_be_set():
    settings = ["method=longrope", "scaling.short_factor=[1, 1e0]", "scaling.long_factor=[2, 3]"]
    recipe = build_recipe({}, settings=settings)
    assert recipe.parameters == {"short_factor": (1.0, 1.0), "long_factor": (2.0, 3.0)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("taget: 8k", "unknown key taget, did you mean target? (known: model, method"),
        ("original-context: 8k", "did you mean original_context?"),
        ("validate: {tolerence: 1}", "unknown key validate.tolerence, did you mean tolerance?"),
        ("method: yarn\nscaling: {beta_fsat: 1}", "scaling.beta_fsat is unknown, did you mean"),
        ("method: linear\nscaling: {beta_fast: 1}", "scaling.beta_fast is unknown"),
        ("3: 4", "unknown key 3"),
        ("target: a lot", "target 'a lot' is not a size"),
        ("target: 0", "target 0 is not a size"),
        ("target: true", "target True is not a size"),
        ("sinks: -1", "sinks -1 is not a size"),
        ("window: 1.5", "window 1.5 is not a size"),
        ("factor: many", "factor is 'many'"),
        ("factor: .nan", "factor is nan"),
        ("factor: 0.5", "factor is 0.5: it must be a finite number at least 1"),
        ("factor: true", "factor is True"),
        ("method: [yarn]", "method is ['yarn']: it must be text"),
        ("method: yarm", "unknown method 'yarm', did you mean yarn?"),
        ("cache: landmarks", "unknown cache 'landmarks', did you mean landmark?"),
        ("method: memory\ncache: landmark", "memory and cache landmark are two cache policies"),
        ("group: 4\nchunk: 3", "chunk is 3: cache policy self-extend has no such option"),
        ("method: streaming\ngroup: 4", "group is 4: cache policy streaming has no such option"),
        ("cache: self-extend\nsinks: 4", "no such option, but group, neighbor; leave it out"),
        ("memory_tokens: 0", "memory_tokens 0 is not a size"),
        ("landmark_shared: 3", "landmark_shared is 3: it must be true or false"),
        ("method: none\nfactor: 2", "factor is 2: method none takes no factor"),
        ("kv_cache_dtype: int4", "'int4': it must be one of auto, fp8, int8"),
        ("calibration: book.txt", "there is nothing to calibrate: give --kv-cache-dtype fp8 or"),
        (
            "kv_cache_dtype: fp8\ncalibration: no/such.txt",
            "calibration no/such.txt is not a file: name a text",
        ),
        ("precision: int4", "precision is 'int4': it must be one of fp32, fp16, bf16"),
        ("engine: no", "engine is False: it must be text"),
        ("engine: tensorrt_rtx", "engine is 'tensorrt_rtx': it must be one of auto, none, tensor"),
        ("scaling: 4", "scaling is 4: it must be a section"),
        ("validate: false", "validate is False: it must be a section"),
        ("validate: {enabled: 0}", "validate.enabled is 0: it must be true or false"),
        ("validate: {tolerance: -1}", "validate.tolerance is -1"),
        ("model: ''", "model is empty"),
        ("- yarn", "it must hold keys such as method and target"),
        ("a: b: c", "is not valid YAML: mapping values are not allowed here"),
        ("x: !!python/object/apply:os.getcwd []", "is not valid YAML: could not determine"),
    ],
)
def test_what_cannot_be_is_an_error_of_one_line(text, message, recipe_file):
    with pytest.raises(UserError) as caught:
        build_recipe({}, file=recipe_file(text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_of_a_file_name_it(recipe_file):
    file = recipe_file("taget: 1")
    with pytest.raises(UserError, match=f"^recipe {file}: unknown key"):
        build_recipe({}, file=file)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_calibration_is_a_path_or_its_text(tmp_path, kind):
    (tmp_path / "book.txt").write_text("words")
    given = {"kv_cache_dtype": "int8", "calibration": kind(tmp_path / "book.txt")}
    assert build_recipe({}, options=given).calibration == tmp_path / "book.txt"


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"recipe .*none.yaml cannot be read: No such file"):
        build_recipe({}, file=tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target", "--set 'target' is not KEY=VALUE"),
        ("=4", "--set '=4' is not KEY=VALUE"),
        ("scaling..x=4", "is not KEY=VALUE"),
        ("taget=4", "--set taget=4: unknown key taget, did you mean target?"),
        ("target.x=4", "--set target.x=4: target {'x': 4} is not a size"),
        ("scaling=4", "--set scaling=4: scaling is 4"),
        ("target=[1", "has no valid YAML value"),
    ],
)
def test_settings_that_cannot_be(text, message):
    with pytest.raises(UserError) as caught:
        build_recipe({}, settings=[text])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": 0}, "target is 0: it must be a whole number ≥ 1"),
        ({"target": 1.5}, "target is 1.5"),
        ({"window": -1}, "window is -1: it must be a whole number ≥ 0"),
        ({"max_chunk": True}, "max_chunk is True"),
        ({"tolerance": 0}, "tolerance is 0: it must be a finite number above 0"),
        ({"tolerance": 1.0}, "tolerance is 1: give a share of the logit scale below 1"),
        ({"factor": float("inf")}, "factor is inf"),
    ],
)
def test_a_recipe_made_in_python_validates_itself(values, message):
    with pytest.raises(UserError) as caught:
        Recipe(**values)
    assert message in str(caught.value)


def test_an_alias_becomes_the_method_s_own_name():
    assert Recipe(method="PI").method == "linear"


@pytest.mark.parametrize("output", ["model", ".", "model/../model"])
def test_an_output_that_holds_the_source_is_refused(output, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="holds the model model: the package would replace it"):
        Recipe(model="model", output=Path(output))
    assert Recipe(model="model", output=Path("model/package")).output == Path("model/package")


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"method": "yarn", "target": 131072}, "demo-yarn-128k"),
        ({}, "demo-as-trained"),
        ({"model": "owner/Some-1.5B", "method": "pi", "target": 5000}, "Some-1.5B-linear-5000"),
        ({"model": "/a/b/graph.onnx", "method": "ntk", "target": 1 << 20}, "graph-ntk-1m"),
        ({"model": "."}, "here-as-trained"),
    ],
)
def test_default_output_says_what_it_is(values, name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert Recipe(**values).default_output() == Path(name)
