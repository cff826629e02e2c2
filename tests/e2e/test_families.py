"""Every method on five families, against transformers' own model under the same rope_parameters.

The oracle of every logit is transformers' unmodified model: one forward over the whole sequence
at batch 1, without a cache, its `rope_parameters` written here by hand in Hugging Face's keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.recipe import Recipe
from ctx_export.frontends.checkpoint import read_checkpoint
from ctx_export.frontends.source import Source
from ctx_export.ops.reference import rotary_frequencies
from ctx_export.pipeline import export_source, load_source, plan
from ctx_export.runtime.session import Session
from tests.support.families import (
    FAMILIES,
    ORIGINAL_CONTEXT,
    THETA,
    VOCAB,
    Family,
    copy_with_config,
    forward,
    load_config,
    load_model,
    rounded,
    save_checkpoint,
)
from tests.support.feeding import decode_pieces, error, fed, fed_raggedly, opened

TOLERANCE = 1e-4  # of the logit scale, max |reference logits|
TABLE_TOLERANCE = 2e-6  # relative; transformers' own float32 rounding reaches 1.3e-6
TARGET, FACTOR = 256, 4.0
IDS = np.random.default_rng(7).integers(0, VOCAB, (3, 200))
LENGTHS = (200, 131, 77)  # all past the trained context, so that longrope's long table holds
SHORT_LENGTHS = (64, 41, 7)
ORIGINAL = {"original_max_position_embeddings": ORIGINAL_CONTEXT}


def divisors(family: Family) -> dict[str, list[float]]:
    """longrope's two lists, one number per rotated pair."""
    pairs = family.rotated // 2
    return {
        "short_factor": np.linspace(1.0, 1.6, pairs).tolist(),
        "long_factor": np.geomspace(1.1, 12.0, pairs).tolist(),
    }


@dataclass(frozen=True)
class Method:
    """A method as it is asked for, and the rope_parameters that transformers gets for it."""

    recipe: dict[str, Any]
    rope: dict[str, Any]
    lengths: tuple[int, ...] = LENGTHS


def method(name: str, family: Family) -> Method:
    """`name` on `family` at four times the trained context (longrope-short: at that context)."""
    d = family.rotated
    recipe: dict[str, Any] = {"method": name, "target": TARGET}
    rope: dict[str, Any] = {}
    if name == "linear":
        rope = {"rope_type": "linear", "factor": FACTOR}
    elif name == "ntk":
        rope = {"rope_type": "default", "rope_theta": THETA * FACTOR ** (d / (d - 2))}
    elif name == "ntk-by-parts":
        rope = {"rope_type": "yarn", "factor": FACTOR, "attention_factor": 1.0, **ORIGINAL}
    elif name == "yarn":
        rope = {"rope_type": "yarn", "factor": FACTOR, **ORIGINAL}
    elif name == "llama3":
        bands = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope = {"rope_type": "llama3", "factor": FACTOR, **bands, **ORIGINAL}
    elif name == "theta":
        recipe["parameters"] = {"rope_theta": 5e5}
        rope = {"rope_type": "default", "rope_theta": 5e5}
    elif name == "proportional":
        # phi3 is asked for without a share: its own partial rotation gives it.
        share = {} if family.rotary_dim else {"partial_rotary_factor": 0.5}
        recipe["parameters"] = share
        rope = {"rope_type": "proportional", "factor": FACTOR, **share}
    elif name.startswith("longrope"):
        recipe |= {"method": "longrope", "factor": FACTOR, "parameters": divisors(family)}
        rope = {"rope_type": "longrope", "factor": FACTOR, **divisors(family), **ORIGINAL}
    if name == "longrope-short":
        recipe["target"] = ORIGINAL_CONTEXT
        return Method(recipe, family.rope(**rope), SHORT_LENGTHS)
    return Method(recipe, family.rope(**rope))


METHODS = (
    "none",
    "linear",
    "ntk",
    "ntk-by-parts",
    "yarn",
    "llama3",
    "longrope",
    "theta",
    "proportional",
)


