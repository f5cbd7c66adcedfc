# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""`checkpoint import-hf` and `export-hf` end to end, and imports that go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import DeepseekV3ForCausalLM

from k2_megatron.checkpoint.folder import partial_path
from k2_megatron.checkpoint.huggingface.import_parts import import_weights
from k2_megatron.checkpoint.huggingface.importing import Import, open_import
from k2_megatron.checkpoint.inspection import inspect
from k2_megatron.checkpoint.weights import read_weight
from k2_megatron.cli import main
from k2_megatron.config.config import Config
from k2_megatron.config.loader import load_config
from k2_megatron.errors import CheckpointError
from tests.distributed.harness import run_ranks
from tests.huggingface.releases import CONFIG, ONE_SHARED, OVERRIDES, SHAPES, answers, random_model
from tests.huggingface.test_logits import ATOL, RTOL

PART_BYTES = 40_000


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    random_model(SHAPES["k2"]).save_pretrained(folder, max_shard_size="100KB")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "README.md").write_text("about it")
    return folder


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    return [*OVERRIDES, ONE_SHARED, f"run.folder={tmp_path / 'runs'}"]


@pytest.fixture
def config(overrides: list[str]) -> Config:
    return load_config(CONFIG, overrides)


def command(*arguments: object, overrides: list[str]) -> int:
    sets = [text for override in overrides for text in ("--set", override)]
    return main(["checkpoint", *map(str, arguments), *sets])


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def test_import_train_export(
    release: Path, overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run finds the imported weights, and what it saves after a step is what is exported."""
    checkpoints = tmp_path / "runs" / "small" / "checkpoints"
    assert command("import-hf", release, CONFIG, overrides=overrides) == 0
    assert capsys.readouterr().out.splitlines() == [
        "91 tensors in 1 parts, 0 kept",
        "kept for an export: generation_config.json, tokenizer_config.json, config.json",
        "not copied: README.md",
        f"written: {checkpoints / 'step_00000000'}",
    ]
    assert not inspect(checkpoints / "step_00000000").problems
    tokens = torch.randint(128, (2, 24), generator=torch.Generator().manual_seed(1)).tolist()
    (logits,) = run_ranks(
        "tests.huggingface.jobs.train_a_step",
        1,
        config_path=str(CONFIG),
        overrides=overrides,
        tokens=tokens,
    )
    for step, name, dtype in ((0, "found", "fp32"), (1, "trained", "fp32"), (1, "", "bf16")):
        output = tmp_path / f"exported-{step}-{dtype}"
        arguments = ("export-hf", checkpoints / f"step_{step:08d}", output, "--dtype", dtype)
        assert command(*arguments, "--shard-size", "100KB", overrides=[]) == 0
        assert (output / "tokenizer_config.json").exists()
        if name:
            model = DeepseekV3ForCausalLM.from_pretrained(output).eval()
            expected = answers(model, tokens, 1)["logits"]
            torch.testing.assert_close(logits[name], expected, rtol=RTOL, atol=ATOL)
    first, original = tensors_of(tmp_path / "exported-0-fp32"), tensors_of(release)
    assert first.keys() == original.keys()
    assert all(torch.equal(first[key], original[key]) for key in original)
    trained, small = tensors_of(tmp_path / "exported-1-fp32"), tensors_of(output)
    assert not all(torch.equal(trained[key], original[key]) for key in original)
    for key, value in small.items():
        assert value.dtype == (torch.float32 if key.endswith("bias") else torch.bfloat16)
        assert torch.equal(value, trained[key].to(value.dtype))


def test_export_in_bf16_changes_config(release: Path, overrides: list[str], tmp_path: Path) -> None:
    assert command("import-hf", release, CONFIG, overrides=overrides) == 0
    step = tmp_path / "runs" / "small" / "checkpoints" / "step_00000000"
    assert command("export-hf", step, tmp_path / "out", "--like", release, overrides=[]) == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    given = json.loads((release / "config.json").read_text())
    assert written["torch_dtype"] == "bfloat16"
    for key in given.keys() & written.keys() - {"max_position_embeddings"}:
        assert written[key] == given[key], key


class Interrupted(Exception):
    """What stops the imports of these tests."""


def interrupt(source: Import, folder: Path, config: Config, monkeypatch: Any) -> int:
    """Import until the router of the second layer is read; returns how many parts are finished."""
    read = Import._read

    def until_router(self: Import, tensor: Any) -> torch.Tensor:
        if tensor.name == "model.layers.1.mlp.gate.weight":
            raise Interrupted
        return read(self, tensor)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Import, "_read", until_router)
        import_weights(source, folder, config, part_bytes=PART_BYTES, workers=1)
    progress = json.loads((partial_path(folder, 0) / "import-progress.json").read_text())
    return len(progress["finished"])


def flip_a_bit(partial: Path) -> None:
    path = min(partial.glob("*.bin"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "lost"),
    [
        (lambda partial: None, 0),
        (flip_a_bit, 1),
        (lambda partial: min(partial.glob("*.bin")).unlink(), 1),
        (lambda partial: (partial / "import-progress.json").write_text("{"), None),
    ],
    ids=["whole", "flipped bit", "removed", "no record"],
)
def test_interrupted_import_goes_on(
    spoil: Callable[[Path], object],
    lost: int | None,
    release: Path,
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = open_import(release, config)
    finished = interrupt(source, tmp_path, config, monkeypatch)
    assert finished >= 2
    spoil(partial_path(tmp_path, 0))
    done = import_weights(source, tmp_path, config, part_bytes=PART_BYTES, workers=3)
    assert done.kept == (0 if lost is None else finished - lost)
    assert done.num_parts > finished
    assert not inspect(done.checkpoint).problems
    for key, value in source.matrices(source.originals):
        assert torch.equal(read_weight(done.checkpoint, key), value), key


def test_import_with_other_parts_begins_anew(
    release: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_import(release, config)
    interrupt(source, tmp_path, config, monkeypatch)
    done = import_weights(source, tmp_path, config, part_bytes=2 * PART_BYTES, workers=1)
    assert done.kept == 0
    assert not inspect(done.checkpoint).problems


def test_run_with_checkpoints_is_refused(release: Path, config: Config, tmp_path: Path) -> None:
    (tmp_path / "step_00000100").mkdir()
    with pytest.raises(CheckpointError) as caught:
        import_weights(
            open_import(release, config), tmp_path, config, part_bytes=PART_BYTES, workers=1
        )
    assert str(caught.value) == (
        f"{tmp_path}: holds checkpoints, from which the run would go on: step_00000100; use "
        "another run.name, or move them away"
    )


def test_mistakes_end_with_a_message(
    release: Path, overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = tmp_path / "runs" / "small" / "checkpoints" / "step_00000000"
    assert command("import-hf", release, CONFIG, overrides=overrides) == 0
    out = tmp_path / "out"
    cases: list[tuple[tuple[object, ...], list[str], str]] = [
        (
            ("import-hf", tmp_path / "nowhere", CONFIG),
            overrides,
            f"{tmp_path / 'nowhere' / 'config.json'}: cannot be read: No such file or directory",
        ),
        (("import-hf", release, CONFIG), [], "is another model than the run's configuration"),
        (("export-hf", tmp_path, out), [], "manifest.json: missing"),
        (
            ("export-hf", step, out, "--config", CONFIG),
            OVERRIDES + ("run.name=other",),  # noqa: RUF005
            f"{step}: not of this configuration's model:\n  "
            "model.moe_shared_expert_intermediate_size: 32 in the checkpoint, 48 in the",
        ),
        (("export-hf", step, release), [], f"{release}: not empty, and no export"),
    ]
    capsys.readouterr()
    for arguments, sets, text in cases:
        assert command(*arguments, overrides=list(sets)) == 2
        error = capsys.readouterr().err
        assert error.startswith("k2-megatron: ") and text in error, error
    (tmp_path / "runs" / "small" / "resolved_config.yaml").unlink()
    assert command("export-hf", step, out, overrides=[]) == 2
    assert "lies in no run folder" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        command("export-hf", step, out, "--shard-size", "5", overrides=[])
    assert "'5' given; a size such as 500MB or 5GB is allowed" in capsys.readouterr().err
