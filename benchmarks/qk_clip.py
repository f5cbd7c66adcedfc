# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""QK-Clip at work: a run whose attention logits explode under plain Muon, and the same with clip.

    python3 benchmarks/qk_clip.py [--out docs/images/qk-clip.png]

Trains the tiny K2 of examples/ twice on a CPU, some two minutes on two cores: the learning rate
is twice the example's and there is no weight decay. Needs the corpus that
`make train` prepares.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pictures import save_curves

ROOT = Path(__file__).parents[1]
TAU = 30.0
SETTINGS = {
    "optimizer.type": "muonclip",
    "optimizer.qk_clip_threshold": TAU,
    "optimizer.weight_decay": 0,
    "schedule.lr": 4.0e-2,
    "schedule.min_lr": 4.0e-2,
    "parallel.pipeline_model_parallel_size": 1,
    "checkpoint.save_at_end": "false",
    "logging.log_every_steps": 1,
}
RUNS = {"plain Muon": "observe", "MuonClip": "clip"}


def main() -> None:
    """Train both, draw, and print the end of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "qk-clip.png")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        processes = [train(Path(folder), mode) for mode in RUNS.values()]
        for process in processes:
            if process.wait():
                raise SystemExit(f"{' '.join(map(str, process.args))} failed")  # type: ignore[arg-type]
        records = {name: read(Path(folder), mode) for name, mode in RUNS.items()}
    draw(records, args.out)
    for name, rows in records.items():
        late = [row["loss"] for row in rows[-20:]]
        print(
            f"{name:12s} largest logit {max(map(logit, rows)):7.1f}, heads over tau at the end "
            f"{rows[-1]['extra']['qk_clip/heads_clipped']:.0f} of 16, mean loss of the last 20 "
            f"steps {sum(late) / len(late):.3f}, held-out loss {rows[-1]['valid_loss']:.3f}"
        )
    print(f"{args.out} written")


def train(folder: Path, mode: str) -> subprocess.Popen[bytes]:
    """Start one run on one core."""
    given = {**SETTINGS, "optimizer.qk_clip": mode, "run.name": mode, "run.folder": folder}
    options = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "k2_megatron", "train"),
            *(ROOT / "examples" / "configs" / "k2-tiny.yaml", "--nproc", "1", *options),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=None if mode == "clip" else subprocess.DEVNULL,
    )


def read(folder: Path, mode: str) -> list[dict[str, Any]]:
    """The metrics of a run, one a step."""
    lines = (folder / mode / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def logit(row: dict[str, Any]) -> float:
    """The largest attention logit of the step."""
    return float(row["extra"]["qk_clip/max_logit"])


def draw(records: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """Largest logits above, losses below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 6.4), sharex=True)
    for (name, rows), colour in zip(records.items(), ("#c0392b", "#1f6fb2"), strict=True):
        steps = [row["step"] for row in rows]
        above.plot(steps, list(map(logit, rows)), color=colour, label=name)
        losses = [row["loss"] for row in rows]
        smooth = [
            sum(losses[max(0, i - 7) : i + 1]) / len(losses[max(0, i - 7) : i + 1])
            for i in range(len(losses))
        ]
        below.plot(steps, losses, color=colour, alpha=0.2)
        below.plot(steps, smooth, color=colour, label=f"{name}, mean of 8 steps")
    above.axhline(TAU, color="#555555", linewidth=0.8, linestyle="--")
    above.text(2, TAU * 1.08, f"tau = {TAU:.0f}", color="#555555")
    above.set_yscale("log")
    above.set_ylabel("largest attention logit")
    above.set_title("Tiny K2, learning rate 0.04, no weight decay", loc="left")
    below.set_ylabel("training loss, nats a byte")
    below.set_xlabel("step")
    save_curves(figure, (above, below), out)


if __name__ == "__main__":
    main()
