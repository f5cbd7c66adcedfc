# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Saving and loading a K2 slice: how long, what the steps beside it take, host memory.

    python3 benchmarks/checkpoint.py [--layers 1] [--repeats 3] [--limit 150] [--folder runs]
    python3 benchmarks/checkpoint.py --quick      on a CPU: the tests' model

One GPU. In turn: some steps, a save that training waits for, some steps, a save in the background
with steps beside it until it has its name, a load; medians over the turns. The folder must be on
the disk that is to be measured. A layer takes about 10 GB on it with MuonClip and embedding and
output 6 GB more; two checkpoints lie there at once. Loading reads what has just been written, so
its bytes may come from the page cache.

A step here ends with the look after the save that the training loop takes, and with a
synchronisation. `step after` is the first one after the save, `steps beside` the median of those
that ran while it was written; both by the median of the steps before it, of the same turn. Host
memory is what is resident at most beyond what was before the first save; on a GPU a save in the
background locks as many bytes of it as `this rank's file` has.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from calls import print_machine

from k2_megatron.config.loader import load_config
from k2_megatron.data.request import DataOrder
from k2_megatron.platform.select import current_platform
from k2_megatron.run_folder import RunFolder

if TYPE_CHECKING:
    from k2_megatron.train.session import Session

ROOT = Path(__file__).parents[1]
SLICE = ROOT / "examples" / "configs" / "k2-slice-h100.yaml"
SMALL = ROOT / "tests" / "distributed" / "small.yaml"
ORDER = DataOrder(((0, "a benchmark"),))
STEPS_BEFORE = 5
MOST_STEPS_BESIDE = 1000


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=150, help="seconds for all turns to end in")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="on the disk to measure")
    parser.add_argument("--quick", action="store_true", help="the tests' small model on the CPU")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    args = parser.parse_args()
    began = time.monotonic()
    if args.quick:
        os.environ["K2_MEGATRON_PLATFORM"] = "cpu"
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="checkpoint-") as folder:
        session = build(args, folder)
        print_machine(session.platform.device, "torch", "megatron-core")
        print(f"CPU threads: {torch.get_num_threads()}; built in {time.monotonic() - began:.0f} s")
        turns: list[dict[str, float]] = []
        bench = Bench(session)
        bench.steps(3)  # compile and allocate
        while len(turns) < args.repeats:
            turn_began = time.monotonic()
            turns.append(bench.turn())
            now = time.monotonic()
            if now + (now - turn_began) > began + args.limit:
                break
        show(turns)
    dist.destroy_process_group()


def build(args: argparse.Namespace, folder: str) -> Session:
    """The session of the slice, or of the small model."""
    given = {"run.folder": folder, "schedule.train_steps": 1_000_000, "checkpoint.keep_last": 1}
    if not args.quick:
        given["model.num_layers"] = args.layers
    overrides = [*(f"{key}={value}" for key, value in given.items()), *args.overrides]
    config = load_config(SMALL if args.quick else SLICE, overrides)
    platform = current_platform()
    platform.prepare(0)
    store = dist.HashStore()
    dist.init_process_group(
        platform.backend, store=store, rank=0, world_size=1, **platform.process_group_options()
    )
    from k2_megatron.train.session import build_session

    return build_session(config, platform, 1)


