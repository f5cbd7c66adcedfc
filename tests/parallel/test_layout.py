# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The pipeline layout: balance, megatron's notation, and what is refused."""

from __future__ import annotations

import pytest

from k2_megatron.errors import ConfigError
from k2_megatron.parallel.layout import parse_layout
from tests.parallel.layout_helpers import even_layout


def sizes(num_layers: int, pipeline_size: int, virtual_size: int = 1) -> list[int]:
    layout = even_layout(
        num_layers=num_layers, pipeline_size=pipeline_size, virtual_size=virtual_size
    )
    return [len(stage.layers) for stage in layout.stages]


@pytest.mark.parametrize("virtual_size", [1, 2, 4])
@pytest.mark.parametrize("pipeline_size", [1, 2, 3, 4, 8, 15])
@pytest.mark.parametrize("num_layers", [60, 61, 62])
def test_every_layer_is_placed_once_and_in_order(
    num_layers: int, pipeline_size: int, virtual_size: int
) -> None:
    layout = even_layout(
        num_layers=num_layers, pipeline_size=pipeline_size, virtual_size=virtual_size
    )
    placed = [layer for stage in layout.stages for layer in stage.layers]
    assert placed == list(range(num_layers))
    assert [stage.embedding for stage in layout.stages].count(True) == 1
    assert layout.stages[0].embedding and layout.stages[-1].loss
    assert max(sizes(num_layers, pipeline_size, virtual_size)) <= -(
        -(num_layers + 2) // (pipeline_size * virtual_size)
    )


def test_k2_over_16_stages_is_like_the_published_layouts() -> None:
    assert sizes(61, 16) == [3, *[4] * 14, 2]
    assert sum(sizes(61, 16, 2)) == 61 and max(sizes(61, 16, 2)) == 2


def test_the_chunks_of_a_rank_interleave() -> None:
    layout = even_layout(num_layers=8, pipeline_size=2, virtual_size=2)
    assert [stage.layers for stage in layout.chunks(1)] == [
        layout.stages[1].layers,
        layout.stages[3].layers,
    ]


@pytest.mark.parametrize("virtual_size", [1, 2, 4])
def test_a_layout_as_text_is_read_back(virtual_size: int) -> None:
    degrees = {"num_layers": 14, "pipeline_size": 3, "virtual_size": virtual_size}
    layout = even_layout(**degrees, num_mtp_layers=1)
    assert parse_layout(layout.to_text(), **degrees, num_mtp_layers=1) == layout


def test_megatron_notation() -> None:
    layout = parse_layout("Et|(tt|)*30L", num_layers=61, pipeline_size=16, virtual_size=2)
    assert [len(stage.layers) for stage in layout.stages] == [1, *[2] * 30, 0]
    assert layout.stages[31].loss and not layout.stages[30].loss
    assert layout.to_megatron()[0] == ["embedding", "decoder"]
    with_mtp = parse_layout(
        "Et*3|tmL", num_layers=4, pipeline_size=2, virtual_size=1, num_mtp_layers=1
    )
    assert with_mtp.to_megatron()[1] == ["decoder", "mtp", "loss"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Ett|txL", r"has \['x'\]; allowed are E t m L"),
        ("Ett|tL", r"places \{'E': 1, 't': 3, .*4 t"),
        ("Et|ttt|L", r"has 3 stages; 2 pipeline ranks x 1 chunks need 2"),
        ("ttE|ttL", r"in this order"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_layout(text, num_layers=4, pipeline_size=2, virtual_size=1)
