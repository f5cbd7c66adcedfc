# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Runs in which something goes wrong: the real loop over real text, with one fault put in."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from k2_megatron.checkpoint.data_file import Staging
from k2_megatron.config.loader import load_config
from k2_megatron.errors import TrainingStoppedError, UserError
from k2_megatron.launch.preflight import check_run_folder
from k2_megatron.launch.signals import StopSignals
from k2_megatron.model.attention_layers import transformer_layers
from k2_megatron.parallel.flat_shards import flat_shards
from k2_megatron.platform.select import current_platform
from k2_megatron.run_folder import RunFolder
from k2_megatron.train.batches import Batch, Text, check_text
from k2_megatron.train.callbacks import Callback, CallbackList
from k2_megatron.train.garbage import GarbageCollection
from k2_megatron.train.guards.guards import Guards
from k2_megatron.train.guards.saves import GuardedSaver
from k2_megatron.train.jsonl import JsonlWriter
from k2_megatron.train.loop import Loop, Run
from k2_megatron.train.phases import check_phases, phase_to_build
from k2_megatron.train.session import Session, build_session
from k2_megatron.train.state import resume_session
from k2_megatron.train.tensorboard import TensorBoardWriter
from tests.distributed.checkpoint_jobs import held

Fault = Callable[[Session, int], None]


class WatchedText(Text):
    """Calls a fault before each step; text of some steps says one letter only."""

    def __init__(self, session: Session, fault: Fault, spoilt: tuple[int, ...]) -> None:
        super().__init__(session)
        self._fault, self._spoilt, self._of = fault, spoilt, session

    def train(self, first_step: int) -> Iterator[list[Batch]]:
        """The real batches."""
        for step, batches in enumerate(super().train(first_step), first_step):
            self._fault(self._of, step)
            if step in self._spoilt:
                for batch in batches:
                    if batch:
                        # Another each time: one that was trained on is soon expected.
                        batch["tokens"].fill_(255 - step)
                        batch["labels"].fill_(255 - step)
            yield batches


def train(
    folder: str,
    overrides: list[str],
    fault: str = "nothing",
    spoilt: tuple[int, ...] = (),
    state: Mapping[str, Any] | None = None,
    file: str = "tiny.yaml",
    poor: bool = False,
) -> dict[str, Any]:
    """Train or go on in `folder` as the command does; what was said, and how it ended.

    Args:
        folder: has the configuration and its corpus.
        overrides: of the configuration.
        fault: one of FAULTS.
        spoilt: steps whose text is spoilt.
        state: of the guards at the beginning of a new run.
        file: the configuration.
        poor: rank 1 gets no host memory for saves.
    """
    os.chdir(folder)
    config = load_config(file, overrides)
    platform, rank = current_platform(), dist.get_rank()
    checked = check_phases(config, platform, dist.get_world_size())
    phase = phase_to_build(checked.phases, check_run_folder(config))
    session = build_session(checked.config, platform, dist.get_world_size(), checked.phases, phase)
    said: list[str] = []
    watchers: list[Callback] = [JsonlWriter(check_run_folder(config).path)]
    if config.logging.tensorboard:
        watchers.append(TensorBoardWriter(check_run_folder(config).path))
    run = Run(
        session=session,
        text=WatchedText(session, FAULTS[fault], spoilt),
        folder=check_run_folder(config),
        data_order=check_text(config),
        memory=checked.memory[phase.index],
        callbacks=CallbackList(watchers, writes=rank == 0, say=said.append),
        stop_signals=StopSignals(),
        say=said.append,
    )
    resumed = resume_session(session, run.folder, run.data_order)
    guards = Guards.of(session, run.folder, state or resumed.guards, start=1)
    run.callbacks.on_train_start(resumed.step)
    ended: int | str
    told: list[bool] = []
    finish = GuardedSaver.finish

    def noted(saver: GuardedSaver, **given: Any) -> None:
        told.append(given.get("waiting") is not None)
        finish(saver, **given)

    allocate = Staging._allocate

    def limited(staging: Staging, nbytes: int) -> None:
        if poor and rank == 1:
            raise RuntimeError(f"cudaHostRegister: 2 for {nbytes} bytes")
        allocate(staging, nbytes)

    try:
        with (
            GarbageCollection() as garbage,
            patch.object(GuardedSaver, "finish", noted),
            patch.object(Staging, "_allocate", limited),
        ):
            ended = Loop(run, guards, garbage).train(resumed.step)
        run.callbacks.on_train_end()
    except (TrainingStoppedError, UserError) as error:
        ended = f"{type(error).__name__}: {error}"
    run.callbacks.close()
    _limit_files(resource.RLIM_INFINITY)
    return {
        "ended": ended,
        "said": said,
        "held": held(session),
        "biases": session.router_bias.biases(),
        "state": guards.state(),
        "waits_unseen": told.count(False),
    }


