# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What this rank holds of a run, as rectangles of canonical matrices."""

from __future__ import annotations

import torch

from k2_megatron.checkpoint.data_file import Holding, matrix_name
from k2_megatron.checkpoint.identity import model_matrices, router_bias_key
from k2_megatron.checkpoint.weights import WEIGHT
from k2_megatron.parallel.geometry import ParameterGeometry
from k2_megatron.parallel.model_space import Region, regions
from k2_megatron.parallel.topology import Topology
from k2_megatron.train.session import Session


def run_matrices(session: Session) -> dict[str, tuple[int, int]]:
    """(rows, columns) of everything that the ranks hold together, by name in a checkpoint."""
    return {
        matrix_name(kind, key): size
        for key, size in model_matrices(session.config.model).items()
        for kind in ((WEIGHT,) if _is_bias(key) else session.optimizer.kinds(key))
    }


def weight_matrices(session: Session) -> dict[str, tuple[int, int]]:
    """(rows, columns) of the weights alone, by name in a checkpoint."""
    matrices = model_matrices(session.config.model)
    return {matrix_name(WEIGHT, key): size for key, size in matrices.items()}


def run_holdings(session: Session) -> list[Holding]:
    """This rank's master weights, moments and router biases; the tensors are those of the run."""
    entries = {id(parameter): entry for parameter, entry in session.model.parameters()}
    topology = session.topology
    two_embeddings = session.config.model.mtp_num_layers > 0 and topology.pp.size > 1
    found = []
    for state in session.optimizer.shard_states():
        entry = entries[id(state.parameter)]
        copy_of = _copy_of(state.parameter, entry, topology, two_embeddings=two_embeddings)
        for kind, values in state.tensors.items():
            places = regions(entry, state.begin, state.begin + values.numel())
            found.append(
                Holding(
                    kind=kind,
                    regions=tuple(places),
                    values=values.detach(),
                    copy_of=copy_of,
                    is_written=copy_of in (None, _FIRST),
                )
            )
    return found + _router_biases(session)


_FIRST = "the first ranks"


def _copy_of(
    parameter: torch.nn.Parameter,
    entry: ParameterGeometry,
    topology: Topology,
    *,
    two_embeddings: bool,
) -> str | None:
    """The set of ranks that has each element of a parameter once, where there are several sets.

    Tensor ranks have copies of what they do not cut, and with MTP the last stage has a copy of the
    embedding, whose first home is the first stage.
    """
    axis = topology.etp if entry.is_expert else topology.tp
    has_copies = axis.size > 1 and not entry.is_tensor_sharded
    embedding = two_embeddings and entry.pieces[0].key == "embedding"
    if embedding and getattr(parameter, "shared", False):
        return "the last stage"
    if has_copies and axis.rank > 0:
        return f"tensor rank {axis.rank}"
    return _FIRST if has_copies or embedding else None


def _router_biases(session: Session) -> list[Holding]:
    """The selection biases: every rank of a stage has them, its first one writes."""
    rank = session.topology.tp_dp_cp.rank
    found = []
    for layer, bias in session.router_bias.tensors().items():
        key = router_bias_key(session.config.model, layer)
        found.append(
            Holding(
                kind=WEIGHT,
                regions=(Region(key=key, rows=(0, bias.numel()), cols=(0, 1)),),
                values=bias,
                copy_of=_FIRST if rank == 0 else f"rank {rank} of the stage",
                is_written=rank == 0,
            )
        )
    return found


def _is_bias(key: str) -> bool:
    return key.endswith(".router_bias")
