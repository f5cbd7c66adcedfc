# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Which transformer layers live on which pipeline stage: any layer count over any PP x VPP.

Pure arithmetic without torch, shared by validation, the geometry table and the trainer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from k2_megatron.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One model chunk: the layers between two pipeline transfers.

    Attributes:
        layers: global 0-based indices of its decoder layers, in order.
        mtp_layers: indices of its multi-token-prediction layers.
        embedding: whether it begins with the word embedding.
        loss: whether it ends with the final norm, the output layer and the loss.
    """

    layers: tuple[int, ...] = ()
    mtp_layers: tuple[int, ...] = ()
    embedding: bool = False
    loss: bool = False

    def __str__(self) -> str:
        parts = ["E"] * self.embedding
        if self.layers:
            first, last = self.layers[0], self.layers[-1]
            parts.append(f"{first}" if first == last else f"{first}-{last}")
        parts += ["m"] * len(self.mtp_layers) + ["L"] * self.loss
        return " ".join(parts) or "-"


@dataclass(frozen=True, kw_only=True)
class PipelineLayout:
    """All stages of the pipeline, in the order in which a token passes through them.

    Attributes:
        pipeline_size: number of pipeline ranks (PP).
        stages: PP x VPP stages; stage `v * PP + p` is chunk v of pipeline rank p.
    """

    pipeline_size: int
    stages: tuple[Stage, ...]

    @property
    def virtual_size(self) -> int:
        """Model chunks a pipeline rank (VPP); 1 without interleaving."""
        return len(self.stages) // self.pipeline_size

    @property
    def num_layers(self) -> int:
        """Decoder layers over all stages."""
        return sum(len(stage.layers) for stage in self.stages)

    def chunks(self, pipeline_rank: int) -> tuple[Stage, ...]:
        """The stages of one pipeline rank, in chunk order."""
        return self.stages[pipeline_rank :: self.pipeline_size]

    def to_megatron(self) -> list[list[str]]:
        """The layout in the form of megatron-core's `pipeline_model_parallel_layout`."""
        return [
            ["embedding"] * stage.embedding
            + ["decoder"] * len(stage.layers)
            + ["mtp"] * len(stage.mtp_layers)
            + ["loss"] * stage.loss
            for stage in self.stages
        ]

    def __str__(self) -> str:
        rows = [[str(stage) for stage in self.chunks(p)] for p in range(self.pipeline_size)]
        width = max(len(cell) for row in rows for cell in row)
        return "\n".join(
            f"stage {p:>3} | " + " | ".join(cell.ljust(width) for cell in row)
            for p, row in enumerate(rows)
        )


def balanced_layout(
    *,
    num_layers: int,
    pipeline_size: int,
    virtual_size: int = 1,
    num_mtp_layers: int = 0,
    layer_costs: Sequence[float] | None = None,
    embedding_cost: float = 0.5,
    loss_cost: float = 1.0,
) -> PipelineLayout:
    """Cut the layers into PP x VPP contiguous stages so that the slowest stage is fastest.

    Among the cuts with the same slowest stage, the one with the smallest sum of squares is taken,
    and of those the one with the earliest heavy stages. MTP layers stay with the loss, where
    megatron-core wants them.

    Args:
        num_layers: decoder layers of the model.
        pipeline_size: PP.
        virtual_size: VPP, chunks a pipeline rank.
        num_mtp_layers: multi-token-prediction layers.
        layer_costs: one relative cost a layer; all 1 if not given.
        embedding_cost: cost of the embedding, in layers.
        loss_cost: cost of final norm, output layer and loss, in layers.

    Raises:
        ConfigError: fewer layers than stages.
    """
    num_stages = pipeline_size * virtual_size
    if num_stages > num_layers:
        raise ConfigError(
            f"pipeline: {pipeline_size} ranks x {virtual_size} chunks make {num_stages} stages for "
            f"{num_layers} layers; every stage needs a layer, so at most {num_layers} stages"
        )
    costs = list(layer_costs) if layer_costs is not None else [1.0] * num_layers
    costs[0] += embedding_cost
    costs[-1] += loss_cost + num_mtp_layers
    cuts = _best_cuts(costs, num_stages)
    stages = tuple(
        Stage(
            layers=tuple(range(begin, end)),
            embedding=begin == 0,
            loss=end == num_layers,
            mtp_layers=tuple(range(num_mtp_layers)) if end == num_layers else (),
        )
        for begin, end in pairwise(cuts)
    )
    return PipelineLayout(pipeline_size=pipeline_size, stages=stages)