def _first_layer(session: Session) -> Any:
    """Layer 0, where this rank holds it."""
    return dict(transformer_layers(session.model, session.topology)).get(0)


def _nothing(session: Session, step: int) -> None:
    """No fault."""


def _gradient(session: Session, step: int) -> None:
    """From step 3 on the gradient of one matrix of rank 1 is infinite; rank 0 owns its shard."""
    if step == 3 and dist.get_rank() == 1:
        shards = flat_shards(session.model.chunks)
        weight = next(shard.parameter for shard in shards if shard.begin == shard.end)
        weight.register_hook(lambda gradient: gradient + torch.inf)


def _activation(session: Session, step: int) -> None:
    """From step 3 on an output in layer 0 is NaN, which all later layers get to see."""
    layer = _first_layer(session)
    if step == 3 and layer is not None:
        module = layer.self_attention.linear_proj
        module.register_forward_hook(lambda _, __, output: (output[0] * torch.nan, output[1]))


def _weight(session: Session, step: int) -> None:
    """At step 3 one element of rank 1's final norm becomes NaN."""
    if step == 3 and dist.get_rank() == 1:
        session.model.modules[0].decoder.final_layernorm.weight.data[0] = torch.nan


def _loss(session: Session, step: int) -> None:
    """From step 3 on the loss is infinite, and no gradient is."""
    if step == 3 and session.topology.is_last_stage:
        session.model.modules[-1].register_forward_hook(lambda _, __, output: output + torch.inf)


def _passing(session: Session, step: int) -> None:
    """In steps 3 to 5, and never again, a gradient is infinite."""
    if step == 3 and dist.get_rank() == 1:
        passes = iter(range(3))  # one micro-batch a step
        weight = _first_layer(session).self_attention.linear_proj.weight
        weight.register_hook(lambda grad: grad + (0 if next(passes, None) is None else torch.inf))


def _full_disk(session: Session, step: int) -> None:
    """Around the saves after steps 2 and 4 no file of any rank may grow beyond 4 KB."""
    _limit_files(4096 if 2 <= step <= 4 else resource.RLIM_INFINITY)


def _full_disk_twice(session: Session, step: int) -> None:
    """Around the saves after steps 2 and 6 no file of any rank may grow beyond 4 KB."""
    _limit_files(4096 if step in (2, 3, 6, 7) else resource.RLIM_INFINITY)


def _full_disk_for_ever(session: Session, step: int) -> None:
    """From step 3 on no file of rank 1 may grow."""
    if step == 3 and dist.get_rank() == 1:
        _limit_files(4096)


def _full_disk_of_metrics(session: Session, step: int) -> None:
    """In step 9, after which the run goes back, rank 0 cannot write its metrics anew."""
    if dist.get_rank() == 0:
        _limit_files(256 if step == 9 else resource.RLIM_INFINITY)


def _full_disk_at_the_end(session: Session, step: int) -> None:
    """From step 8 on, the last one, rank 0 cannot write its metrics."""
    if step == 8 and dist.get_rank() == 0:
        _limit_files(256)


def _damaged_metrics(session: Session, step: int) -> None:
    """In step 9, after which the run goes back, the first line of the metrics is altered."""
    if step == 9 and dist.get_rank() == 0:
        path = RunFolder.of(session.run_config).path / "metrics.jsonl"
        path.write_text("-" + path.read_text()[1:])


def _damaged(session: Session, step: int) -> None:
    """In step 10 a byte of checkpoint 8 is altered."""
    if step == 10 and dist.get_rank() == 0:
        folder = RunFolder.of(session.run_config).checkpoints / "step_00000008"
        path = folder / "rank_00000.bin"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def _limit_files(num_bytes: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))


def _sleep(session: Session, step: int) -> None:
    """In step 3 rank 1 sleeps where the others wait for it."""
    if step == 3 and dist.get_rank() == 1:
        time.sleep(1000)


def _slow(session: Session, step: int) -> None:
    """From step 2 on every attention of rank 1 takes 20 ms longer."""
    if step == 2 and dist.get_rank() == 1:
        attention = _first_layer(session).self_attention.core_attention
        attention.register_forward_pre_hook(lambda *_: time.sleep(0.02))


FAULTS: dict[str, Fault] = {
    "nothing": _nothing,
    "gradient": _gradient,
    "activation": _activation,
    "weight": _weight,
    "loss": _loss,
    "passing": _passing,
    "full disk": _full_disk,
    "full disk twice": _full_disk_twice,
    "full disk for ever": _full_disk_for_ever,
    "full disk of metrics": _full_disk_of_metrics,
    "full disk at the end": _full_disk_at_the_end,
    "damaged metrics": _damaged_metrics,
    "damaged": _damaged,
    "sleep": _sleep,
    "slow": _slow,
}