@dataclass
class Lab:
    """One checkpoint: traced once, its packages and the oracle's logits made when asked for."""

    family: Family
    root: Path
    stored: str = "float32"  # the checkpoint's own type
    precision: str | None = None  # None: the checkpoint's own
    references: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @cached_property
    def checkpoint(self) -> Path:
        return save_checkpoint(self.family, self.root / "checkpoint", self.stored)

    @cached_property
    def source(self) -> Source:
        return load_source(Recipe(model=str(self.checkpoint), precision=self.precision))

    def package(self, name: str) -> Path:
        options = {"precision": self.precision, **method(name, self.family).recipe}
        return export(self.source, self.root / name, force=True, **options)

    def reference(self, name: str) -> list[np.ndarray]:
        """transformers' logits [N,V] of every row, at the row's own length."""
        if name not in self.references:
            wanted = method(name, self.family)
            model = load_model(self.checkpoint, load_config(self.checkpoint, wanted.rope))
            self.references[name] = row_logits(model, wanted.lengths)
        return self.references[name]


def export(source: Source, output: Path, **options: Any) -> Path:
    recipe = Recipe(
        model=str(source.checkpoint.directory),
        output=output,
        engine="none",
        validate=False,
        max_batch=3,
        **options,
    )
    return export_source(source, recipe).output


def row_logits(model: Any, lengths: Sequence[int] = LENGTHS) -> list[np.ndarray]:
    return [forward(model, ids[:length]) for ids, length in zip(IDS, lengths, strict=True)]


def assert_agrees(logits: np.ndarray, reference: np.ndarray) -> None:
    assert error(logits, reference) <= TOLERANCE


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def labs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Lab]:
    made: dict[str, Lab] = {}

    def find(name: str) -> Lab:
        if name not in made:
            made[name] = Lab(FAMILIES[name], tmp_path_factory.mktemp(name))
        return made[name]

    return find


@pytest.fixture(scope="module", params=FAMILIES)
def lab(request, labs) -> Lab:
    return labs(request.param)


@dataclass
class Case:
    """A package and the oracle's logits for its rows."""

    package: Path
    session: Session  # batch 1
    method: Method
    reference: list[np.ndarray]


@pytest.fixture(scope="module", params=[*METHODS, "longrope-short"])
def case(request, lab) -> Iterator[Case]:
    package = lab.package(request.param)
    with opened(package) as session:
        wanted = method(request.param, lab.family)
        yield Case(package, session, wanted, lab.reference(request.param))


def test_prefill_equals_transformers(case):
    ids = IDS[0, : case.method.lengths[0]]
    assert_agrees(fed(case.session, ids, []), case.reference[0])


def test_decode_one_token_at_a_time_equals_transformers(case):
    ids = IDS[0, : case.method.lengths[0]]
    assert_agrees(
        fed(case.session, ids, decode_pieces(len(ids), ORIGINAL_CONTEXT)), case.reference[0]
    )


def test_ragged_chunks_equal_transformers(case):
    ids = IDS[0, : case.method.lengths[0]]
    pieces = [1, 7, 3, 19, 2, 31] if len(ids) <= 64 else [1, 7, 64, 3, 19, 2, 37, 1]
    assert_agrees(fed(case.session, ids, pieces), case.reference[0])


# Rows of a batch share a method's table, whatever it is: a few methods stand for all.
@pytest.mark.parametrize("name", ["none", "yarn", "longrope"])
def test_a_ragged_batch_equals_transformers_row_by_row(name, lab):
    with opened(lab.package(name), batch=3, chunk=48) as session:
        rows = fed_raggedly(session, IDS, LENGTHS)
    for logits, reference in zip(rows, lab.reference(name), strict=True):
        assert_agrees(logits, reference)


def baked_table(package: Path, length: int) -> tuple[np.ndarray, float]:
    """What the graph of a package rotates with at a rope length."""
    model = onnx.load(package / "model.onnx", load_external_data=False)
    held = {
        tensor.name.removeprefix("rope."): onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.name.startswith("rope.")
    }
    if "tables" in held:
        table = rotary_frequencies(np.array([length]), held["tables"], held["scalars"])
        inv_freq, multiplier = (values.astype(np.float32) for values in table)
    else:
        inv_freq, multiplier = held["inv_freq"], held["multiplier"]
    assert inv_freq.shape[0] == 1 and multiplier.shape == (1,)
    return inv_freq[0], float(multiplier[0])


