# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The `optimizer` section: the update rule and its constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from k2_megatron.config.option import option


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update rule. Its state is sharded over data parallelism (ZeRO-1).

    MuonClip is Kimi K2's (report section 2.1): Muon for the matrices of the layers, AdamW for
    embedding, output layer and norm gains, and QK-Clip after each step.
    """

    type: Literal["adamw", "muonclip"] = option(
        "muonclip",
        "Update rule. muonclip: K2's, AdamW for embedding, output and norm gains only. adamw: for "
        "all parameters. Report section 2.1.",
    )
    weight_decay: float = option(
        0.1,
        "Decoupled weight decay, multiplied by the learning rate; of norm gains too. "
        "Report section 2.5.",
        minimum=0,
    )
    clip_grad: float = option(
        1.0,
        "Largest 2-norm of the whole gradient; larger ones are scaled down to it. 0: no "
        "clipping. K2's is undisclosed, 1.0 is DeepSeek-V3's.",
        minimum=0,
    )
    adam_beta1: float = option(0.9, "Decay of AdamW's first moment.", minimum=0, below=1)
    adam_beta2: float = option(0.95, "Decay of AdamW's second moment.", minimum=0, below=1)
    adam_eps: float = option(1e-8, "Added to AdamW's denominator.", above=0)
    optimizer_offload_fraction: float = option(
        0.0,
        "Part of the optimizer's state (fp32 masters and moments), 0 to 1, by bytes, that each "
        "rank keeps in pinned host memory; it passes through the GPU in each step and no number "
        "changes. 0: none, 1: all. Report section 2.4.2 moves some of it where nodes are few.",
        minimum=0,
    )
    muon_momentum: float = option(
        0.95,
        "Decay mu of Muon's momentum M, which becomes mu M + gradient. K2's is undisclosed, 0.95 "
        "is Moonlight's.",
        minimum=0,
        below=1,
    )
    muon_nesterov: bool = option(
        True,
        "Orthogonalise gradient + mu M, as Moonlight's code does. false: M itself, as the report "
        "prints it in section 2.1.",
    )
    muon_ns_steps: int = option(
        5, "Newton-Schulz iterations of an update. 5 is Moonlight's.", minimum=1
    )
    muon_ns_coefficients: tuple[float, float, float] = option(
        (3.4445, -4.775, 2.0315),
        "a, b, c of an iteration: X becomes a X + (b A + c A^2) X, where A = X X^T. Moonlight's.",
    )
    muon_update_rms: float = option(
        0.2,
        "Factor before sqrt(max(rows, columns)) on an orthogonalised matrix: the root mean square "
        "of the update, near AdamW's, so that its learning rate and weight decay fit. Report "
        "section 2.1.",
        above=0,
    )
    muon_momentum_dtype: Literal["fp32", "bf16"] = option(
        "fp32", "Precision in which the momentum is kept. K2's is undisclosed."
    )
    muon_ns_dtype: Literal["fp32", "bf16", "fp16"] | None = option(
        None,
        "Precision of the Newton-Schulz products. null: fp32 in runs of fp32; in runs of bf16 fp16 "
        "on a GPU, by way of the Gram matrix, and bf16 on a CPU.",
    )
    muon_wire_dtype: Literal["fp32", "bf16"] | None = option(
        None,
        "Precision in which matrices travel between processes to be made whole. null: the "
        "precision of the run.",
    )
    muon_split_gate_up: bool = option(
        True, "Orthogonalise the gate and the up projection apart. false: as one matrix."
    )
    muon_split_q_up: bool = option(
        True,
        "Orthogonalise the rows of the query projection without and with position apart. false: "
        "as one matrix. Report section 2.1 names them apart.",
    )
    muon_split_kv_up: bool = option(
        True,
        "Orthogonalise the rows of the key and value projection for keys and for values apart. "
        "false: as one matrix. Report section 2.1 names them apart.",
    )
    muon_split_kv_down: bool = option(
        True,
        "Orthogonalise the projections to the latent and to the shared rotary key apart. false: as "
        "one matrix. Report section 2.1 names them apart.",
    )
    muon_per_head: bool = option(
        False,
        "Orthogonalise every head of the query projection and of the key and value projection "
        "apart. false: all heads together, as in Moonlight. true needs muon_split_q_up and "
        "muon_split_kv_up.",
    )
    muon_router: bool = option(
        True,
        "Update the routers by Muon, as Moonlight does. false: by AdamW. K2's choice is "
        "undisclosed.",
    )
    qk_clip: Literal["clip", "observe", "none"] = option(
        "clip",
        "After each step, scale the query and key weights of every head whose largest attention "
        "logit was above qk_clip_threshold. observe: measure and report the logits, scale nothing. "
        "none: do not measure. Report section 2.1.",
    )
    qk_clip_threshold: float = option(
        100.0,
        "Largest allowed attention logit (tau), the softmax scale included. Report section 2.1.",
        above=0,
    )
