# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Every TensorBoard tag of a run: its name, unit, meaning, when it is written, its JSONL key.

This table is the contract; docs/tensorboard.md is rendered from it:
`python -m k2_megatron.train.tags --write docs/tensorboard.md`.
"""

import argparse
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from k2_megatron.parallel.muonclip.rules import KINDS as MUON_KINDS  # what `{kind}` stands for

LOSS_TRAIN = "loss/train"
LOSS_VALID = "loss/valid"
LR = "optimizer/lr"
GRAD_NORM = "optimizer/grad_norm"
SKIPPED_STEP = "optimizer/skipped_step"
TOKENS_PER_SECOND = "throughput/tokens_per_second"
TOKENS_PER_SECOND_PER_DEVICE = "throughput/tokens_per_second_per_device"
STEP_SECONDS = "throughput/step_seconds"
TFLOPS_PER_DEVICE = "throughput/tflops_per_device"
CONSUMED_TOKENS = "progress/consumed_tokens"
MEMORY_BYTES = "memory/max_allocated_bytes"
EXPERT_IMBALANCE = "moe/expert_imbalance/layer_{layer:03d}"
EXPERT_IMBALANCE_MAX = "moe/expert_imbalance_max"
EXPERT_BIAS_RANGE = "moe/expert_bias_range/layer_{layer:03d}"
EXPERT_BIAS_RANGE_MAX = "moe/expert_bias_range_max"
QK_MAX_LOGIT = "qk_clip/max_logit"
QK_MAX_LOGIT_LAYER = "qk_clip/max_logit/layer_{layer:03d}"
QK_HEADS_CLIPPED = "qk_clip/heads_clipped"
QK_SMALLEST_GAMMA = "qk_clip/smallest_gamma"
MUON_UPDATE_RMS = "muon/update_rms/{kind}"
MUON_SECONDS = "muon/seconds"
MUON_BYTES = "muon/gather_bytes"
MUON_TENSOR_BYTES = "muon/tensor_gather_bytes"
DEVICE_POWER = "device/power_watts"
DEVICE_SM_CLOCK = "device/sm_clock_mhz"
DEVICE_MEMORY_CLOCK = "device/memory_clock_mhz"
DEVICE_MEMORY_USED = "device/memory_used_bytes"
DEVICE_UTILIZATION = "device/utilization_percent"
DEVICE_TEMPERATURE = "device/temperature_celsius"

# Placeholder in a name -> what it matches, and its word on the page.
_PLACEHOLDERS = {"{layer:03d}": (r"\d{3,}", "NNN"), "{kind}": ("|".join(MUON_KINDS), "KIND")}
_EVERY = "every logged step"
_VALIDATED = "every step after which the validation loss was measured"
_ROUTED = "every logged step of a model with MoE layers"
_BIASED = "every logged step of a model with router biases"
_MUON = "every logged step with `optimizer.type: muonclip`"
_UPDATED = "every logged step with `optimizer.type: muonclip`, unless it was skipped"
_RECORDED = (
    "every logged step with `optimizer.type: muonclip` and `optimizer.qk_clip` clip or observe"
)
_GPU = "every logged step where NVML can read it from the GPU of the logging rank"


@dataclass(frozen=True)
class Tag:
    """One row of the table.

    `name` holds `{layer:03d}` where there is one curve for each layer, `{kind}` where there is one
    for each of MUON_KINDS.
    """

    name: str
    unit: str
    meaning: str
    when: str
    key: str
    """Where the same number is in a line of metrics.jsonl, in jq's notation."""

    def matches(self, tag: str) -> bool:
        """Return whether `tag` is this row's tag, or one of its layers' or kinds' tags."""
        pattern = re.escape(self.name)
        for placeholder, (allowed, _) in _PLACEHOLDERS.items():
            pattern = pattern.replace(re.escape(placeholder), f"(?:{allowed})")
        return re.fullmatch(pattern, tag) is not None