def _best_cuts(costs: Sequence[float], num_parts: int) -> list[int]:
    """Boundaries of the contiguous partition with the smallest (maximum, sum of squares)."""
    total = [0.0]
    for cost in costs:
        total.append(total[-1] + cost)
    num = len(costs)
    # best[i] = (slowest part, sum of squares, boundaries) of the first i layers in k parts
    best: list[tuple[float, float, list[int]] | None] = [
        (total[i], total[i] ** 2, [0, i]) if i else None for i in range(num + 1)
    ]
    for k in range(2, num_parts + 1):
        new: list[tuple[float, float, list[int]] | None] = [None] * (num + 1)
        for i in range(k, num + 1):
            # Later cuts first: of equal layouts the one with more layers in front is kept.
            for j in range(i - 1, k - 2, -1):
                left = best[j]
                if left is None:
                    continue
                part = total[i] - total[j]
                score = (max(left[0], part), left[1] + part * part)
                current = new[i]
                if current is None or score < current[:2]:
                    new[i] = (*score, [*left[2], i])
        best = new
    found = best[num]
    assert found is not None
    return found[2]


def parse_layout(
    text: str, *, num_layers: int, pipeline_size: int, virtual_size: int, num_mtp_layers: int = 0
) -> PipelineLayout:
    """Read megatron's notation: E embedding, t decoder layer, m MTP layer, L loss, | stage end.

    `x*3` repeats a letter, `(tt|)*14` a group; commas are ignored.

    Raises:
        ConfigError: an unknown letter, or a layout that does not fit the model.
    """
    key = "parallel.pipeline_model_parallel_layout"
    plain = text.replace(",", "").replace(" ", "")
    for pattern in (r"\(([^()]*)\)\*(\d+)", r"([EtmL|])\*(\d+)"):
        plain = re.sub(pattern, lambda found: found[1] * int(found[2]), plain)
    unknown = sorted(set(plain) - set("EtmL|"))
    if unknown:
        raise ConfigError(f"{key}: {text!r} has {unknown}; allowed are E t m L | ( ) *N")
    letters = plain.replace("|", "")
    wanted = "E" + "t" * num_layers + "m" * num_mtp_layers + "L"
    if letters != wanted:
        counts = {letter: letters.count(letter) for letter in "EtmL"}
        raise ConfigError(
            f"{key}: {text!r} places {counts}; needed, in this order: 1 E, {num_layers} t, "
            f"{num_mtp_layers} m, 1 L"
        )
    texts = plain.split("|")
    if len(texts) != pipeline_size * virtual_size:
        raise ConfigError(
            f"{key}: {text!r} has {len(texts)} stages; {pipeline_size} pipeline ranks x "
            f"{virtual_size} chunks need {pipeline_size * virtual_size}"
        )
    stages, layer, mtp = [], 0, 0
    for part in texts:
        num, num_mtp = part.count("t"), part.count("m")
        stages.append(
            Stage(
                layers=tuple(range(layer, layer + num)),
                mtp_layers=tuple(range(mtp, mtp + num_mtp)),
                embedding="E" in part,
                loss="L" in part,
            )
        )
        layer, mtp = layer + num, mtp + num_mtp
    return PipelineLayout(pipeline_size=pipeline_size, stages=tuple(stages))
