# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What a rank of the Hugging Face tests does: our model with given weights, and its export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from k2_megatron.checkpoint.huggingface.config_writing import write_config_json
from k2_megatron.checkpoint.huggingface.exporting import Export, export
from k2_megatron.checkpoint.huggingface.importing import open_import
from k2_megatron.checkpoint.huggingface.names import hf_tensors
from k2_megatron.checkpoint.identity import router_bias_key
from k2_megatron.data.request import DataOrder
from k2_megatron.model.attention_layers import transformer_layers
from k2_megatron.run_folder import RunFolder
from k2_megatron.train.session import Session
from k2_megatron.train.state import SessionSaver, resume_session
from tests.distributed.canonical import assemble
from tests.distributed.jobs import build, parameters, steps

Matrices = dict[str, torch.Tensor]


def both_ways(
    config_path: str,
    overrides: list[str],
    release: str,
    exported: str,
    tokens: list[list[int]],
    num_new: int,
) -> dict[str, Any]:
    """Logits and greedy continuations of our own weights, which are exported, and of a release."""
    session = build(config_path, overrides)
    disturb(session)
    write_release(session, Path(exported))
    found = {"own": answers(session, tokens, num_new)}
    imported = open_import(Path(release), session.config)
    set_matrices(session, dict(imported.matrices(imported.originals)))
    found["imported"] = answers(session, tokens, num_new)
    return found


def both_predictions(
    config_path: str, overrides: list[str], release: str, exported: str, tokens: list[list[int]]
) -> dict[str, list[torch.Tensor]]:
    """Logits [b, s, v] of the next token and the one after, of our own weights and a release."""
    session = build(config_path, overrides)
    disturb(session)
    write_release(session, Path(exported))
    found = {"own": _two_logits(session, tokens)}
    imported = open_import(Path(release), session.config)
    imported.check_copies()
    set_matrices(session, dict(imported.matrices(imported.originals)))
    return found | {"imported": _two_logits(session, tokens)}


@torch.no_grad()
def _two_logits(session: Session, tokens: list[list[int]]) -> list[torch.Tensor]:
    """What goes out of the head: first for the token after the next, then for the next."""
    (module,) = session.model.modules
    module.eval()
    seen: list[torch.Tensor] = []
    head = module.output_layer
    hook = head.register_forward_hook(  # cloned: the loss works in their memory
        lambda module, given, out: seen.append(out[0].transpose(0, 1).float().clone())
    )
    text = torch.tensor(tokens)
    positions = torch.arange(text.shape[1]).expand_as(text)
    module(text, positions, None, labels=text)
    hook.remove()
    module.train()
    after, following = seen
    return [following, after]


def train_a_step(
    config_path: str, overrides: list[str], tokens: list[list[int]]
) -> dict[str, torch.Tensor]:
    """Logits of the weights that the run finds, and of those it saves after one step."""
    session = build(config_path, overrides)
    folder = RunFolder.of(session.config)
    resumed = resume_session(session, folder, DataOrder(((0, "the data order"),)))
    assert resumed.step == 0 and resumed.path is not None, resumed
    found = answers(session, tokens, 0)["logits"]
    steps(session, 1, 1)
    saver = SessionSaver(session, folder, DataOrder(((0, "the data order"),)))
    saver.save(1)
    saver.finish()
    session.model.finish_parameter_gather()
    return {"found": found, "trained": answers(session, tokens, 0)["logits"]}


@torch.no_grad()
def disturb(session: Session) -> None:
    """Move norms and router biases from their initial values, which would hide a mistake."""
    generator = torch.Generator().manual_seed(5)
    for parameter, entry in session.model.parameters():
        if entry.is_vector:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    for bias in router_biases(session).values():
        bias.add_(0.1 * torch.randn(bias.shape, generator=generator))


def router_biases(session: Session) -> Matrices:
    """The selection biases by the key of their matrix."""
    return {
        router_bias_key(session.config.model, index): layer.mlp.router.expert_bias
        for index, layer in transformer_layers(session.model, session.topology)
        if hasattr(layer.mlp, "router")
    }


def get_matrices(session: Session) -> Matrices:
    """Everything the model consists of, [rows, columns]; one process holds it all."""
    found = assemble([parameters(session.model)], session.model.shapes)
    return found | {key: bias[:, None] for key, bias in router_biases(session).items()}


@torch.no_grad()
def set_matrices(session: Session, matrices: Matrices) -> None:
    """Fill the model through the geometry table; no matrix may be left over."""
    used = set()
    for parameter, entry in session.model.parameters():
        target = parameter.view(entry.shape)
        for piece in entry.pieces:
            source = matrices[piece.key][slice(*piece.rows), slice(*piece.cols)]
            target[slice(*piece.local_rows), slice(*piece.local_cols)] = source
            used.add(piece.key)
    for key, bias in router_biases(session).items():
        bias.copy_(matrices[key][:, 0])
        used.add(key)
    assert used == set(matrices)


def write_release(
    session: Session,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    shard_bytes: int = 100_000,
) -> None:
    """Export the session's weights."""
    model, matrices = session.config.model, get_matrices(session)
    plan = Export(
        folder=folder,
        source="a test",
        config=write_config_json(
            model, dtype=str(dtype).removeprefix("torch."), context=64, like=None
        ),
        tensors=hf_tensors(model),
        dtype=dtype,
        shard_bytes=shard_bytes,
    )
    export(plan, matrices.__getitem__, workers=2)


@torch.no_grad()
def answers(session: Session, tokens: list[list[int]], num_new: int) -> dict[str, torch.Tensor]:
    """Logits [b, s, v] of the prompts, and the prompts with their greedy continuation [b, s + n].

    Each new token takes a forward of the whole text.
    """
    (module,) = session.model.modules
    module.eval()
    text = torch.tensor(tokens)
    logits = _logits(module, text)
    for _ in range(num_new):
        latest = _logits(module, text)[:, -1].argmax(-1, keepdim=True)
        text = torch.cat((text, latest), dim=1)
    module.train()
    return {"logits": logits, "text": text}


def _logits(module: Any, text: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(text.shape[1]).expand_as(text)
    logits: torch.Tensor = module(text, positions, None).float()
    return logits
