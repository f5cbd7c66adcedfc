# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint holds: model, optimizer, random state, and what it belongs to."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from k2_megatron.checkpoint.folder import Saved
from k2_megatron.checkpoint.manifest import rank_file_name, read_manifest
from k2_megatron.checkpoint.rank_file import read_rank_file
from k2_megatron.checkpoint.ranks import Ranks
from k2_megatron.checkpoint.resume import find_resumable
from k2_megatron.checkpoint.saving import save
from k2_megatron.errors import CheckpointError
from k2_megatron.parallel import megatron_state
from k2_megatron.platform.base import Platform
from k2_megatron.run_folder import RunFolder
from k2_megatron.train.session import Session

# What may differ in a run that goes on: how the model is trained and how far it looks (annealing
# freezes the router bias, YaRN stretches the context), not what it is.
CHANGEABLE_MODEL_KEYS = frozenset(
    {
        "preset",
        "init_method_std",
        "moe_router_bias_update_rate",
        "moe_aux_loss_coeff",
        "mtp_loss_scaling_factor",
        "rope_type",
        "rotary_scaling_factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
    }
)


def save_session(session: Session, folder: RunFolder, step: int, fingerprint: str) -> Saved:
    """Save the run after `step`. Collective.

    Args:
        fingerprint: of the data order, so that a resume that would change it is refused.

    Raises:
        CheckpointError: a rank could not write; earlier checkpoints are untouched.
    """
    session.model.finish_parameter_gather()
    schedule = session.config.schedule
    return save(
        folder.checkpoints,
        step,
        _payload(session),
        rank=session.topology.rank,
        world_size=session.topology.world_size,
        layout=_layout(session),
        metadata={
            "consumed_samples": step * schedule.global_batch_size,
            "data_order": fingerprint,
        },
        keep_last=session.config.checkpoint.keep_last,
    )


def resume_session(session: Session, folder: RunFolder, fingerprint: str) -> tuple[int, list[str]]:
    """Restore the newest whole checkpoint if there is one. Collective.

    Returns:
        The step it was saved after, 0 where there is none, and warnings for the log.

    Raises:
        CheckpointError: it belongs to another model, layout or data order.
    """
    rank, world_size = session.topology.rank, session.topology.world_size
    layout = _layout(session)
    found = find_resumable(folder.checkpoints, rank=rank, world_size=world_size, layout=layout)
    if found.path is None:
        return 0, list(found.warnings)
    manifest = read_manifest(found.path)
    if manifest.metadata["data_order"] != fingerprint:
        raise CheckpointError(
            f"{found.path}: it was trained on samples in another order (data.corpora, "
            "data.valid_fraction, schedule.seq_length, run.seed, or more train_steps that need "
            "another pass over the data); restore those, or use another run.name to start anew"
        )
    path, payload = found.path, dict[str, Any]()

    def read() -> None:
        # find_resumable has just verified this file: hashing it again would double the start.
        payload.update(read_rank_file(path / rank_file_name(rank)))

    Ranks(rank, world_size).together(f"loading {path}", read)
    _restore(session, payload)
    return manifest.step, list(found.warnings)


def _layout(session: Session) -> dict[str, Any]:
    """What must be equal for a rank's file to fit this rank."""
    config = session.config
    parallel = asdict(config.parallel)
    # None of these changes what is where; overlap_grad_reduce does, by cutting buckets.
    for name in (
        "overlap_param_gather",
        "moe_token_dispatcher_type",
        "overlap_moe_expert_parallel_comm",
        "delay_wgrad_compute",
    ):
        del parallel[name]
    return {
        "platform": session.platform.name,
        "dtype": config.precision.dtype,
        "optimizer": config.optimizer.type,
        "global_batch_size": config.schedule.global_batch_size,
        **{f"parallel.{name}": value for name, value in parallel.items()},
        **{
            f"model.{name}": value
            for name, value in asdict(config.model).items()
            if name not in CHANGEABLE_MODEL_KEYS
        },
    }


def _payload(session: Session) -> dict[str, Any]:
    return {
        "model": [
            {
                "parameters": {name: p.detach() for name, p in module.named_parameters()},
                "buffers": dict(module.named_buffers()),
            }
            for module in session.model.modules
        ],
        "optimizer": session.optimizer.state_dict(),
        "random": _random_state(session.platform),
    }


@torch.no_grad()
def _restore(session: Session, payload: dict[str, Any]) -> None:
    for module, saved in zip(session.model.modules, payload["model"], strict=True):
        for name, parameter in module.named_parameters():
            parameter.copy_(saved["parameters"][name])
        for name, buffer in module.named_buffers():
            buffer.copy_(saved["buffers"][name])
    session.optimizer.load_state_dict(payload["optimizer"])
    _set_random_state(payload["random"], session.platform)


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


def _set_random_state(state: dict[str, Any], platform: Platform) -> None:
    torch.set_rng_state(state["torch"])
    platform.set_random_state(state["device"])
    megatron_state.set_random_states(state["tracker"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
