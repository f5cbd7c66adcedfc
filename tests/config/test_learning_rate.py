# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The learning rate: megatron-core's bit for bit where it has the schedule, else closed forms."""

import math
from pathlib import Path

import pytest
import torch
from config_helpers import load
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from k2_megatron.config.config import Config
from k2_megatron.config.learning_rate import courses_of, learning_rate
from k2_megatron.config.loader import load_config

EXAMPLES = Path(__file__).parents[2] / "examples" / "configs"


def rates(config: Config) -> list[float]:
    courses = courses_of(config)
    return [learning_rate(courses, step) for step in range(1, config.schedule.train_steps + 1)]


def engines_rates(config: Config) -> list[float]:
    """What megatron-core's scheduler gives, which knows one warm-up and one decay."""
    schedule = config.schedule
    style = schedule.lr_decay_style
    is_wsd, min_lr = style == "wsd", 0.0 if style == "constant" else schedule.min_lr
    scheduler = OptimizerParamScheduler(
        torch.optim.SGD([torch.zeros(1)]),
        init_lr=0.0,
        max_lr=schedule.lr,
        min_lr=min_lr,
        lr_warmup_steps=schedule.lr_warmup_steps,
        lr_decay_steps=schedule.train_steps,
        lr_decay_style="WSD" if is_wsd else style,
        wsd_decay_steps=schedule.lr_wsd_decay_steps,
        lr_wsd_decay_style="cosine" if is_wsd else None,
        start_wd=0.1,
        end_wd=0.1,
        wd_incr_steps=schedule.train_steps,
        wd_incr_style="constant",
    )
    found = []
    for step in range(1, schedule.train_steps + 1):
        scheduler.num_steps = step
        found.append(scheduler.get_lr({}))
    return found


@pytest.mark.parametrize("style", ["constant", "linear", "cosine", "wsd"])
@pytest.mark.parametrize(("warmup", "steps", "tail"), [(0, 7, 7), (3, 1000, 361), (500, 977, 1)])
def test_equals_the_engines_scheduler_bit_for_bit(tmp_path, style, warmup, steps, tail):
    config = load(
        tmp_path,
        f"schedule.lr_decay_style={style}",
        f"schedule.lr_wsd_decay_steps={tail if style == 'wsd' else 'null'}",
        f"schedule.lr_warmup_steps={warmup}",
        f"schedule.train_steps={steps}",
        "schedule.lr=3.46e-4",
        *(["schedule.min_lr=7.93e-5"] if style != "constant" else []),
    )
    assert rates(config) == engines_rates(config)


PHASED = """\
run: {name: tiny}
model: {preset: k2-tiny}
schedule:
  seq_length: 64
  global_batch_size: 8
  phases: %s
data: {corpora: [{path: corpus}]}
"""


def test_phases_say_what_the_keys_say(tmp_path):
    """The same course both ways: bit for bit, but for wsd's plateau, which the engine rounds."""
    flat = load(tmp_path, "schedule.lr_decay_style=linear", "schedule.lr_wsd_decay_steps=null")
    phases = (
        "[{name: a, steps: 2, lr_style: linear, lr: 2.0e-4}, "
        "{name: b, steps: 18, lr_style: linear, lr: 2.0e-5}]"
    )
    assert rates(load(tmp_path, text=PHASED % phases)) == rates(flat)


def test_course_goes_on_by_tokens_where_the_batch_doubles(tmp_path):
    """One cosine over 10 steps of 512 tokens and 5 of 1024: half of the way after ten steps."""
    phases = (
        "[{name: a, steps: 10, lr_style: cosine, lr_start: 1.0e-3, lr: 0}, "
        "{name: b, steps: 5, lr_style: continue, global_batch_size: 16}, {name: c, steps: 2}]"
    )
    found = rates(load(tmp_path, text=PHASED % phases))
    done = [*range(1, 11), *range(12, 21, 2)]
    # The same sum of products but for a product's rounding: a few units in the last place.
    expected = [1e-3 * 0.5 * (1 + math.cos(math.pi * way / 20)) for way in done]
    assert found[:15] == pytest.approx(expected, rel=1e-14, abs=1e-19)
    assert found[9] == pytest.approx(5e-4, rel=1e-14)
    assert found[14:] == [0.0, 0.0, 0.0]  # c keeps where b ended


def test_rises_and_falls_end_where_they_should(tmp_path):
    phases = (
        "[{name: a, steps: 4, lr: 1.0e-3}, {name: b, steps: 4, lr_style: linear, lr: 2.0e-3}, "
        "{name: c, steps: 4, lr_style: linear, lr_start: 1.0e-3, lr: 0}, "
        "{name: d, steps: 3, lr: 5.0e-4}]"
    )
    found = rates(load(tmp_path, text=PHASED % phases))
    expected = [1e-3] * 4 + [1.25e-3, 1.5e-3, 1.75e-3, 2e-3, 7.5e-4, 5e-4, 2.5e-4, 0] + [5e-4] * 3
    assert found == pytest.approx(expected, rel=1e-14)
    courses = courses_of(load(tmp_path, text=PHASED % phases))
    assert learning_rate(courses, 99) == 5e-4


def test_kimi_k2s_rates_are_the_reports():
    """Section 2.5, by the tokens consumed."""
    courses = courses_of(load_config(EXAMPLES / "kimi-k2-1t.yaml"))

    def after(tokens: float) -> float:
        return learning_rate(courses, round(tokens / 2**26))

    assert learning_rate(courses, 1) == 2e-4 / 500 and learning_rate(courses, 500) == 2e-4
    assert learning_rate(courses, 501) == after(10e12) == 2e-4
    assert after(12.75e12) == pytest.approx(1.1e-4, rel=1e-4)  # half of the cosine
    assert after(15.5e12) == pytest.approx(2e-5, rel=1e-12)
    assert after(15.73e12) == pytest.approx(1.35e-5, rel=1e-4)  # half of the annealing
    assert after(15.96e12) == 7e-6


def test_moonlights_rates_are_its_reports():
    """arXiv 2502.16982: 16.8 M tokens a step, 33.6 M from 200 B tokens on."""
    courses = courses_of(load_config(EXAMPLES / "moonlight-16b-a3b.yaml"))
    doubled = round(200e9 / 2**24)

    def after(tokens: float) -> float:
        return learning_rate(courses, doubled + round((tokens - 200e9) / 2**25))

    assert learning_rate(courses, 1000) == 2.1e-4 and learning_rate(courses, 2000) == 4.2e-4
    way = (doubled - 2000) * 2**24 / (5.2e12 - 2000 * 2**24)
    share = 0.5 * (1 + math.cos(math.pi * way))
    assert learning_rate(courses, doubled) == pytest.approx(4.2e-5 + share * 3.78e-4, rel=1e-6)
    end = doubled + round((5.2e12 - 200e9) / 2**25)
    assert learning_rate(courses, end) == pytest.approx(4.2e-5, rel=1e-9)
    assert learning_rate(courses, end + 100) == 1e-4
    assert after(5.2e12 + 100 * 2**25 + 250e9) == pytest.approx(5e-5, rel=1e-4)
    assert after(5.2e12 + 100 * 2**25 + 500e9) == 0.0
