# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Multi-token prediction beside transformers' own layers, put together as DeepSeek-V3 describes it.

transformers has no such layer and leaves its weights out. What it is, is in the report
(arXiv 2412.19437, section 2.2): the next token's embedding and the hidden state, each normed, are
joined by a matrix and go through one more decoder layer, a norm and the model's own head.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RMSNorm

from tests.distributed.harness import run_ranks
from tests.huggingface.releases import CONFIG, ONE_SHARED, OVERRIDES, SMALL, Shape, random_model

# As in test_logits.py, through one layer more; 1.5e-6 is the largest difference measured.
RTOL, ATOL = 1e-5, 1e-5
NUM_LAYERS = 3
LAYER = f"model.layers.{NUM_LAYERS}"
EXTRA = ("enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight")
COPIES = {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "shared_head.head.weight": "lm_head.weight",
}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def write_release(folder: Path) -> None:
    """A model of four layers, the last of which becomes the layer that predicts a second token."""
    model = random_model(Shape(fields={"num_hidden_layers": NUM_LAYERS + 1}, overrides=()))
    model.save_pretrained(folder)
    tensors = tensors_of(folder)
    size = SMALL["hidden_size"]
    for name in EXTRA:
        shape = (size, 2 * size) if name == "eh_proj.weight" else (size,)
        centre = 0.0 if name == "eh_proj.weight" else 1.0
        tensors[f"{LAYER}.{name}"] = centre + 0.1 * torch.randn(shape)
    tensors |= {f"{LAYER}.{name}": tensors[of].clone() for name, of in COPIES.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": NUM_LAYERS, "num_nextn_predict_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))


@torch.no_grad()
def expected_logits(release: Path, scratch: Path, tokens: list[list[int]]) -> list[torch.Tensor]:
    """Logits [b, s, v] of the next token, and those of the one after it."""
    tensors = tensors_of(release)
    ours = {name: tensors.pop(f"{LAYER}.{name}") for name in (*EXTRA, *COPIES)}
    for name, of in COPIES.items():
        assert torch.equal(ours[name], tensors[of]), name
    config = DeepseekV3Config(**{**SMALL, "num_hidden_layers": NUM_LAYERS + 1})
    config.architectures = ["DeepseekV3ForCausalLM"]
    config.save_pretrained(scratch)
    save_file(tensors, scratch / "model.safetensors", {"format": "pt"})
    model, loading = DeepseekV3ForCausalLM.from_pretrained(scratch, output_loading_info=True)
    assert not any(loading.values()), loading
    body = model.eval().model
    # It runs the first so many layers of those that it has.
    body.config.num_hidden_layers = NUM_LAYERS
    text = torch.tensor(tokens)
    hidden = body(text).last_hidden_state
    following = torch.cat((text[:, 1:], torch.zeros_like(text[:, :1])), dim=1)
    norms = {}
    for name in ("enorm", "hnorm", "shared_head.norm"):
        norms[name] = DeepseekV3RMSNorm(hidden.shape[-1], eps=config.rms_norm_eps)
        norms[name].weight.copy_(ours[f"{name}.weight"])
    joined = torch.cat(
        (norms["enorm"](body.embed_tokens(following)), norms["hnorm"](hidden)), dim=-1
    )
    length = text.shape[1]
    mask = torch.full((1, 1, length, length), float("-inf")).triu(1)
    positions = torch.arange(length)[None]
    after = body.layers[NUM_LAYERS](
        joined @ ours["eh_proj.weight"].T,
        attention_mask=mask,
        position_ids=positions,
        position_embeddings=body.rotary_emb(joined, positions),
    )
    return [model.lm_head(hidden), model.lm_head(norms["shared_head.norm"](after))]


def test_both_predictions_are_equal_both_ways(tmp_path: Path) -> None:
    """Of an imported release and of our own weights that were exported."""
    tokens = torch.randint(128, (2, 24), generator=torch.Generator().manual_seed(1)).tolist()
    write_release(tmp_path / "theirs")
    (ours,) = run_ranks(
        "tests.huggingface.jobs.both_predictions",
        1,
        config_path=str(CONFIG),
        overrides=[*OVERRIDES, ONE_SHARED, "model.mtp_num_layers=1"],
        release=str(tmp_path / "theirs"),
        exported=str(tmp_path / "ours"),
        tokens=tokens,
    )
    for name, release in (("imported", "theirs"), ("own", "ours")):
        expected = expected_logits(tmp_path / release, tmp_path / f"scratch {name}", tokens)
        for found, wanted in zip(ours[name], expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=RTOL, atol=ATOL)
