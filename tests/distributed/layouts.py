# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Every parallel layout of a number of processes, within a stated bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Degrees of one layout; data parallelism is what is left."""

    world_size: int
    tp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1
    etp: int = 1

    @property
    def dp(self) -> int:
        """Dense data-parallel size."""
        return self.world_size // (self.tp * self.pp)

    @property
    def edp(self) -> int:
        """Expert data-parallel size."""
        return self.world_size // (self.pp * self.ep * self.etp)

    def overrides(self) -> list[str]:
        """The layout as `--set` options."""
        prefix = "parallel."
        options = [
            f"{prefix}tensor_model_parallel_size={self.tp}",
            f"{prefix}pipeline_model_parallel_size={self.pp}",
            f"{prefix}expert_model_parallel_size={self.ep}",
            f"{prefix}expert_tensor_parallel_size={self.etp}",
        ]
        if self.vpp > 1:
            options.append(f"{prefix}virtual_pipeline_model_parallel_size={self.vpp}")
        return options

    def __str__(self) -> str:
        parts = [f"{name}{getattr(self, name)}" for name in ("tp", "pp", "vpp", "ep", "etp")]
        shown = [part for part in parts if not part.endswith("p1")]
        return f"{self.world_size}x-" + "-".join([*shown, f"dp{self.dp}"])


def all_layouts(world_size: int, *, num_layers: int, num_experts: int) -> Iterator[Layout]:
    """Every layout of `world_size` processes over TP, PP, VPP, EP, ETP and DP.

    Bound: powers of two; TP at most 4; PP at most `num_layers`; VPP 1 or 2, with stages that have
    no layer where there are more than layers; ETP any size with EP, up to 4 ranks, and 1 or TP on
    8. Without EP validation asks for ETP = TP.
    """
    sizes = [size for size in (1, 2, 4, 8) if world_size % size == 0]
    for tp in sizes:
        for pp in sizes:
            if tp > 4 or world_size % (tp * pp) or pp > num_layers:
                continue
            for vpp in (1, 2):
                if vpp > 1 and (pp == 1 or pp * (vpp - 1) >= num_layers):
                    continue
                for ep in sizes:
                    for etp in sizes:
                        if world_size % (pp * ep * etp) or num_experts % ep or etp > 4:
                            continue
                        if etp != tp and (ep == 1 or (world_size == 8 and etp > 1)):
                            continue
                        yield Layout(world_size=world_size, tp=tp, pp=pp, vpp=vpp, ep=ep, etp=etp)