TABLE = (
    Tag(LOSS_TRAIN, "nats/token", "mean cross-entropy of the step's global batch", _EVERY, ".loss"),
    Tag(
        LOSS_VALID,
        "nats/token",
        "mean cross-entropy on the held-out documents, with the weights after this step; step 0: "
        "before training",
        _VALIDATED,
        ".valid_loss",
    ),
    Tag(LR, "1", "learning rate the step used", _EVERY, ".lr"),
    Tag(
        GRAD_NORM,
        "1",
        "L2 norm of the whole gradient before clipping; inf or NaN where it overflowed",
        _EVERY,
        ".grad_norm",
    ),
    Tag(
        SKIPPED_STEP,
        "0 or 1",
        "1 where the gradient was not finite and the optimizer left the weights as they were",
        _EVERY,
        ".skipped",
    ),
    Tag(
        TOKENS_PER_SECOND,
        "tokens/s",
        "tokens of the step over its seconds, whole job",
        _EVERY,
        ".tokens_per_second",
    ),
    Tag(
        TOKENS_PER_SECOND_PER_DEVICE,
        "tokens/s",
        "the same for each rank",
        _EVERY,
        ".tokens_per_second / .world_size",
    ),
    Tag(
        STEP_SECONDS,
        "s",
        "wall time of the step: forward, backward, optimizer; no validation, no checkpoint",
        _EVERY,
        ".step_seconds",
    ),
    Tag(
        TFLOPS_PER_DEVICE,
        "TFLOP/s",
        "model FLOPs of the step for each second and rank (formula below)",
        _EVERY,
        ".tflops_per_device",
    ),
    Tag(
        CONSUMED_TOKENS,
        "tokens",
        "tokens trained on since step 0, this step included",
        _EVERY,
        ".consumed_tokens",
    ),
    Tag(
        MEMORY_BYTES,
        "bytes",
        "peak memory PyTorch had allocated on a GPU, the largest over the ranks",
        "every logged step on GPUs",
        ".memory_bytes",
    ),
    Tag(
        EXPERT_IMBALANCE,
        "ratio",
        "tokens of the layer's busiest expert over the mean of its experts; 1 is even",
        _ROUTED,
        '.expert_imbalance["LAYER"]',
    ),
    Tag(
        EXPERT_IMBALANCE_MAX,
        "ratio",
        "the largest of these over the layers",
        _ROUTED,
        ".expert_imbalance_max",
    ),
    Tag(
        EXPERT_BIAS_RANGE,
        "1",
        "largest minus smallest router bias of the layer's experts",
        _BIASED,
        '.expert_bias_range["LAYER"]',
    ),
    Tag(
        EXPERT_BIAS_RANGE_MAX,
        "1",
        "the largest of these over the layers",
        _BIASED,
        ".expert_bias_range_max",
    ),
    Tag(
        QK_MAX_LOGIT,
        "1",
        "largest attention logit, softmax scale included, of all layers and heads in the step's "
        "forward passes",
        _RECORDED,
        f'.extra["{QK_MAX_LOGIT}"]',
    ),
    Tag(
        QK_MAX_LOGIT_LAYER,
        "1",
        "the largest of the layer's heads; MTP layers follow the decoder's",
        _RECORDED,
        '.extra["qk_clip/max_logit/layer_NNN"]',
    ),
    Tag(
        QK_HEADS_CLIPPED,
        "heads",
        "heads of all layers whose largest logit is finite and above "
        "`optimizer.qk_clip_threshold`; with "
        "`qk_clip: observe` they are counted and not scaled",
        _RECORDED,
        f'.extra["{QK_HEADS_CLIPPED}"]',
    ),
    Tag(
        QK_SMALLEST_GAMMA,
        "ratio",
        "smallest factor by which a head's logits are to be scaled, threshold over largest logit; "
        "1 where no head is above the threshold; computed and not applied with `qk_clip: observe`",
        _RECORDED,
        f'.extra["{QK_SMALLEST_GAMMA}"]',
    ),
    Tag(
        MUON_UPDATE_RMS,
        "1",
        "root mean square of the update over all elements of the class, before the learning rate "
        "and without weight decay",
        _UPDATED,
        '.extra["muon/update_rms/KIND"]',
    ),
    Tag(
        MUON_SECONDS,
        "s",
        f"wall time of the optimizer's step on the rank that writes; part of `{STEP_SECONDS}`",
        _MUON,
        f'.extra["{MUON_SECONDS}"]',
    ),
    Tag(
        MUON_BYTES,
        "bytes",
        "what all ranks together sent in the step to make matrices whole and to return the updates",
        _MUON,
        f'.extra["{MUON_BYTES}"]',
    ),
    Tag(
        MUON_TENSOR_BYTES,
        "bytes",
        "the same for matrices that tensor parallelism cuts or copies",
        _MUON,
        f'.extra["{MUON_TENSOR_BYTES}"]',
    ),
    Tag(DEVICE_POWER, "W", "power drawn by the board", _GPU, f'.extra["{DEVICE_POWER}"]'),
    Tag(DEVICE_SM_CLOCK, "MHz", "clock of the SMs", _GPU, f'.extra["{DEVICE_SM_CLOCK}"]'),
    Tag(
        DEVICE_MEMORY_CLOCK,
        "MHz",
        "clock of the device memory",
        _GPU,
        f'.extra["{DEVICE_MEMORY_CLOCK}"]',
    ),
    Tag(
        DEVICE_MEMORY_USED,
        "bytes",
        "device memory in use by all processes, caches and NCCL included",
        _GPU,
        f'.extra["{DEVICE_MEMORY_USED}"]',
    ),
    Tag(
        DEVICE_UTILIZATION,
        "%",
        "share of NVML's last sampling period in which any kernel ran",
        _GPU,
        f'.extra["{DEVICE_UTILIZATION}"]',
    ),
    Tag(
        DEVICE_TEMPERATURE,
        "°C",
        "temperature of the GPU chip",
        _GPU,
        f'.extra["{DEVICE_TEMPERATURE}"]',
    ),
)

