# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Which transformer layers live on which pipeline stage: any layer count over any PP x VPP.

Pure arithmetic without torch, shared by validation, the geometry table and the trainer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

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

    def to_text(self) -> str:
        """The layout in the notation that `parse_layout` reads."""
        return "|".join(
            "E" * stage.embedding
            + "t" * len(stage.layers)
            + "m" * len(stage.mtp_layers)
            + "L" * stage.loss
            for stage in self.stages
        )

    def __str__(self) -> str:
        rows = [[str(stage) for stage in self.chunks(p)] for p in range(self.pipeline_size)]
        width = max(len(cell) for row in rows for cell in row)
        return "\n".join(
            f"stage {p:>3} | " + " | ".join(cell.ljust(width) for cell in row)
            for p, row in enumerate(rows)
        )


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
