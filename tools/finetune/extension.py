"""What a checkpoint becomes: the plan of its method, and the config that says so to any reader."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctx_export.core.errors import UserError
from ctx_export.core.plan import Plan, make_plan
from ctx_export.core.recipe import Recipe
from ctx_export.frontends.checkpoint import (
    Checkpoint,
    locate,
    model_spec,
    read_checkpoint,
    read_config,
)
from ctx_export.scaling.base import FrequencyTable
from ctx_export.validate.rope_parameters import Scaling

_SETTINGS = ("scaling", "method", "target", "factor", "original_context")
# transformers and a plan compute a table in float32 and float64.
_TABLE_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """A checkpoint with its plan; `config` is transformers' config of the model to be made."""

    checkpoint: Checkpoint
    plan: Plan
    config: Any

    @property
    def scaling(self) -> Scaling:
        """The plan's method, as rope_parameters are made of it."""
        return _scaling(self.plan)

    @property
    def target(self) -> int:
        """Tokens of the longer context."""
        return self.scaling.target


def check_settings(settings: Sequence[str]) -> None:
    """Refuse `--set` of what a fine-tuning has no use for."""
    for text in settings:
        key = text.partition("=")[0].partition(".")[0].strip()
        if key not in _SETTINGS:
            raise UserError(
                f"--set {text}: a fine-tuning takes {', '.join(_SETTINGS)}; leave {key} out"
            )


def extend(recipe: Recipe) -> Extension:
    """The plan of `recipe` and the config that carries it.

    Raises UserError for a method that has no one table to train with, or that a config.json
    cannot say.
    """
    if recipe.cache is not None or recipe.sinks is not None or recipe.window is not None:
        raise UserError(
            f"method {recipe.cache or 'window'} is a cache policy: it bounds what a token sees "
            "and needs no training; choose a scaling method such as linear, ntk or yarn"
        )
    checkpoint = read_checkpoint(locate(recipe.model))
    plan = make_plan(checkpoint.spec, recipe)
    if plan.method in ("dynamic-ntk", "dynamic-yarn"):
        raise UserError(
            f"method {plan.method} changes its frequencies with the length, for models that are "
            "used as they were trained; choose a method with one table, such as yarn"
        )
    config = _config(checkpoint, plan)
    _check_config(config, checkpoint, plan)
    return Extension(checkpoint=checkpoint, plan=plan, config=config)


def _scaling(plan: Plan) -> Scaling:
    assert plan.max_context is not None  # only bounded caches have none
    return Scaling(
        method=plan.method,
        parameters=plan.parameters,
        factor=plan.factor,
        original_context=plan.original_context,
        target=plan.max_context,
    )


def _config(checkpoint: Checkpoint, plan: Plan) -> Any:
    from ctx_export.validate.older_attention import has_rows
    from ctx_export.validate.torch_reference import hugging_face_rope, load_config, with_rope

    own = load_config(checkpoint.directory)
    if has_rows(own):
        raise UserError(
            f"{checkpoint.spec.family} has no rotary settings in its config.json: a model of this "
            "kind cannot be fine-tuned for another table"
        )
    scaling = _scaling(plan)
    config = with_rope(own, hugging_face_rope(scaling, own).parameters)
    config.max_position_embeddings = scaling.target
    config.original_max_position_embeddings = scaling.original_context
    return config


def _check_config(config: Any, checkpoint: Checkpoint, plan: Plan) -> None:
    """Read the config as an export will, and compare the tables."""
    from huggingface_hub.errors import StrictDataclassError

    with tempfile.TemporaryDirectory() as folder:
        try:
            config.save_pretrained(folder)
        except (StrictDataclassError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise UserError(
                f"method {plan.method} cannot be written into the config.json of a "
                f"{checkpoint.spec.family} model ({reason}): choose another method, such as ntk"
            ) from None
        spec = model_spec(read_config(Path(folder)), checkpoint.spec.precision)
    again = make_plan(spec, Recipe(model="checked"))
    for layer, (made, read) in enumerate(zip(plan.tables, again.tables, strict=True)):
        if not _same(made, read) or again.max_context != plan.max_context:
            raise UserError(
                f"method {plan.method} cannot be written into the config.json of a "
                f"{checkpoint.spec.family} model (layer {layer} would turn otherwise): choose "
                "another method"
            )


def _same(one: FrequencyTable, other: FrequencyTable) -> bool:
    return bool(
        np.array_equal(one.inv_freq, other.inv_freq)
        and np.isclose(one.multiplier, other.multiplier, rtol=1e-12)
    )


def check_rotary(model: Any, extension: Extension) -> None:
    """Raise UserError where transformers' model would turn by another table than the plan's."""
    from ctx_export.validate.rope_tables import transformers_table
    from ctx_export.validate.torch_reference import load_config, rotary_owner

    kind = type(rotary_owner(model).rotary_emb)
    own = load_config(extension.checkpoint.directory)
    table, multiplier = transformers_table(kind, own, extension.scaling, extension.target)
    planned = extension.plan.table
    near = table.shape == planned.inv_freq.shape and np.allclose(
        table, planned.inv_freq, rtol=_TABLE_TOLERANCE, atol=0
    )
    if not near or abs(multiplier - planned.multiplier) > _TABLE_TOLERANCE:
        raise UserError(
            f"transformers turns {extension.plan.method} by another table than this project: "
            "choose another method"
        )
