# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The table of names: complete, and in the released models' sizes."""

from __future__ import annotations

from collections import Counter
from math import prod

import pytest
import torch

from k2_megatron.checkpoint.huggingface.block_fp8 import scale_shape
from k2_megatron.checkpoint.huggingface.names import hf_tensors
from k2_megatron.checkpoint.identity import model_matrices
from k2_megatron.config.presets import MODEL_PRESETS, model_from_preset

TINY = model_from_preset("k2-tiny", mtp_num_layers=2)
NOT_QUANTISED = ("embed_tokens", "lm_head", "mlp.gate.")


@pytest.mark.parametrize("preset", MODEL_PRESETS)
def test_every_matrix_is_in_one_tensor(preset: str) -> None:
    model = model_from_preset(preset, mtp_num_layers=1)
    tensors = [tensor for tensor in hf_tensors(model) if not tensor.is_copy]
    keys = Counter(key for tensor in tensors for key in tensor.keys)
    assert keys == Counter(model_matrices(model).keys())
    elements = sum(tensor.num_elements for tensor in tensors)
    assert elements == sum(rows * cols for rows, cols in model_matrices(model).values())


def test_kimi_k2_has_the_published_number_of_elements() -> None:
    """1,026,408,232,448 parameters and 62,495,192 scales are in the released files."""
    tensors = hf_tensors(model_from_preset("kimi-k2"))
    assert sum(tensor.num_elements for tensor in tensors) == 1_026_408_232_448
    quantised = [
        tensor
        for tensor in tensors
        if len(tensor.shape) == 2 and not any(part in tensor.name for part in NOT_QUANTISED)
    ]
    scales = sum(prod(scale_shape(tensor.shape, (128, 128))) for tensor in quantised)
    assert scales == 62_495_192


def test_shapes_of_kimi_k2s_attention() -> None:
    shapes = {t.name: t.shape for t in hf_tensors(model_from_preset("kimi-k2"))}
    layer = "model.layers.60.self_attn"
    assert shapes[f"{layer}.q_a_proj.weight"] == (1536, 7168)
    assert shapes[f"{layer}.q_b_proj.weight"] == (12288, 1536)
    assert shapes[f"{layer}.kv_a_proj_with_mqa.weight"] == (576, 7168)
    assert shapes[f"{layer}.kv_b_proj.weight"] == (16384, 512)
    assert shapes[f"{layer}.o_proj.weight"] == (7168, 8192)
    assert shapes["model.layers.60.mlp.gate.e_score_correction_bias"] == (384,)


def test_mtp_layers_follow_the_last_layer_and_repeat_embedding_and_head() -> None:
    found = {tensor.name: tensor for tensor in hf_tensors(TINY)}
    assert found["model.layers.5.eh_proj.weight"].keys == ("mtp.1.join",)
    assert found["model.layers.5.shared_head.norm.weight"].keys == ("mtp.1.final_norm",)
    assert found["model.layers.5.mlp.gate.e_score_correction_bias"].keys == (
        "mtp.1.layer.router_bias",
    )
    copies = {name: tensor.keys for name, tensor in found.items() if tensor.is_copy}
    assert copies == {
        f"model.layers.{layer}.{name}.weight": (key,)
        for layer in (4, 5)
        for name, key in (("embed_tokens", "embedding"), ("shared_head.head", "output"))
    }


def test_rows_of_heads_are_taken_apart_and_joined() -> None:
    """Per head, content rows come first and rotary rows second; keys first and values second."""
    found = {tensor.name: tensor for tensor in hf_tensors(TINY)}
    tensor = found["model.layers.0.self_attn.q_b_proj.weight"]
    rows = torch.arange(4 * 48, dtype=torch.float32)[:, None].expand(-1, 64).contiguous()
    parts = dict(tensor.split(rows))
    nope = parts["layers.0.attention.q_up.nope"][:, 0].tolist()
    rope = parts["layers.0.attention.q_up.rope"][:, 0].tolist()
    assert nope == [48 * head + row for head in range(4) for row in range(32)]
    assert rope == [48 * head + row for head in range(4) for row in range(32, 48)]
    assert torch.equal(tensor.join(parts.__getitem__), rows)