_KINDS = textwrap.fill(
    "`KIND` is a class of matrices that Muon updates: "
    + ", ".join(f"`{kind}`" for kind in MUON_KINDS)
    + ".",
    100,
)

_INTRODUCTION = f"""\
<!-- Written by `python -m k2_megatron.train.tags --write docs/tensorboard.md`; do not edit. -->

# What a run writes to TensorBoard

    .venv/bin/tensorboard --logdir runs

reads `runs/<run.name>/tensorboard/`. The x axis is the step, counted from 1, with one exception:
step 0 of `loss/valid` is the loss before training. One rank writes. The last column is where the
same number is in a line of `runs/<run.name>/metrics.jsonl`, in jq's notation; a key is absent where
nothing was measured. `NNN` is a layer's index over the whole model, counted from 0, with at least
three digits; `LAYER` is the same index without leading zeros.

{_KINDS}

| tag | unit | meaning | written | in metrics.jsonl |
| --- | --- | --- | --- | --- |
"""

_NOTES = """
## Model TFLOP/s per device

    tflops_per_device = model_flops / (step_seconds * world_size * 1e12)

`model_flops` is also in metrics.jsonl: the floating-point operations the model itself needs for
one forward and one backward pass over the step's tokens. Work that a memory policy adds, such as
recomputing activations, and the optimizer's own arithmetic are not counted: two memory policies
with the same number train at the same speed.

## The loss before training

With `logging.valid_every_steps` a new run measures `loss/valid` before its first step too. It is
written here at step 0 and printed (`before training: valid ...`). metrics.jsonl and curves.png have
one object and one point for a trained step, and so do not have it.

## After a resume

The writer marks the step it continues from, and TensorBoard hides what an earlier process wrote
past that step. In metrics.jsonl those lines are removed. Every step is there once.

## Numbers that are not finite

TensorBoard takes them as they are. JSON has no such numbers: metrics.jsonl holds the strings
`"NaN"`, `"Infinity"` and `"-Infinity"`, which Python's `float()` reads back.
"""


def is_documented(tag: str) -> bool:
    """Return whether the table has a row for `tag`."""
    return any(row.matches(tag) for row in TABLE)


def render_markdown() -> str:
    """Return the text of docs/tensorboard.md."""
    rows = (
        f"| `{_on_the_page(row.name)}` | {row.unit} | {row.meaning} | {row.when} | `{row.key}` |\n"
        for row in TABLE
    )
    return _INTRODUCTION + "".join(rows) + _NOTES


def _on_the_page(name: str) -> str:
    """Replace the placeholders of a tag by their words."""
    for placeholder, (_, word) in _PLACEHOLDERS.items():
        name = name.replace(placeholder, word)
    return name


def main() -> None:
    """Print the page, or write it to the file named by --write."""
    parser = argparse.ArgumentParser(description="Render the page on TensorBoard tags.")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write here, do not print")
    target: Path | None = parser.parse_args().write
    if target is None:
        print(render_markdown(), end="")
    else:
        target.write_text(render_markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
