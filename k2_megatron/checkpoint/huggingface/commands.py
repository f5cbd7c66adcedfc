# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What `checkpoint import-hf` and `checkpoint export-hf` do and print, as one rank or several."""

from __future__ import annotations

import argparse
import json
import threading
from pathlib import Path
from typing import Any

import torch

from k2_megatron.checkpoint.huggingface.companions import companions, copy_companions
from k2_megatron.checkpoint.huggingface.config_fields import epsilon_note
from k2_megatron.checkpoint.huggingface.config_json import CONFIG_NAME, read_config_json
from k2_megatron.checkpoint.huggingface.config_writing import write_config_json
from k2_megatron.checkpoint.huggingface.exporting import Export, export
from k2_megatron.checkpoint.huggingface.import_parts import import_weights
from k2_megatron.checkpoint.huggingface.importing import Import, open_import
from k2_megatron.checkpoint.huggingface.names import hf_tensors
from k2_megatron.checkpoint.huggingface.parsers import EXPORT, IMPORT
from k2_megatron.checkpoint.huggingface.sharing import all_ranks
from k2_megatron.checkpoint.identity import model_identity, model_matrices
from k2_megatron.checkpoint.inspection import inspect
from k2_megatron.checkpoint.manifest import MANIFEST_NAME, Manifest, read_manifest
from k2_megatron.checkpoint.ranks import Ranks
from k2_megatron.checkpoint.weights import WeightReader, weight_shapes
from k2_megatron.config.config import Config
from k2_megatron.config.loader import load_config
from k2_megatron.config.phases import phase_at, phases_of
from k2_megatron.errors import CheckpointError, UserError
from k2_megatron.launch.agreement import agree, from_first_rank
from k2_megatron.launch.ranks import voice
from k2_megatron.launch.spawn import USER_ERROR
from k2_megatron.run_folder import RunFolder

COMPANIONS_FOLDER = "huggingface"
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def run_huggingface(args: argparse.Namespace) -> int:
    """Run a parsed command as one of the ranks that a launcher started, or alone.

    Returns:
        The exit code.

    Raises:
        UserError: what the user gave is wrong, or a file cannot be read or written.
    """
    run = {IMPORT: _import, EXPORT: _export}[args.checkpoint_command]
    rank = 0
    try:
        with all_ranks() as ranks:
            rank = ranks.rank
            run(args, ranks)
    except UserError:
        if rank == 0:
            raise
        return USER_ERROR  # rank 0 tells what all have agreed on
    return 0


def _import(args: argparse.Namespace, ranks: Ranks) -> None:
    """Write a release as the checkpoint that a run starts from."""

    def opened() -> tuple[Config, Import]:
        config = load_config(args.config, args.overrides)
        return config, open_import(args.release, config)

    config, source = agree(opened)
    folder = RunFolder.of(config)
    say = voice(ranks.rank)
    for note in source.notes:
        say(f"note: {note}")
    from_first_rank(source.check_copies)
    done = import_weights(
        source,
        folder.checkpoints,
        config,
        part_bytes=args.part_size,
        workers=args.workers,
        ranks=ranks,
    )

    def keep_companions() -> tuple[list[str], list[str]]:
        folder.start(config)
        copied = copy_companions(args.release, folder.path / COMPANIONS_FOLDER, with_config=True)
        names = {path.name for path in args.release.iterdir()} - set(copied)
        return copied, sorted(n for n in names if not n.endswith((".safetensors", ".index.json")))

    copied, left = from_first_rank(keep_companions)
    say(f"{len(source.originals):,} tensors in {done.num_parts} parts, {done.kept} kept")
    say(f"kept for an export: {', '.join(copied)}")
    if left:
        say(f"not copied: {', '.join(left)}")
    say(f"written: {done.checkpoint}")


def _export(args: argparse.Namespace, ranks: Ranks) -> None:
    """Write a checkpoint as a release."""
    plan, passed, note = agree(lambda: _export_plan(args, ranks))
    done = export(plan, _Readers(args.path).read, workers=args.workers, ranks=ranks)
    say = voice(ranks.rank)
    if note:
        say(f"note: {note}")
    say(f"{len(plan.tensors):,} tensors in {done.num_shards} shards, {done.kept} kept")
    say(f"passed through: {', '.join(passed) or 'no tokenizer; --like names a release with one'}")
    say(f"written: {args.output}")


def _export_plan(args: argparse.Namespace, ranks: Ranks) -> tuple[Export, list[str], str | None]:
    """What is to be written, which files go along, and what to tell about the model.

    Verifies this rank's share of the checkpoint's files.
    """
    inspection = inspect(args.path, share=(ranks.rank, ranks.world_size))
    if inspection.problems:
        raise CheckpointError("; ".join(inspection.problems))
    manifest = read_manifest(args.path)
    run = args.path.resolve().parent.parent
    config = _config_of(args, run)
    _check_model(args.path, manifest, config)
    like = args.like
    if like is None and (run / COMPANIONS_FOLDER / CONFIG_NAME).exists():
        like = run / COMPANIONS_FOLDER
    fields: dict[str, Any] | None = None
    if like is not None:
        fields = read_config_json(like)[1]
    dtype = _DTYPES[args.dtype]
    trained = phase_at(phases_of(config), manifest.step).config
    plan = Export(
        folder=args.output,
        source=(args.path / MANIFEST_NAME).read_text(),
        config=write_config_json(
            trained.model,
            dtype=str(dtype).removeprefix("torch."),
            context=trained.schedule.seq_length,
            like=fields,
        ),
        tensors=hf_tensors(config.model),
        dtype=dtype,
        shard_bytes=args.shard_size,
        like=like,
    )
    passed = [path.name for path in companions(like)] if like is not None else []
    return plan, passed, epsilon_note(config.model.layernorm_epsilon)


def _config_of(args: argparse.Namespace, run: Path) -> Config:
    path = args.config
    if path is None:
        path = RunFolder(run).resolved_config
        if not path.exists():
            raise CheckpointError(
                f"{args.path}: lies in no run folder ({path} is missing); give --config"
            )
    return load_config(path, args.overrides)


def _check_model(path: Path, manifest: Manifest, config: Config) -> None:
    """The configuration must be the one that the weights were trained with."""
    expected = json.loads(json.dumps(model_identity(config.model)))
    lines = [
        f"{key}: {manifest.identity.get(key)} in the checkpoint, {value} in the configuration"
        for key, value in expected.items()
        if manifest.identity.get(key) != value
    ]
    if not lines and weight_shapes(path) != model_matrices(config.model):
        lines.append("its matrices are not those of the model")
    if lines:
        text = "\n  ".join(lines)
        raise CheckpointError(f"{path}: not of this configuration's model:\n  {text}")


class _Readers:
    """A checkpoint read by several threads: a reader keeps its open files to one."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._local = threading.local()

    def read(self, key: str) -> torch.Tensor:
        reader: WeightReader | None = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = WeightReader(self._checkpoint)
        return reader.read(key)
