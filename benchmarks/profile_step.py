# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Where the time of a training step of the K2 slice goes, on one GPU.

    python3 benchmarks/profile_step.py run --out FOLDER     on the GPU: profile.json
    python3 benchmarks/profile_step.py draw FOLDER          anywhere: profile.png

Counts host synchronisations too, with their place in the source, by PyTorch's sync debug mode.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from exposed import joined, kernels_of, length

# A kernel belongs to the first group whose pattern its name has.
GROUPS = {
    "Newton-Schulz": r"_symmetric_product|_hsh_|_divided|_gram",
    "optimizer: clipping, momentum, update": r"multi_tensor|adam|l2norm|_momentum|_apply_update",
    "attention core": r"fmha|flash|sdpa|cudnn.*attn|bprop|fprop",
    "loss": r"cross_entropy|softmax",
    "expert and linear matrix products": r"gemm|cutlass|nvjet|xmma|cublas|splitk",
    "permutation and routing": r"permut|sort|topk|scatter|gather|histogram|index|row_id",
    "copies and fills": r"memcpy|memset|copy|fill|zero|catarray",
    "SwiGLU, norms, residual, rope": r"silu|swiglu|rmsnorm|norm_|ln_|rotary|triton|element|mul|add",
}


def run(folder: Path, micro_batches: int, overrides: list[str]) -> None:
    """Profile one step after warm-up and write profile.json."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29517")
    import ours
    import torch
    from measure import SEQ_LENGTH, VOCAB_SIZE

    arguments = argparse.Namespace(
        layers=2, tp=1, pp=1, vpp=1, ep=1, micro_batches=micro_batches, overrides=overrides
    )
    session = ours.build(arguments)
    from k2_megatron.train.step import train_step

    tokens = torch.randint(VOCAB_SIZE, (micro_batches, 1, SEQ_LENGTH), device="cuda")
    batches = [
        {
            "tokens": text,
            "labels": text.roll(-1, 1),
            "position_ids": torch.arange(SEQ_LENGTH, device="cuda")[None],
            "loss_mask": torch.ones(1, SEQ_LENGTH, device="cuda"),
        }
        for text in tokens
    ]
    for step in range(1, 4):
        train_step(session, batches, step)
    torch.cuda.synchronize()
    numbers = itertools.count(4)
    found = kernels_of(lambda: train_step(session, batches, next(numbers)), warmup=2)
    kernels = [{"name": name, "begin": begin, "end": end} for name, begin, end in found]
    syncs = count_syncs(lambda: train_step(session, batches, 7))
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "device": torch.cuda.get_device_name(),
        "micro_batches": micro_batches,
        "kernels": kernels,
        "syncs": syncs,
    }
    (folder / "profile.json").write_text(json.dumps(result))
    print(summary(result))
    torch.distributed.destroy_process_group()


def count_syncs(action: Any) -> dict[str, int]:
    """How often the host waited for the device, by the line of Python that made it."""
    import torch

    found: Counter[str] = Counter()

    def note(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
        # The mode says of itself, once, that it does not yet detect all synchronizing operations.
        if "synchroniz" in str(message) and "prototype" not in str(message):
            frame: Any = sys._getframe(1)
            names = []
            while frame is not None:
                name = frame.f_code.co_filename
                if "/megatron/" in name or "/k2_megatron/" in name or "/parallel/" in name:
                    names.append(f"{Path(name).name}:{frame.f_lineno}")
                frame = frame.f_back
            found[names[0] if names else f"{Path(filename).name}:{lineno}"] += 1

    before = warnings.showwarning
    warnings.showwarning = note  # type: ignore[assignment]
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note  # type: ignore[assignment]
            action()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        warnings.showwarning = before
    return dict(found)


def by_group(kernels: list[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds of each group of kernels."""
    total: dict[str, float] = dict.fromkeys([*GROUPS, "other"], 0.0)
    for kernel in kernels:
        name = kernel["name"].lower()
        group = next((group for group, key in GROUPS.items() if re.search(key, name)), "other")
        total[group] += (kernel["end"] - kernel["begin"]) / 1e3
    return total


def summary(result: dict[str, Any]) -> str:
    """The groups, the longest kernels, the idle time and the synchronisations, as text."""
    kernels = result["kernels"]
    first = min(kernel["begin"] for kernel in kernels)
    last = max(kernel["end"] for kernel in kernels)
    lines = [f"{result['device']}: step {(last - first) / 1e3:.1f} ms, idle {idle(kernels):.1f} ms"]
    for group, ms in sorted(by_group(kernels).items(), key=lambda item: -item[1]):
        lines.append(f"{ms:9.1f} ms  {group}")
    longest: Counter[str] = Counter()
    for kernel in kernels:
        longest[kernel["name"][:90]] += kernel["end"] - kernel["begin"]
    lines += [f"{us / 1e3:9.1f} ms    {name}" for name, us in longest.most_common(40)]
    lines.append(f"host synchronisations: {sum(result['syncs'].values())} {result['syncs']}")
    return "\n".join(lines)


def idle(kernels: list[dict[str, Any]]) -> float:
    """Milliseconds between the first and the last kernel in which none ran."""
    busy = joined((kernel["begin"], kernel["end"]) for kernel in kernels)
    return (busy[-1][1] - busy[0][0] - length(busy)) / 1e3


def draw(folder: Path) -> None:
    """One bar of the step by group, beside it the time of each, largest first."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    result = json.loads((folder / "profile.json").read_text())
    groups = {**by_group(result["kernels"]), "idle": idle(result["kernels"])}
    groups = {name: ms for name, ms in sorted(groups.items(), key=lambda item: -item[1]) if ms}
    figure, axes = pyplot.subplots(figsize=(10, 4.2))
    colours = pyplot.get_cmap("tab20").colors
    names = list(groups)[::-1]
    axes.barh(names, [groups[name] for name in names], color=colours[: len(names)][::-1])
    begins, ends = ([kernel[name] for kernel in result["kernels"]] for name in ("begin", "end"))
    total = (max(ends) - min(begins)) / 1e3
    for row, name in enumerate(names):
        share = 100 * groups[name] / total
        axes.text(groups[name], row, f"  {groups[name]:.1f} ms, {share:.0f} %", va="center")
    axes.set_xlim(0, max(groups.values()) * 1.25)
    axes.set_xlabel("milliseconds of one training step; kernels of several streams overlap")
    axes.set_title(
        f"K2 slice, 2 layers, {result['micro_batches']} x 4096 tokens, {result['device']}: "
        f"{total:.0f} ms",
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(folder / "profile.png", dpi=120)
    print(f"{folder / 'profile.png'} written")


def main() -> None:
    """Run or draw."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("--out", type=Path, required=True)
    runner.add_argument("--micro-batches", type=int, default=4)
    runner.add_argument("--set", dest="overrides", action="append", default=[])
    drawer = commands.add_parser("draw")
    drawer.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.command == "run":
        run(args.out, args.micro_batches, args.overrides)
    else:
        draw(args.folder)


if __name__ == "__main__":
    main()
