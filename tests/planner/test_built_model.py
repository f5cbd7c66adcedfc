# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters of every rank against the engine's model, built without memory for its weights."""

from __future__ import annotations

import pytest

from tests.distributed.harness import ROOT, run_ranks

EXAMPLES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "examples").rglob("*.yaml"))


@pytest.mark.parametrize("source", ["kimi-k2", "moonlight-16b-a3b", *EXAMPLES])
def test_parameters_are_those_of_the_built_model(source: str) -> None:
    """Trainable parameters of the geometry table, and all stored elements of the count.

    All layers, but of the preset kimi-k2 a dense and an MoE layer; an example has them all.
    """
    (found,) = run_ranks("tests.planner.built_model_jobs.parameters", 1, source=source)
    assert found["planned"] == found["built"]
    assert found["counted"] == found["whole"]
