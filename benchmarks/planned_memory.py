# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Peak memory by plan and as measured, over layers, micro-batch and sequence of the K2 slice.

    python3 benchmarks/planned_memory.py                       one GPU, ten cases
    python3 benchmarks/planned_memory.py --gpus 2              two GPUs: PP2, EP2, DP2
    python3 benchmarks/planned_memory.py --only 2,1,4096,none,muonclip

Each case is a process a GPU of its own that trains 3 steps on random tokens, after which
torch.cuda.max_memory_allocated is read; of several ranks, each is compared with the plan of its
pipeline rank. A case that runs out of memory is a line of the table too.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from dataclasses import astuple, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from k2_megatron.config.loader import load_config
from k2_megatron.planner.job import job_of
from k2_megatron.planner.plan import make_plan

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "examples" / "configs" / "k2-slice-h100.yaml"
GIB = 2**30
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
_EP = "parallel.expert_model_parallel_size=2 model.num_experts=48"
ONE_GPU = [
    Case(1, 1, 4096, "none", "muonclip"),
    Case(2, 1, 4096, "none", "muonclip"),
    Case(3, 1, 4096, "none", "muonclip"),
    Case(1, 2, 4096, "none", "muonclip"),
    Case(2, 2, 4096, "none", "muonclip"),
    Case(2, 4, 2048, "none", "muonclip"),
    Case(1, 1, 8192, "none", "muonclip"),
    Case(2, 1, 16384, "none", "muonclip"),
    Case(1, 1, 4096, "none", "adamw"),
    Case(2, 2, 4096, "none", "adamw"),
]
TWO_GPUS = [
    Case(4, 1, 4096, "none", "muonclip", _PP),
    Case(4, 2, 4096, "none", "muonclip", _PP),
    Case(4, 1, 4096, "none", "muonclip", f"{_PP} parallel.virtual_pipeline_model_parallel_size=2"),
    Case(2, 1, 4096, "none", "muonclip", _EP),
    Case(2, 2, 4096, "none", "muonclip", _EP),
    Case(2, 1, 4096, "none", "muonclip"),
    Case(2, 1, 4096, "none", "adamw", _EP),
]


def main() -> None:
    """Run the cases one after the other, or be one rank of a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, choices=(1, 2), default=1)
    parser.add_argument("--only", help="one case: layers,micro-batch,sequence,preset,optimizer")
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of:
        print(json.dumps(train(Case(**json.loads(args.rank_of)))))
        return
    cases = ONE_GPU if args.gpus == 1 else TWO_GPUS
    if args.only:
        layers, batch, sequence, preset, optimizer = args.only.split(",")
        cases = [Case(int(layers), int(batch), int(sequence), preset, optimizer)]
    print(f"command: python3 {' '.join(sys.argv)}")
    print(f"torch {version('torch')}, megatron-core {version('megatron-core')}")
    print(
        f"{'layers':>6} {'mbs':>4} {'seq':>6} {'preset':8} {'optimizer':9} {'rank':>4} "
        f"{'planned GiB':>12} {'measured GiB':>13} {'error':>7}  peak in     layout"
    )
    for case in cases:
        show(case, args.gpus)


def show(case: Case, gpus: int) -> None:
    """Plan, run and print one case."""
    config = load_config(CONFIG, case.overrides(gpus))
    plan = make_plan(job_of(config, gpus), place_matrices=False)
    measured = run(case, gpus)
    for index, found in enumerate(measured):
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


def run(case: Case, gpus: int) -> list[dict[str, Any] | None]:
    """Every rank's measurement; None for one that failed, whose last words are printed."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    ranks = []
    for rank in range(gpus):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": gpus, "MASTER_PORT": port}
        environment = {name: str(value) for name, value in places.items()}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-W", "ignore", __file__, "--rank-of", json.dumps(vars(case))],
                env={**os.environ, **environment, "MASTER_ADDR": "127.0.0.1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    results: list[dict[str, Any] | None] = []
    for process in ranks:
        out, errors = process.communicate(timeout=300)
        lines = [line for line in out.splitlines() if line.startswith("{")]
        if process.returncode or not lines:
            print("\n".join(errors.splitlines()[-3:]))
            results.append(None)
        else:
            results.append(json.loads(lines[-1]))
    return results


def train(case: Case) -> dict[str, Any]:
    """Train three steps as one rank and tell its peak."""
    import torch
    import torch.distributed as dist

    from k2_megatron.platform.select import current_platform

    world_size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    config = load_config(CONFIG, case.overrides(world_size))
    platform = current_platform()
    platform.prepare(rank)
    dist.init_process_group(platform.backend, **platform.process_group_options())
    from k2_megatron.train.session import build_session
    from k2_megatron.train.step import train_step

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