def transformers_table(checkpoint: Path, rope: dict[str, Any], length: int) -> Any:
    """(inv_freq [F], multiplier) by transformers' own function for `rope`."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = load_config(checkpoint, rope)
    if rope["rope_type"] == "default":  # it has no entry there: every model has its own
        rotary = load_model(checkpoint, config).model.rotary_emb
        return rotary.inv_freq.numpy(), rotary.attention_scaling
    table, multiplier = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu", seq_len=length)
    return table.numpy(), multiplier


def assert_same_table(table: tuple[np.ndarray, float], expected: tuple[np.ndarray, float]) -> None:
    assert table[0].dtype == np.float32 and table[0].shape == expected[0].shape
    np.testing.assert_allclose(table[0], expected[0], rtol=TABLE_TOLERANCE, atol=0)
    assert table[1] == pytest.approx(expected[1], rel=1e-7)


def test_the_graph_s_frequencies_are_transformers_own(case, lab):
    length = case.method.lengths[0]
    expected = transformers_table(lab.checkpoint, case.method.rope, length)
    assert_same_table(baked_table(case.package, length), expected)


def test_no_two_methods_have_the_same_logits(lab):
    """A package with another method's table could not pass: the oracle tells them all apart, in
    the last tokens too."""
    last = {name: lab.reference(name)[0][-16:] for name in METHODS}
    for first, second in combinations(METHODS, 2):
        assert error(last[first], last[second]) > 100 * TOLERANCE, (first, second)


@pytest.mark.parametrize("name", ["mistral-80", "qwen2-128", "qwen3-80", "phi3-128"])
def test_a_model_s_own_window_changes_its_logits(name, labs):
    """The comparisons above would notice a window that is lost, the oracle's differ so much."""
    lab = labs(name)
    wider = load_config(lab.checkpoint, method("yarn", lab.family).rope, sliding_window=2 * TARGET)
    without = row_logits(load_model(lab.checkpoint, wider))
    windowed = lab.reference("yarn")
    for row, length in enumerate(LENGTHS):
        changed = error(windowed[row], without[row])
        assert changed > 100 * TOLERANCE if length > 100 else changed <= TOLERANCE


# What rounding the logits alone costs in float16. A bfloat16 package runs on a CPU as its float32
# twin, on the rounded weights, and needs no floor of its own.
FLOOR = 2.0**-11
DTYPES = {"fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class LowPrecision:
    """A package in `precision` from a checkpoint stored in `stored`, under `methods`."""

    checkpoint: str
    precision: str
    stored: str
    methods: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.checkpoint}-{self.precision}-from-{self.stored}"


# Every family in both precisions, every method in both, and both ways to get a precision.
LOW_PRECISION = (
    LowPrecision("llama-128", "fp16", "float16", ("none", "yarn")),
    LowPrecision("mistral-80", "fp16", "float32", ("linear", "longrope")),
    LowPrecision("qwen2-80", "fp16", "float16", ("ntk", "llama3")),
    LowPrecision("qwen3-128", "fp16", "float32", ("ntk-by-parts", "theta")),
    LowPrecision("phi3-80", "fp16", "float32", ("proportional", "longrope")),
    LowPrecision("llama-128", "bf16", "float32", ("ntk", "llama3")),
    LowPrecision("mistral-80", "bf16", "bfloat16", ("ntk-by-parts", "theta")),
    LowPrecision("qwen2-80", "bf16", "float32", ("proportional", "longrope")),
    LowPrecision("qwen3-128", "bf16", "bfloat16", ("none", "yarn")),
    LowPrecision("phi3-80", "bf16", "bfloat16", ("linear", "longrope")),
)


@pytest.mark.parametrize("low", LOW_PRECISION, ids=str)
def test_low_precision_errs_at_most_twice_as_much_as_pytorch_in_it(low, tmp_path):
    """Oracle: transformers in float32 with the same rounded weights; the measure: transformers in
    the low precision."""
    lab = Lab(FAMILIES[low.checkpoint], tmp_path, low.stored, low.precision)
    dtype = DTYPES[low.precision]
    for name in low.methods:
        config = load_config(lab.checkpoint, method(name, lab.family).rope)
        exact = forward(rounded(load_model(lab.checkpoint, config), dtype), IDS[0])
        peer = error(forward(load_model(lab.checkpoint, config, dtype), IDS[0]), exact)
        with opened(lab.package(name)) as session:
            assert session.manifest.precision == low.precision
            for pieces in ([], decode_pieces(len(IDS[0]), ORIGINAL_CONTEXT)):
                ours, limit = error(fed(session, IDS[0], pieces), exact), 2 * peer + FLOOR
                assert ours <= limit
                # Nor may the rule become loose enough to let another method's table pass.
                if low.precision == "bf16":
                    assert ours <= TOLERANCE
                else:
                    assert limit < 0.05


