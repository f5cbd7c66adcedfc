# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Save a run and go on from it, in the layout it was saved in or in any other."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from k2_megatron.checkpoint.folder import Keeping, Saved
from k2_megatron.checkpoint.identity import identity, layout
from k2_megatron.checkpoint.manifest import Manifest, plain, rank_file_name, read_manifest
from k2_megatron.checkpoint.rank_file import read_rank_file
from k2_megatron.checkpoint.ranks import Ranks
from k2_megatron.checkpoint.resume import find_resumable, load
from k2_megatron.checkpoint.saving import Belonging, Saver
from k2_megatron.checkpoint.weights import WEIGHT
from k2_megatron.config.phases import phase_at
from k2_megatron.data.request import DataOrder
from k2_megatron.errors import CheckpointError
from k2_megatron.parallel import megatron_state
from k2_megatron.platform.base import Platform
from k2_megatron.run_folder import RunFolder
from k2_megatron.train.holdings import run_holdings, run_matrices, weight_matrices
from k2_megatron.train.session import Session


class SessionSaver:
    """Saves a session again and again; an asynchronous save goes on while the session trains."""

    def __init__(self, session: Session, folder: RunFolder, order: DataOrder) -> None:
        """Touch nothing yet.

        Args:
            session: the run.
            folder: its folder.
            order: of the data, so that a resume that would change it is refused.
        """
        options = session.config.checkpoint
        self._session, self._order = session, order
        self._ranks = _ranks(session)
        self._saver = Saver(
            folder.checkpoints,
            self._ranks,
            Belonging(
                layout=layout(session.config, session.platform.name),
                identity=identity(session.run_config),
                shapes=run_matrices(session),
            ),
            keeping=Keeping(last=options.keep_last, every_steps=options.keep_every_steps),
            asynchronous=options.async_save,
            pinned=session.platform.pins_memory,
        )

    def reserve(self) -> None:
        """Do what the first save in the background would make training wait for. Collective.

        Raises:
            CheckpointError: a rank has too little host memory.
        """
        self._saver.reserve(run_holdings(self._session))

    def save(
        self,
        step: int,
        guards: Mapping[str, Any] | None = None,
        waiting: Callable[[], None] | None = None,
    ) -> list[Saved]:
        """Save the run after `step`, or begin to. Collective.

        Args:
            step: the last one done.
            guards: JSON data of what watches the run; rank 0's is kept.
            waiting: called as more is written, where this waits for it; on all ranks or on none.

        Returns:
            The checkpoints that have got their names since the last call.

        Raises:
            CheckpointError: a rank could not write; earlier checkpoints are untouched.
        """
        session = self._session
        shared = self._ranks.share((session.optimizer.num_updates(), guards))
        counts = {count for count, _ in shared} - {None}
        assert len(counts) <= 1, f"ranks have counted different numbers of updates: {counts}"
        return self._saver.start(
            step,
            run_holdings(session),
            _random_state(session.platform),
            {
                **_consumed(session, step),
                "data_order": self._order.at(step),
                "optimizer_updates": counts.pop() if counts else 0,
                "guards": dict(shared[0][1] or {}),
            },
            waiting,
        )

    def advance(self) -> list[Saved]:
        """Look after a save that goes on; call after each step. Collective if there is one.

        Raises:
            CheckpointError: a rank could not write; earlier checkpoints are untouched.
        """
        return self._saver.advance()

    def finish(self, waiting: Callable[[], None] | None = None) -> list[Saved]:
        """Wait for a save that goes on. Collective.

        Args:
            waiting: called as often as any rank has written more; on all ranks or on none.

        Raises:
            CheckpointError: a rank could not write; earlier checkpoints are untouched.
        """
        return self._saver.finish(waiting)


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """Where a run goes on.

    Attributes:
        step: after which it was saved; 0 where there is nothing to go on from, or weights alone.
        path: the checkpoint, None where there is none.
        warnings: what is wrong in the folder of checkpoints.
        notes: what is not the same as if the run had not stopped.
        guards: what `SessionSaver.save` was given.
    """

    step: int
    path: Path | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    guards: Mapping[str, Any] = field(default_factory=dict)


