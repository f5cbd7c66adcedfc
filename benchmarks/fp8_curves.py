# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Loss curves with and without FP8 storage of activations, beside those of another seed.

    python3 benchmarks/fp8_curves.py [--steps 300] [--out docs/images/fp8-curves.png]

Trains the tiny K2 of examples/ on a CPU, with presets k2 and k2-lean: both recompute, k2 alone
keeps FP8 copies. Each with two seeds, which differ in weights and order of text. Needs the corpus
that `make train` prepares. The runs go one after the other, some minutes each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).parents[1]
SEEDS = (1234, 4321)
PRESETS = {"k2-lean": "without FP8", "k2": "with FP8"}
SMOOTHED_OVER = 20
Curve = npt.NDArray[np.float64]


def main() -> None:
    """Train, draw, and print the largest smoothed differences."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="fp32")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "fp8-curves.png")
    args = parser.parse_args()
    curves: dict[tuple[str, int], Curve] = {}
    valid: dict[tuple[str, int], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            for preset in PRESETS:
                curves[preset, seed], valid[preset, seed] = train(
                    Path(folder), preset, seed, args.steps, args.dtype
                )
    print(f"command: python3 {' '.join(sys.argv)}")
    for seed in SEEDS:
        change = largest(curves["k2", seed], curves["k2-lean", seed])
        print(f"seed {seed}: largest smoothed difference of FP8 and not {change:.4f} nats")
        print(
            f"seed {seed}: held-out loss {valid['k2', seed]:.4f} with FP8, "
            f"{valid['k2-lean', seed]:.4f} without"
        )
    noise = largest(*(curves["k2-lean", seed] for seed in SEEDS))
    print(f"of two seeds, both without FP8: {noise:.4f} nats")
    draw(curves, args.out)
    print(f"{args.out} written")


def train(folder: Path, preset: str, seed: int, steps: int, dtype: str) -> tuple[Curve, float]:
    """Losses of all steps, and the held-out loss at the end."""
    name = f"{preset}-{seed}"
    settings = {
        "run.name": name,
        "run.folder": folder,
        "run.seed": seed,
        "memory.preset": preset,
        "precision.dtype": dtype,
        "parallel.pipeline_model_parallel_size": 1,
        "schedule.train_steps": steps,
        "checkpoint.save_at_end": "false",
        "logging.log_every_steps": 1,
        "logging.valid_every_steps": steps,
    }
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    config = ROOT / "examples" / "configs" / "k2-tiny.yaml"
    command = [sys.executable, "-m", "k2_megatron", "train", str(config), *given]
    subprocess.run(
        command,
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return np.array([row["loss"] for row in rows]), rows[-1]["valid_loss"]


def smoothed(curve: Curve) -> Curve:
    """Running mean."""
    return np.convolve(curve, np.full(SMOOTHED_OVER, 1 / SMOOTHED_OVER), mode="valid")


def largest(one: Curve, other: Curve) -> float:
    """Largest difference of the running means."""
    return float(np.abs(smoothed(one) - smoothed(other)).max())


def draw(curves: dict[tuple[str, int], Curve], out: Path) -> None:
    """Losses above, differences below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(8, 6), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    colours = {("k2-lean", 0): "#2563a8", ("k2", 0): "#d9730d"}
    colours |= {("k2-lean", 1): "#93b4d8", ("k2", 1): "#eeb98a"}
    for index, seed in enumerate(SEEDS):
        for preset, label in PRESETS.items():
            values = smoothed(curves[preset, seed])
            steps = np.arange(len(values)) + SMOOTHED_OVER
            style = "-" if preset == "k2-lean" else (0, (3, 2))
            above.plot(
                steps,
                values,
                color=colours[preset, index],
                linestyle=style,
                label=f"{label}, seed {seed}",
            )
        change = smoothed(curves["k2", seed]) - smoothed(curves["k2-lean", seed])
        below.plot(
            steps, change, color=colours["k2", index], label=f"with - without FP8, seed {seed}"
        )
    first, second = (smoothed(curves["k2-lean", seed]) for seed in SEEDS)
    below.plot(steps, second - first, color="#8795a1", label="seed - seed, without FP8")
    above.set_ylabel(f"loss, mean of {SMOOTHED_OVER} steps")
    below.set_ylabel("difference")
    below.set_xlabel("step")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main()
