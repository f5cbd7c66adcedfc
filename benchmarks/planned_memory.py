# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Peak memory by plan and as measured, over layers, micro-batch and sequence of the K2 slice.

    python3 benchmarks/planned_memory.py                       one GPU, 13 cases
    python3 benchmarks/planned_memory.py --gpus 2              two GPUs: PP2, EP2, DP2
    python3 benchmarks/planned_memory.py --gpus 2 --skip 3     without the first three
    python3 benchmarks/planned_memory.py --only 2,1,4096,none,muonclip

Each case is a process a GPU of its own that trains 3 steps on random tokens, after which
torch.cuda.max_memory_allocated is read; of several ranks, each is compared with the plan of its
pipeline rank. A case that runs out of memory is a line of the table too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import astuple, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from slice import SideFailedError, outputs_of, start

from k2_megatron.config.loader import load_config
from k2_megatron.planner.hardware import GIB
from k2_megatron.planner.job import job_of
from k2_megatron.planner.plan import make_plan

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "examples" / "configs" / "k2-slice-h100.yaml"
STEPS = 3


@dataclass(frozen=True)
class Case:
    """One combination; `layout` are further settings, separated by blanks."""

    layers: int
    micro_batch: int
    sequence: int
    preset: str
    optimizer: str
    layout: str = ""

    def overrides(self, gpus: int) -> list[str]:
        """The settings that make the slice this case."""
        return [
            f"model.num_layers={self.layers}",
            f"schedule.micro_batch_size={self.micro_batch}",
            f"schedule.seq_length={self.sequence}",
            f"schedule.global_batch_size={4 * self.micro_batch * gpus}",
            f"memory.preset={self.preset}",
            f"optimizer.type={self.optimizer}",
            *self.layout.split(),
        ]


_PP = "parallel.pipeline_model_parallel_size=2"
_VPP = f"{_PP} parallel.virtual_pipeline_model_parallel_size=2"
_EP = "parallel.expert_model_parallel_size=2 model.num_experts=48"
ONE_GPU = [
    Case(1, 1, 4096, "none", "muonclip"),
    Case(2, 1, 4096, "none", "muonclip"),
    Case(2, 2, 4096, "none", "muonclip"),
    Case(2, 4, 2048, "none", "muonclip"),
    Case(1, 1, 8192, "none", "muonclip"),
    Case(2, 1, 16384, "none", "muonclip"),
    Case(1, 1, 4096, "none", "adamw"),
    Case(2, 2, 4096, "none", "adamw"),
    Case(2, 2, 4096, "k2", "muonclip"),
    Case(3, 1, 4096, "k2", "muonclip"),
    Case(2, 2, 4096, "k2-lean", "muonclip"),
    Case(2, 1, 16384, "k2-lean", "adamw"),
    Case(3, 2, 4096, "k2-full", "muonclip"),
]
TWO_GPUS = [
    Case(4, 1, 4096, "none", "muonclip", _PP),
    Case(4, 2, 4096, "none", "muonclip", _PP),
    Case(4, 1, 4096, "none", "muonclip", _VPP),
    Case(2, 1, 4096, "none", "muonclip", _EP),
    Case(2, 2, 4096, "none", "muonclip", _EP),
    Case(2, 1, 4096, "none", "muonclip"),
    Case(2, 1, 4096, "none", "adamw", _EP),
    Case(2, 2, 4096, "k2-lean", "muonclip", _EP),
    Case(4, 1, 4096, "k2", "muonclip", _VPP),
    Case(4, 1, 4096, "k2-full", "muonclip", _VPP),
]


def main() -> None:
    """Run the cases one after the other, or be one rank of a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, choices=(1, 2), default=1)
    parser.add_argument("--only", help="one case: layers,micro-batch,sequence,preset,optimizer")
    parser.add_argument("--skip", type=int, default=0, help="leave out that many cases")
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of:
        print(json.dumps(train(Case(**json.loads(args.rank_of)))))
        return
    cases = (ONE_GPU if args.gpus == 1 else TWO_GPUS)[args.skip :]
    if args.only:
        layers, batch, sequence, preset, optimizer = args.only.split(",")
        cases = [Case(int(layers), int(batch), int(sequence), preset, optimizer)]
    print(f"command: python3 {' '.join(sys.argv)}")
    print(f"torch {version('torch')}, megatron-core {version('megatron-core')}")
    print(
        f"{'layers':>6} {'mbs':>4} {'seq':>6} {'preset':8} {'optimizer':9} {'rank':>4} "
        f"{'planned GiB':>12} {'measured GiB':>13} {'error':>7}  peak in     layout"
    )
    # All are started at once, because importing takes longer than training three steps.
    waiting = [
        (case, start([Path(__file__).name, "--rank-of", json.dumps(vars(case))], args.gpus))
        for case in cases
    ]
    for case, ranks in waiting:
        try:
            measured = [found for (found,) in outputs_of(str(case), ranks)]
        except SideFailedError as error:
            print("\n".join(str(error).splitlines()[-3:]))
            measured = []
        show(case, args.gpus, measured)


def show(case: Case, gpus: int, measured: list[dict[str, Any]]) -> None:
    """Plan and print one case; nothing was measured where it failed."""
    config = load_config(CONFIG, case.overrides(gpus))
    plan = make_plan(job_of(config, gpus), place_matrices=False)
    for index, found in enumerate(measured or [None]):
        stage = plan.ranks[found["pipeline_rank"] if found else 0]
        layers, micro_batch, sequence, preset, optimizer, layout = astuple(case)
        layout = layout.replace("parallel.", "").replace("_model_parallel_size", "")
        head = f"{layers:6} {micro_batch:4} {sequence:6} {preset:8} {optimizer:9} {index:4} "
        head += f"{stage.total_bytes / GIB:12.2f} "
        if found:
            error = stage.total_bytes / found["peak_bytes"] - 1
            head += f"{found['peak_bytes'] / GIB:13.2f} {100 * error:+6.1f} %"
        else:
            head += f"{'failed':>13} {'':8}"
        phase = "optimizer" if stage.optimizer_is_peak else "passes"
        print(f"{head}  {phase:10}  {layout}", flush=True)


def train(case: Case) -> dict[str, Any]:
    """Train three steps as one rank and tell its peak."""
    import torch
    import torch.distributed as dist
    from measure import draw_on_gpu, wait_for_turn

    from k2_megatron.platform.select import current_platform

    world_size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    config = load_config(CONFIG, case.overrides(world_size))
    platform = current_platform()
    from k2_megatron.train.session import build_session
    from k2_megatron.train.step import train_step

    wait_for_turn()
    platform.prepare(rank)
    dist.init_process_group(platform.backend, **platform.process_group_options())
    draw_on_gpu()
    session = build_session(config, platform, world_size)
    # Building holds parameters twice for a moment; a run's own metrics count that too, the plan
    # is about training.
    torch.cuda.reset_peak_memory_stats()
    size = (case.micro_batch, case.sequence)
    batch = {
        "tokens": torch.randint(config.model.vocab_size, size, device="cuda"),
        "position_ids": torch.arange(case.sequence, device="cuda").expand(size),
        "loss_mask": torch.ones(size, device="cuda"),
    }
    batch["labels"] = batch["tokens"].roll(-1, 1)
    for step in range(1, STEPS + 1):
        train_step(session, [batch] * session.sizes.num_microbatches, step)
    found = {
        "pipeline_rank": session.topology.pp.rank,
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "device": torch.cuda.get_device_name(),
    }
    dist.barrier()
    dist.destroy_process_group()
    return found


if __name__ == "__main__":
    main()