def resume_session(
    session: Session, folder: RunFolder, order: DataOrder, *, before: int | None = None
) -> Resumed:
    """Restore the newest whole checkpoint if there is one. Collective.

    Args:
        session: the run.
        folder: its folder.
        order: of the data.
        before: only checkpoints of smaller steps are looked at; None: all.

    Raises:
        CheckpointError: it belongs to another model, optimizer or data order, to other phases
            before its step, or to a phase that these processes are not made for.
    """
    ranks = _ranks(session)
    found = find_resumable(folder.checkpoints, ranks, identity(session.run_config), before=before)
    if found.path is None:
        return Resumed(step=0, path=None, warnings=found.warnings)
    path, manifest = found.path, read_manifest(found.path)
    if not manifest.weights_only:
        _check_past(session, path, manifest, order)
    elif before is not None:
        raise CheckpointError(
            f"{path}: weights alone cannot be gone back to, and checkpoints between it and step "
            f"{before} are damaged: move newer ones away and start again"
        )
    holdings, shapes = run_holdings(session), run_matrices(session)
    if manifest.weights_only:
        holdings = [holding for holding in holdings if holding.kind == WEIGHT]
        shapes = weight_matrices(session)
    load(path, holdings, shapes, ranks)
    session.optimizer.loaded(manifest.metadata.get("optimizer_updates", 0))
    session.model.gather_parameters()
    if manifest.weights_only:
        notes = [f"weights from {path}; optimizer and data begin anew"]
    else:
        notes = _restore_random_state(session, path, manifest, ranks)
    return Resumed(
        step=manifest.step,
        path=path,
        warnings=found.warnings,
        notes=tuple(notes),
        guards=manifest.metadata.get("guards", {}),
    )


def _consumed(session: Session, step: int) -> dict[str, int]:
    """Samples and tokens of the run up to the end of a step."""
    samples, tokens = phase_at(session.phases, step).consumed_after(step)
    return {"consumed_samples": samples, "consumed_tokens": tokens}


def _check_past(session: Session, path: Path, manifest: Manifest, order: DataOrder) -> None:
    """Refuse a checkpoint whose past is not this run's, or whose phase these processes are not for.

    Raises:
        CheckpointError: says what to restore.
    """
    step, saved = manifest.step, manifest.metadata
    ours = _consumed(session, step)["consumed_samples"]
    if saved["consumed_samples"] != ours:
        raise CheckpointError(
            f"{path}: it has consumed {saved['consumed_samples']} samples in {step} steps, and by "
            f"this schedule that would be {ours}; restore the lengths and batches of the phases "
            "before that step, or use another run.name to start anew"
        )
    if saved["data_order"] != order.at(step):
        added = "; a phase of another seq_length that is added now needs data.corpora of its own"
        added = added if len(session.phases) > 1 else ""
        raise CheckpointError(
            f"{path}: it was trained on samples in another order (data.corpora, "
            "data.valid_fraction, schedule.seq_length, run.seed, or more train_steps that need "
            "another pass over the data); restore those, or use another run.name to start anew"
            f"{added}"
        )
    phase = phase_at(session.phases, step + 1)
    if not session.first_step_here <= phase.first_step <= session.last_step_here:
        raise CheckpointError(
            f"{path}: it goes on in phase {phase.name}, and these processes were made for phase "
            f"{session.phase.name}; newer checkpoints are damaged or cannot be gone back to: move "
            "them away and start again"
        )


def _ranks(session: Session) -> Ranks:
    return Ranks(session.topology.rank, session.topology.world_size)


def _restore_random_state(
    session: Session, path: Path, manifest: Manifest, ranks: Ranks
) -> list[str]:
    """Give each rank the generators it had; where the layout changed, say what cannot be."""
    ours = {
        "processes": ranks.world_size,
        **plain(layout(session.config, session.platform.name)),
    }
    saved = {"processes": manifest.world_size, **manifest.layout}
    changed = [key for key in ours | saved if ours.get(key) != saved.get(key)]
    if changed:
        told = ", ".join(f"{key} {saved.get(key)} -> {ours.get(key)}" for key in sorted(changed))
        return [
            f"another layout ({told}): random states belong to ranks and begin anew from run.seed; "
            "weights, optimizer, data and schedule go on"
        ]
    state: dict[str, Any] = {}

    def read() -> None:
        # find_resumable has just verified this file: hashing it again would double the start.
        state.update(read_rank_file(path / rank_file_name(ranks.rank)))

    ranks.together(f"loading {path}", read)
    _set_random_state(state, session.platform)
    return []


def _random_state(platform: Platform) -> dict[str, Any]:
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    kind, keys, position, has_gauss, cached = legacy
    return {
        "torch": torch.get_rng_state(),
        "device": platform.random_state(),
        "tracker": megatron_state.random_states(),
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
    }


def _set_random_state(state: Mapping[str, Any], platform: Platform) -> None:
    torch.set_rng_state(state["torch"])
    platform.set_random_state(state["device"])
    megatron_state.set_random_states(state["tracker"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
