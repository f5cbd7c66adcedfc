# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
r"""A small K2 on real text with AdamW, Muon, MuonClip, and MuonClip with the memory recipe.

    python3 benchmarks/stability.py [--steps 300] [--out docs/images/stability.png]
    python3 benchmarks/stability.py --config examples/configs/k2-tiny.yaml --steps 40 \
        --set parallel.pipeline_model_parallel_size=1                                   on a CPU

All train at once, spread over the GPUs there are, from the same weights on the same text, which
`k2-megatron data prepare --python-stdlib --tokenizer byte --output datasets/python-stdlib` makes.
The logits of a small model in some hundred steps stay below K2's threshold of 100: `--threshold`
takes another. The picture has their losses and largest attention logits; a spike is the most that a
step's loss lies over the mean of the 20 before it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from pictures import save_curves

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "examples" / "configs" / "k2-small-1xh100.yaml"
MUON = ("optimizer.type=muonclip",)
RUNS: dict[str, tuple[str, ...]] = {
    "AdamW": ("optimizer.type=adamw",),
    "Muon": (*MUON, "optimizer.qk_clip=observe"),
    "MuonClip": MUON,
    "MuonClip, k2 memory": (*MUON, "memory.preset=k2"),
}
COLOURS = ("#7f7f7f", "#c0392b", "#1f6fb2", "#2ca02c")


def main() -> None:
    """Train all, draw, and print the end of each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threshold", type=float, help="of QK-Clip; none: the configuration's")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--folder", type=Path, help="where the runs stay; none: they are removed")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "stability.png")
    args = parser.parse_args()
    print(f"command: python3 {' '.join(sys.argv)}")
    with tempfile.TemporaryDirectory() as passing:
        folder = (args.folder or Path(passing)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        gpus = visible_gpus()
        processes = {
            name: train(args, folder, index, gpus[index % len(gpus)] if gpus else "")
            for index, name in enumerate(RUNS)
        }
        try:
            wait_for(processes, folder, args.steps)
        finally:
            for process in processes.values():
                process.kill()
                process.wait()
        records = {name: read(folder, index) for index, name in enumerate(RUNS)}
    for name, rows in records.items():
        losses = [row["loss"] for row in rows]
        print(
            f"{name:22s} loss of the last 20 steps {statistics.mean(losses[-20:]):.4f}, largest "
            f"spike {spike(losses):+.3f}, largest logit {max(map(logit, rows)):.1f}, skipped "
            f"{sum(row['skipped'] for row in rows)}"
        )
    print(
        "largest difference of means of 20 steps, memory recipe and none: "
        f"{difference(records['MuonClip'], records['MuonClip, k2 memory']):.4f}"
    )
    draw(records, args.out)
    print(f"{args.out} written")


def visible_gpus() -> list[str]:
    """What a run may be given; empty on a CPU."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    return [str(index) for index in range(torch.cuda.device_count())]


def train(args: argparse.Namespace, folder: Path, index: int, gpu: str) -> subprocess.Popen[bytes]:
    """Start one run."""
    name, options = list(RUNS.items())[index]
    if args.threshold and name != "AdamW":
        options = (*options, f"optimizer.qk_clip_threshold={args.threshold}")
    given = [
        *(f"run.name=run-{index}", f"run.folder={folder}", f"run.stop_after_step={args.steps}"),
        *("logging.log_every_steps=1", "checkpoint.save_at_end=false", *args.overrides, *options),
    ]
    return subprocess.Popen(
        [
            *(sys.executable, "-W", "ignore", "-m", "k2_megatron", "train", str(args.config)),
            *(word for one in given for word in ("--set", one)),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            # On a CPU the runs share its cores, and threads would wait for each other.
            "OMP_NUM_THREADS": "2" if gpu else "1",
            "CUDA_VISIBLE_DEVICES": gpu,
        },
        stdout=(folder / f"{name}.log").open("wb"),
        stderr=subprocess.STDOUT,
    )


def wait_for(processes: dict[str, subprocess.Popen[bytes]], folder: Path, steps: int) -> None:
    """Tell every 20 seconds how far they are, until all are done or one has failed."""
    began, said = time.monotonic(), 0.0
    while None in (codes := {name: process.poll() for name, process in processes.items()}).values():
        fail_by(codes, folder)
        time.sleep(1)
        if time.monotonic() - max(said, began) > 20:
            said = time.monotonic()
            paths = [folder / f"run-{index}" / "metrics.jsonl" for index in range(len(RUNS))]
            done = [path.read_text().count("\n") if path.exists() else 0 for path in paths]
            print(f"{said - began:.0f} s: steps {', '.join(map(str, done))} of {steps}", flush=True)
    fail_by(codes, folder)


def fail_by(codes: dict[str, int | None], folder: Path) -> None:
    """End with what the first run has said that has failed."""
    for name, code in codes.items():
        if code:
            raise SystemExit(f"{name} failed: {(folder / f'{name}.log').read_text()}")


def read(folder: Path, index: int) -> list[dict[str, Any]]:
    """The metrics of a run, one a step."""
    lines = (folder / f"run-{index}" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def logit(row: dict[str, Any]) -> float:
    """The largest attention logit of the step; NaN where nothing records it."""
    return float(row["extra"].get("qk_clip/max_logit", float("nan")))


def spike(losses: list[float]) -> float:
    """How far a step lies over the mean of the 20 before it, at most, after the first 40."""
    over = [
        loss - statistics.mean(losses[index - 20 : index])
        for index, loss in enumerate(losses)
        if index >= 40
    ]
    return max(over, default=0.0)


def difference(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """Largest difference of the two runs' means of 20 steps."""
    pairs = [
        [statistics.mean(row["loss"] for row in rows[end - 20 : end]) for rows in (one, other)]
        for end in range(20, min(len(one), len(other)) + 1)
    ]
    return max((abs(a - b) for a, b in pairs), default=0.0)


def draw(records: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """Losses above, largest logits below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 6.4), sharex=True)
    for (name, rows), colour in zip(records.items(), COLOURS, strict=True):
        steps = [row["step"] for row in rows]
        above.plot(steps, [row["loss"] for row in rows], color=colour, label=name, linewidth=1)
        if name != "AdamW":
            below.plot(steps, list(map(logit, rows)), color=colour, label=name, linewidth=1)
    above.set_ylabel("training loss, nats a token")
    below.set_ylabel("largest attention logit")
    below.set_xlabel("step")
    below.set_yscale("log")
    save_curves(figure, (above, below), out)


if __name__ == "__main__":
    main()
