# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What stands around the table of docs/tensorboard.md."""

import textwrap

from k2_megatron.parallel.muonclip.rules import KINDS as MUON_KINDS

_KINDS = textwrap.fill(
    "`KIND` is a class of matrices that Muon updates: "
    + ", ".join(f"`{kind}`" for kind in MUON_KINDS)
    + ".",
    100,
)

INTRODUCTION = f"""\
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

NOTES = """
## The first page

The tab "Custom Scalars" has the charts to look at first, in this order: loss, gradient norm,
learning rate, skipped steps; attention logits and heads clipped; expert load; speed; memory.
`k2_megatron/train/layout.py` (`CHARTS`) lays it out.

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
past that step. In metrics.jsonl those lines are removed. Every step is there once. The same is
done where a run goes back because of a spike ([faults.md](faults.md)); the steps that it then
passes over have no line.

## Numbers that are not finite

TensorBoard takes them as they are. JSON has no such numbers: metrics.jsonl holds the strings
`"NaN"`, `"Infinity"` and `"-Infinity"`, which Python's `float()` reads back.
"""