# Settings of one method that config.json and a recipe may state, in Hugging Face's keys.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "yarn without betas": ("yarn", {}),
    "yarn, betas null": ("yarn", {"beta_fast": None, "beta_slow": None}),
    "yarn, beta_fast alone": ("yarn", {"beta_fast": 16.0}),
    "yarn, beta_slow alone": ("yarn", {"beta_slow": 2.5}),
    "yarn untruncated": ("yarn", {"truncate": False}),
    "yarn untruncated with betas": (
        "yarn",
        {"truncate": False, "beta_fast": 20.0, "beta_slow": 1.5},
    ),
    "yarn, mscale pair": ("yarn", {"mscale": 1.0, "mscale_all_dim": 0.7}),
    "yarn, mscale alone": ("yarn", {"mscale": 0.707}),
    "yarn, attention_factor": ("yarn", {"attention_factor": 1.31}),
    "linear": ("linear", {}),
    "llama3": ("llama3", {"low_freq_factor": 2.0, "high_freq_factor": 9.0}),
    "longrope, attention_factor": ("longrope", {"attention_factor": 1.19}),
    "proportional": ("proportional", {"partial_rotary_factor": 0.25}),
}


WIDE = {"rope_theta": 150000.0}
TABLE_TARGET = 1 << 17
SPELLINGS = ("recipe", "rope_parameters", "rope_scaling")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["llama-80", "mistral-128", "qwen2-80", "qwen3-128", "phi3-80"])
def test_variants_of_a_method_have_transformers_frequencies(name, variant, labs, tmp_path):
    """Oracle: ROPE_INIT_FUNCTIONS, at the context and base of published models."""
    lab = labs(name)
    kind, entries = VARIANTS[variant]
    if kind == "longrope":
        entries = {**entries, **divisors(lab.family)}
    trained = {"max_position_embeddings": 4096, "rope_parameters": lab.family.rope(**WIDE)}
    if name == "phi3-80":
        trained["original_max_position_embeddings"] = 4096
    plain = copy_with_config(lab.checkpoint, tmp_path / "plain", **trained)
    for factor, spelling in product((2.5, 16.0), SPELLINGS):
        rope = lab.family.rope(**WIDE, rope_type=kind, factor=factor) | entries
        if kind in ("yarn", "llama3", "longrope"):
            rope["original_max_position_embeddings"] = 4096
        recipe = Recipe(model=str(plain), target=TABLE_TARGET)
        if spelling == "recipe":
            recipe = replace(recipe, method=kind, factor=factor, parameters=entries)
        else:
            own = tmp_path / f"{spelling}-{factor}"
            copy_with_config(lab.checkpoint, own, **(trained | spelled(rope, spelling)))
            recipe = replace(recipe, model=str(own))
        planned = plan(recipe)
        assert (planned.method, planned.factor) == (kind, factor)
        table = planned.table.inv_freq, planned.table.multiplier
        assert_same_table(table, transformers_table(plain, rope, TABLE_TARGET))


def spelled(rope: dict[str, Any], spelling: str) -> dict[str, Any]:
    """config.json entries that state `rope` in transformers 5's spelling or in the older one."""
    if spelling == "rope_parameters":
        return {"rope_parameters": rope}
    inner = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type")}
    scaling = {"type": rope["rope_type"], **inner}
    return {"rope_parameters": None, "rope_scaling": scaling, "rope_theta": rope["rope_theta"]}


@dataclass(frozen=True)
class Own:
    """A checkpoint with entries of config.json that state a scaling."""

    checkpoint: str
    config: dict[str, Any]
    traced: bool = False  # from its own config.json, else the graph of the plain checkpoint
    target: int | None = None  # None: max_position_embeddings
    tokens: int = 200