@dataclass
class Bench:
    """Trains, saves and loads one session. step: the last one done."""

    session: Session
    step: int = 0
    batches: list[dict[str, torch.Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        from k2_megatron.train.state import SessionSaver

        config, device = self.session.config, self.session.platform.device
        size = (config.schedule.micro_batch_size, config.schedule.seq_length)
        positions = torch.arange(size[1], device=device).expand(size)
        for _ in range(self.session.sizes.num_microbatches):
            tokens = torch.randint(config.model.vocab_size, size, device=device)
            self.batches.append(
                {
                    "tokens": tokens,
                    "labels": tokens.roll(-1, 1),
                    "position_ids": positions,
                    "loss_mask": torch.ones(size, device=device),
                }
            )
        self.folder = RunFolder.of(config)
        self.resident, self.saved_bytes = 0, 0
        self.savers: dict[bool, Any] = {}
        for background in (False, True):
            options = replace(config.checkpoint, async_save=background)
            phase = replace(self.session.phase, config=replace(config, checkpoint=options))
            session = replace(self.session, phase=phase)
            self.savers[background] = SessionSaver(session, self.folder, ORDER)

    def steps(self, count: int) -> list[float]:
        """Seconds of some steps without a save."""
        return [self._step(lambda: None) for _ in range(count)]

    def turn(self) -> dict[str, float]:
        """All measurements once."""
        self.resident = self.resident or reset_peak_rss()
        found = {"normal step s": statistics.median(self.steps(STEPS_BEFORE))}
        for background in (False, True):
            found |= {f"{background} {name}": v for name, v in self._save(background).items()}
        return found | self._load()

    def _save(self, background: bool) -> dict[str, float]:
        normal = statistics.median(self.steps(STEPS_BEFORE))
        saver = self.savers[background]
        now = reset_peak_rss()
        before = self.resident if background else now
        reserved = 0.0
        if background:  # as the training loop does before its first step
            began = time.perf_counter()
            saver.reserve()
            reserved = time.perf_counter() - began
        began = time.perf_counter()
        saved = saver.save(self.step)
        stood = time.perf_counter() - began
        beside: list[float] = []
        look: Callable[[], object] = lambda: saved.extend(saver.advance())  # noqa: E731
        while not saved and len(beside) < MOST_STEPS_BESIDE:
            beside.append(self._step(look))
        saved = saved or saver.finish()
        named = time.perf_counter() - began
        peak = status_bytes("VmHWM")
        after = beside or self.steps(1)
        path = saved[-1].path
        self.saved_bytes = sum(file.stat().st_size for file in path.iterdir())
        found = {
            "stood still s": stood,
            "GB/s": self.saved_bytes / named / 1e9,
            "host memory GiB": (peak - before) / 2**30,
            "step after, ratio": after[0] / normal,
        }
        if background:
            found["reserved before s, in the first turn"] = reserved
            found["until it had its name s"] = named
            found["steps beside"] = len(beside)
            found["steps beside, ratio"] = statistics.median(after) / normal
        return found

    def _load(self) -> dict[str, float]:
        from k2_megatron.train.state import resume_session

        before = reset_peak_rss()
        began = time.perf_counter()
        resumed = resume_session(self.session, self.folder, ORDER)
        self._wait()
        seconds = time.perf_counter() - began
        self.step = resumed.step
        return {
            "load s": seconds,
            "load GB/s": self.saved_bytes / seconds / 1e9,
            "load, host memory GiB": (status_bytes("VmHWM") - before) / 2**30,
            "checkpoint GB": self.saved_bytes / 1e9,
            "this rank's file GiB": (resumed.path / "rank_00000.bin").stat().st_size / 2**30,
        }

    def _step(self, look: Callable[[], object]) -> float:
        from k2_megatron.train.step import train_step

        self.step += 1
        self._wait()
        began = time.perf_counter()
        train_step(self.session, self.batches, self.step)
        look()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.session.platform.device.type == "cuda":
            torch.cuda.synchronize()


def show(turns: list[dict[str, float]]) -> None:
    """Medians over the turns, and each turn."""
    print(f"turns: {len(turns)}; medians, then each turn")
    names = {"False ": "waited for: ", "True ": "in the background: "}
    for name in turns[0]:
        text = name
        for key, shown in names.items():
            text = text.replace(key, shown)
        values = [turn[name] for turn in turns]
        each = "  ".join(f"{value:.3f}" for value in values)
        print(f"{text:52s}{statistics.median(values):10.3f}    {each}")


def reset_peak_rss() -> int:
    """Resident bytes now, from which on the peak is counted (where the kernel lets it be reset)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


if __name__ == "__main__":
    main()
