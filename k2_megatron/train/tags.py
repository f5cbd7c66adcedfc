# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Every TensorBoard tag of a run: its name, unit, meaning, when it is written, its JSONL key.

This table is the contract; docs/tensorboard.md is rendered from it:
`python -m k2_megatron.train.tags --write docs/tensorboard.md`.
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from k2_megatron.parallel.muonclip.rules import KINDS as MUON_KINDS  # what `{kind}` stands for
from k2_megatron.train import tags_page

LOSS_TRAIN = "loss/train"
LOSS_VALID = "loss/valid"
LR = "optimizer/lr"
GRAD_NORM = "optimizer/grad_norm"
SKIPPED_STEP = "optimizer/skipped_step"
SKIPPED_STEPS = "optimizer/skipped_steps"
SKIPPED_IN_A_ROW = "optimizer/skipped_in_a_row"
TOKENS_PER_SECOND = "throughput/tokens_per_second"
TOKENS_PER_SECOND_PER_DEVICE = "throughput/tokens_per_second_per_device"
STEP_SECONDS = "throughput/step_seconds"
TFLOPS_PER_DEVICE = "throughput/tflops_per_device"
CONSUMED_TOKENS = "progress/consumed_tokens"
PHASE = "progress/phase"
MEMORY_BYTES = "memory/max_allocated_bytes"
OFFLOAD_SENT = "offload/sent_bytes"
OFFLOAD_FETCHED = "offload/fetched_bytes"
OFFLOAD_STAYED = "offload/stayed_bytes"
OFFLOAD_WAIT_OUT = "offload/wait_out_seconds"
OFFLOAD_WAIT_IN = "offload/wait_in_seconds"
OFFLOAD_HIGH_WATER = "offload/host_high_water_bytes"
OFFLOAD_STATE = "offload/state_bytes"
OFFLOAD_STATE_WAIT = "offload/state_wait_seconds"
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
STRAGGLER_MIN = "straggler/attention_seconds_min"
STRAGGLER_MEDIAN = "straggler/attention_seconds_median"
STRAGGLER_MAX = "straggler/attention_seconds_max"
STRAGGLER_RANK = "straggler/slowest_rank"
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
_PHASED = "every logged step of a run with `schedule.phases`"
_ROUTED = "every logged step of a model with MoE layers"
_BIASED = "every logged step of a model with router biases"
_MUON = "every logged step with `optimizer.type: muonclip`, unless it was skipped"
_RECORDED = f"{_MUON}, and `optimizer.qk_clip` clip or observe"
_COMPARED = "every logged step of several ranks, unless `logging.straggler_factor` is null"
_OFFLOADED = "every logged step in which a memory policy names host memory"
_STATE_OFFLOADED = "every logged step with `optimizer.optimizer_offload_fraction` above 0"
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
        "L2 norm of the whole gradient before clipping; inf or NaN where it overflowed, NaN where "
        "the loss was not finite",
        _EVERY,
        ".grad_norm",
    ),
    Tag(
        SKIPPED_STEP,
        "0 or 1",
        "1 where loss or gradient was not finite and the optimizer left the weights as they were",
        _EVERY,
        ".skipped",
    ),
    Tag(
        SKIPPED_STEPS,
        "steps",
        "such steps since the run began, logged or not",
        _EVERY,
        f'.extra["{SKIPPED_STEPS}"]',
    ),
    Tag(
        SKIPPED_IN_A_ROW,
        "steps",
        "such steps in a row up to this one; `run.max_consecutive_skipped_steps` end the run",
        _EVERY,
        f'.extra["{SKIPPED_IN_A_ROW}"]',
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
        PHASE,
        "1",
        "number of the schedule's phase, from 1; its name is `.phase`",
        _PHASED,
        ".phase_number",
    ),
    Tag(
        MEMORY_BYTES,
        "bytes",
        "peak memory PyTorch had allocated on a GPU, the largest over the ranks",
        "every logged step on GPUs",
        ".memory_bytes",
    ),
    *(
        Tag(name, unit, meaning, _OFFLOADED, f'.extra["{name}"]')
        for name, unit, meaning in (
            (OFFLOAD_SENT, "bytes", "activations sent to host memory, of the rank with most"),
            (OFFLOAD_FETCHED, "bytes", "activations brought back, of the rank with most"),
            (
                OFFLOAD_STAYED,
                "bytes",
                "what was to travel and found no room, of the rank with most",
            ),
            (OFFLOAD_WAIT_OUT, "s", "waiting for copies out, of the rank with most; on a CPU all"),
            (OFFLOAD_WAIT_IN, "s", "waiting for copies back, of the rank with most; on a CPU all"),
            (OFFLOAD_HIGH_WATER, "bytes", "host memory in use at once so far, on the fullest rank"),
        )
    ),
    Tag(
        OFFLOAD_STATE,
        "bytes",
        "optimizer state that went through the device, as many each way, of the rank with most",
        _STATE_OFFLOADED,
        f'.extra["{OFFLOAD_STATE}"]',
    ),
    Tag(
        OFFLOAD_STATE_WAIT,
        "s",
        "the optimizer standing still for its state, of the rank with most; all copies on a CPU",
        _STATE_OFFLOADED,
        f'.extra["{OFFLOAD_STATE_WAIT}"]',
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
        _MUON,
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
    Tag(
        STRAGGLER_MIN,
        "s",
        "median over the step's passes of one core attention's forward, on the fastest rank",
        _COMPARED,
        f'.extra["{STRAGGLER_MIN}"]',
    ),
    Tag(
        STRAGGLER_MEDIAN,
        "s",
        "the same on the median rank",
        _COMPARED,
        f'.extra["{STRAGGLER_MEDIAN}"]',
    ),
    Tag(
        STRAGGLER_MAX,
        "s",
        "the same on the slowest rank",
        _COMPARED,
        f'.extra["{STRAGGLER_MAX}"]',
    ),
    Tag(STRAGGLER_RANK, "rank", "which rank that is", _COMPARED, f'.extra["{STRAGGLER_RANK}"]'),
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


def is_documented(tag: str) -> bool:
    """Return whether the table has a row for `tag`."""
    return any(row.matches(tag) for row in TABLE)


def render_markdown() -> str:
    """Return the text of docs/tensorboard.md."""
    rows = (
        f"| `{_on_the_page(row.name)}` | {row.unit} | {row.meaning} | {row.when} | `{row.key}` |\n"
        for row in TABLE
    )
    return tags_page.INTRODUCTION + "".join(rows) + tags_page.NOTES


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
