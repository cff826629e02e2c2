"""Every scaling method and cache policy on files of optimum and of onnxruntime-genai's builder.

Oracle: validation against the checkpoint they came from: transformers' own model under the
method's settings, or for policies and what transformers lacks the pairwise reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ctx_export import cache, scaling
from ctx_export.core.recipe import Recipe
from ctx_export.frontends.source import Source
from ctx_export.pipeline import export_source, load_source
from ctx_export.validate import validation
from tests.support.peer_files import peer_files

FILES = peer_files()
BOUNDED = {"sinks": 3, "window": 29, "max_chunk": 16}
# The tiny llama's head has 16 dims: 8 frequencies.
SETTINGS: dict[str, dict[str, Any]] = {
    "llama3": {"parameters": {"low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    "longrope": {
        "parameters": {
            "short_factor": [1.0 + 0.01 * i for i in range(8)],
            "long_factor": [1.0 + 0.5 * i for i in range(8)],
        }
    },
    "theta": {"parameters": {"rope_theta": 160000.0}},
    "sliding-window": {"window": 29, "max_chunk": 16},
    "streaming": BOUNDED,
    "lm-infinite": BOUNDED,
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["llama/optimum-past", "llama/genai-fp32-cpu"])
def read(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Recipe]:
    file = FILES[request.param]
    model = file.copied(tmp_path_factory.mktemp("file") / "file")
    recipe = Recipe(model=str(model), reference=str(file.checkpoint))
    return load_source(recipe), recipe


@pytest.mark.parametrize("method", [*scaling.names(), *cache.names()])
def test_a_file_under_every_method_validates(read, method, tmp_path: Path):
    source, read_by = read
    options = SETTINGS.get(method, {})
    if method not in cache.names() or not cache.policies()[method].bounded:
        options = {"target": 256, **options}
    recipe = Recipe(
        model=read_by.model,
        reference=read_by.reference,
        output=tmp_path / "package",
        method=method,
        engine="none",
        validate=False,
        **options,
    )
    package = export_source(source, recipe).output
    report = validation.run(package, Path(str(read_by.reference)), budget=128, tolerance=1e-4)
    assert report.passed, report.lines()
