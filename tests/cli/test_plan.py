# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""`plan` as a user meets it, and training that its plan stops."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.commands import k2

K2 = """
run: {name: k2}
model: {preset: kimi-k2}
parallel: {pipeline_model_parallel_size: 16, expert_model_parallel_size: 16}
optimizer: {type: muonclip}
schedule: {train_steps: 1000, lr_wsd_decay_steps: 100}
data: {corpora: [{path: nowhere}]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with k2.yaml; planning needs no data."""
    (tmp_path / "k2.yaml").write_text(K2)
    return tmp_path


def test_tables_fit_a_terminal(folder):
    done = k2(folder, "plan", "k2.yaml")
    assert (done.code, done.err) == (0, "")
    for text in (
        "1,026,408,232,448 parameters, 32,861,500,928 active in a token",
        "256 x H100, 8 a node: TP 1, CP 1, PP 16 (1F1B), EP 16, ETP 1, DP 16, EDP 1",
        "DOES NOT FIT: ",
        "expert_swiglu_input",
        "tokens to their experts and back",
        "48.5 PFLOP a step, 0.35 % of the model's",
        "layers.*.experts.*.gate            23040   muon",
        "An estimate, good to some 25 %",
        "14    56-58         3  170.3        75 %",
    ):
        assert text in done.out
    assert max(map(len, done.out.splitlines())) <= 100


def test_sizes_are_compared(folder):
    done = k2(folder, "plan", "k2.yaml", "--gpus", "256,512,1024,2048", "--gpu", "H800")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"GPUs +256 +512 +1024 +2048\n", done.out)
    assert re.search(r"optimizer state, GiB +31\.8 +15\.9 +7\.94 +3\.14\n", done.out)


def test_json_has_everything(folder):
    done = k2(folder, "plan", "k2.yaml", "--gpus", "512", "--json", "--imbalance", "1.5")
    plan = json.loads(done.out)
    assert (plan["gpus"], plan["imbalance"], plan["fits"]) == (512, 1.5, False)
    assert len(plan["ranks"]) == 16 and len(plan["newton_schulz"]) == 16
    rank = plan["ranks"][7]
    parts = ("parameter_bytes", "gradient_bytes", "optimizer_bytes", "activation_bytes")
    assert rank["total_bytes"] == sum(rank[key] for key in (*parts, "workspace_bytes"))


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = ("href", "src", "xlink:href")
        self.links += [value or "" for name, value in attrs if name in names]


def test_page_stands_alone(folder):
    done = k2(folder, "plan", "k2.yaml", "--html", "plan.html")
    assert done.code == 0 and done.out.endswith("page: plan.html\n")
    text = (folder / "plan.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.tags.count("svg") == 2 and "script" not in page.tags and not page.links
    assert "url(" not in text and text.count("rank 15") >= 2


def test_schedule_is_drawn(folder):
    """Every rank's row; each forward and backward of what is shown; overlap and delay in words."""
    options = (
        "--gpus=64",
        "--set=parallel.pipeline_model_parallel_size=4",
        "--set=parallel.virtual_pipeline_model_parallel_size=2",
        "--set=parallel.overlap_moe_expert_parallel_comm=true",
        "--set=parallel.delay_wgrad_compute=true",
    )
    done = k2(folder, "plan", "k2.yaml", *options, "--schedule", "out.svg")
    assert (done.code, done.err) == (0, "") and "schedule: out.svg" in done.out
    root = ElementTree.parse(folder / "out.svg").getroot()
    texts = [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text")]
    titles = [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}title")]
    assert [text for text in texts if text.startswith("rank ")] == [f"rank {i}" for i in range(4)]
    micro_batches, chunks, ranks = 12, 2, 4
    for kind in ("forward", "backward"):
        drawn = [title for title in titles if title.startswith(f"{kind} of micro-batch")]
        assert len(drawn) == micro_batches * chunks * ranks
    width, height = (float(one) for one in root.attrib["viewBox"].split()[2:])
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        if "x" in box.attrib:
            assert float(box.attrib["x"]) + float(box.attrib["width"]) <= width
            assert float(box.attrib["y"]) + float(box.attrib["height"]) <= height
    words = " ".join(texts)
    for part in ("one more warm-up forward", "weight gradients delayed", "Bubble: ", "EP-D(F)"):
        assert part in words


def test_fit_ranks_layouts_of_a_small_model(place):
    sizes = ("--set", "model.num_layers=4", "--set", "schedule.global_batch_size=16")
    done = k2(place, "plan", "tiny.yaml", "--gpus", "4", "--fit", "--json", *sizes)
    found = json.loads(done.out)
    seconds = [one["step_seconds"] for one in found["fitting"]]
    assert seconds == sorted(seconds) and len(seconds) > 8
    presets = {one["memory_preset"] for one in found["fitting"]}
    assert presets == {"none", "k2", "k2-lean", "k2-full"}
    for one in found["fitting"]:
        if one["memory_preset"] == "k2-full":
            assert one["host_bytes_per_node"] > 0
        assert one["tensor"] * one["context"] * one["pipeline"] * one["data"] == 4


def test_fit_says_how_near_the_nearest_is(folder):
    done = k2(folder, "plan", "k2.yaml", "--gpus", "16", "--fit")
    assert done.code == 0
    assert re.search(r"candidates on 16 x H100: none fits; the nearest needs [\d.]+ of", done.out)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--gpus", "300"], "300 processes do not fit the parallel layout"),
        (["--gpus", "0"], "--gpus: given '0'; allowed: an integer >= 1"),
        (["--gpus", "8,x"], "--gpus: given 'x'; allowed: an integer >= 1"),
        (["--imbalance", "0.5"], "--imbalance: given '0.5'; allowed: a number >= 1"),
        (["--gpu", "A100"], "invalid choice: 'A100'"),
        (["--fit"], "--fit needs one number of GPUs: --gpus N"),
        (["--fit", "--gpus", "256,512"], "--fit needs one number of GPUs: --gpus N"),
        (["--fit", "--gpus", "256", "--html", "x"], "--fit has no --html"),
        (["--fit", "--gpus", "256", "--schedule", "x"], "--fit has no --schedule"),
        (["--gpus", "256,512", "--html", "x"], "--html shows one number of GPUs"),
        (["--gpus", "256,512", "--schedule", "x"], "--schedule shows one number of GPUs"),
        (["--schedule", "nowhere/x.svg"], "--schedule nowhere/x.svg: No such file or directory"),
        (["--html", "nowhere/x.html"], "--html nowhere/x.html: No such file or directory"),
        (["--set", "memory.preset=k2-all"], "memory.preset"),
    ],
)
def test_mistakes_are_told(folder, arguments, text):
    done = k2(folder, "plan", "k2.yaml", *arguments)
    assert done.code == 2 and done.out == ""
    assert text in done.err and "Traceback" not in done.err


def test_training_that_cannot_fit_is_stopped_with_the_plan(own_place):
    """A model of many times this machine's memory, before anything of it is built."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    vocabulary = 8 * (memory // (16 * 2 * 4096) // 8)
    done = k2(
        own_place,
        "train",
        "tiny.yaml",
        "--set=model.hidden_size=4096",
        f"--set=model.vocab_size={vocabulary}",
    )
    assert done.code == 2 and "Traceback" not in done.err
    assert "memory: its ranks on this machine would need" in done.err
    assert "Nothing was started." in done.err and "weights" in done.err
    assert not (own_place / "runs" / "tiny" / "metrics.jsonl").exists()