OWN = {
    "rope_scaling type yarn": Own(
        "qwen2-80",
        {
            "rope_scaling": {"type": "yarn", "factor": FACTOR, **ORIGINAL},
            "rope_theta": THETA,
        },
    ),
    # transformers reads su only with the original context beside it.
    "rope_scaling type su": Own(
        "phi3-80",
        {
            "rope_scaling": {"type": "su", **ORIGINAL, **divisors(FAMILIES["phi3-80"])},
            "rope_theta": THETA,
            "partial_rotary_factor": 0.4,
        },
        traced=True,
    ),
    "rope_parameters rope_type proportional": Own(
        "llama-80",
        {
            "rope_parameters": {
                "rope_type": "proportional",
                "rope_theta": THETA,
                "partial_rotary_factor": 0.3,
                "factor": 2.0,
            }
        },
    ),
    "rope_scaling type linear": Own(
        "llama-128",
        {"rope_scaling": {"type": "linear", "factor": FACTOR}, "rope_theta": THETA},
    ),
    "rope_parameters type linear": Own(
        "qwen3-80",
        {"rope_parameters": {"type": "linear", "rope_theta": THETA, "factor": FACTOR}},
    ),
    "rope_scaling rope_type llama3": Own(
        "llama-128",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                **ORIGINAL,
            },
            "rope_theta": 5e5,
        },
    ),
    "rope_parameters yarn untruncated with an mscale pair": Own(
        "qwen3-128",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": THETA,
                "factor": FACTOR,
                "beta_fast": 8.0,
                "truncate": False,
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
                **ORIGINAL,
            }
        },
    ),
    "rope_theta alone": Own("mistral-80", {"rope_theta": 5e5}),
    "rope_parameters default": Own(
        "mistral-128", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    ),
    "rope_parameters longrope": Own(
        "phi3-128",
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": THETA,
                "partial_rotary_factor": 0.75,
                "attention_factor": 1.4,
                **divisors(FAMILIES["phi3-128"]),
            }
        },
    ),
    "rope_scaling longrope within the original context": Own(
        "phi3-128",
        {
            "rope_scaling": {"rope_type": "longrope", **divisors(FAMILIES["phi3-128"])},
            "rope_theta": THETA,
            "partial_rotary_factor": 0.75,
        },
        target=ORIGINAL_CONTEXT,
        tokens=ORIGINAL_CONTEXT,
    ),
    "rope_scaling longrope on a family without a field for it": Own(
        "llama-128",
        {
            "rope_scaling": {"type": "longrope", **ORIGINAL, **divisors(FAMILIES["llama-128"])},
            "rope_theta": THETA,
        },
    ),
}


@pytest.mark.parametrize("own", OWN.values(), ids=OWN)
def test_a_checkpoint_s_own_scaling_is_honoured(own, labs, tmp_path):
    """Oracle: transformers loading the very same config.json."""
    lab = labs(own.checkpoint)
    entries = {"max_position_embeddings": TARGET, "rope_parameters": None, **own.config}
    checkpoint = copy_with_config(lab.checkpoint, tmp_path / "own", **entries)
    read = read_checkpoint(checkpoint)
    source = (
        load_source(Recipe(model=str(checkpoint)))
        if own.traced
        else replace(lab.source, checkpoint=read, spec=read.spec)
    )
    ids = IDS[0, : own.tokens]
    reference = forward(load_model(checkpoint, load_config(checkpoint)), ids)
    with opened(export(source, tmp_path / "package", target=own.target)) as session:
        for pieces in ([], decode_pieces(len(ids), ORIGINAL_CONTEXT)):
            assert_agrees(fed(session, ids, pieces), reference)
    # Without its settings it would be this: far from it.
    assert error(lab.reference("none")[0][: own.tokens], reference) > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("name", "entries", "stated", "read"),
    [
        ("mistral-128", {"sliding_window": None}, 0, 4096),
        ("qwen2-80", {"sliding_window": 32, "use_sliding_window": None}, 32, 0),
        ("llama-80", {"sliding_window": 32}, 32, 0),
    ],
    ids=["a default", "a switch that is off by default", "a key of another family"],
)
def test_windows_that_transformers_reads_otherwise_are_refused(
    name, entries, stated, read, labs, tmp_path
):
    """Never silently another window. Oracle: what transformers' config classes make of it."""
    lab = labs(name)
    checkpoint = copy_with_config(lab.checkpoint, tmp_path / "own", **entries, layer_types=None)
    if name != "llama-80":  # which has no windows at all
        assert (load_config(checkpoint).sliding_window or 0) == read
    with pytest.raises(UserError, match=rf"window of {stated} tokens.*reads {read} from"):
        load_source(Recipe(model=str(checkpoint)))
