# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A released model held against a run's configuration, then given matrix by matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from k2_megatron.checkpoint.huggingface.config_fields import epsilon_note
from k2_megatron.checkpoint.huggingface.config_json import HfConfig, read_config_json
from k2_megatron.checkpoint.huggingface.names import HfTensor, hf_tensors
from k2_megatron.checkpoint.huggingface.release import Release, open_release
from k2_megatron.config.config import Config
from k2_megatron.config.no_effect import keys_without_effect
from k2_megatron.errors import CheckpointError, ConfigError


@dataclass(frozen=True, kw_only=True)
class Import:
    """A release that is the model of a run.

    Attributes:
        raw: the fields of its config.json.
        tensors: the table, in model order.
        notes: what is passed over, for the log.
    """

    release: Release
    config: HfConfig
    raw: dict[str, Any]
    tensors: tuple[HfTensor, ...]
    notes: tuple[str, ...]

    @property
    def originals(self) -> list[HfTensor]:
        """The tensors that are no copies of others: together every matrix once."""
        return [tensor for tensor in self.tensors if not tensor.is_copy]

    def matrices(self, tensors: Iterable[HfTensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Canonical matrices and router biases in tensors of the table, fp32 [rows, columns].

        One tensor of the release is in memory at a time.

        Raises:
            CheckpointError: a file changed, or holds infinities or NaN.
        """
        for tensor in tensors:
            yield from tensor.split(self._read(tensor))

    def check_copies(self) -> None:
        """Embedding and head of MTP layers must be the model's own; reads them.

        Raises:
            CheckpointError: they differ.
        """
        originals = {tensor.keys: tensor for tensor in self.originals}
        for tensor in self.tensors:
            if not tensor.is_copy:
                continue
            original = originals[tensor.keys]
            if not torch.equal(self._read(tensor), self._read(original)):
                raise CheckpointError(
                    f"{self.release.folder}: {tensor.name} differs from {original.name}, which "
                    "our MTP layers share"
                )

    def _read(self, tensor: HfTensor) -> torch.Tensor:
        return self.release.read(tensor, self.config.fp8_block)


def open_import(folder: Path, config: Config) -> Import:
    """Hold a release against a run's configuration: its config.json, then all its tensors.

    Raises:
        ConfigError: the run's model is another one; lists every key.
        CheckpointError: the release is not one of our models, or not whole.
    """
    found, raw = read_config_json(folder)
    release = open_release(folder)
    notes = []
    num_mtp = found.model["mtp_num_layers"]
    if num_mtp and not release.holds_layer(raw["num_hidden_layers"]):
        found = replace(found, model={**found.model, "mtp_num_layers": 0})
        notes.append(
            f"config.json names {num_mtp} multi-token-prediction layer(s), the files hold none"
        )
    _compare_model(folder, found, config)
    tensors = hf_tensors(config.model)
    release.check(tensors, found.fp8_block)
    if note := epsilon_note(found.model["layernorm_epsilon"]):
        notes.append(note)
    if release.derived:
        notes.append(
            f"{len(release.derived)} inv_freq tensors not read: config.json decides the rotation"
        )
    return Import(release=release, config=found, raw=raw, tensors=tensors, notes=tuple(notes))


def _compare_model(folder: Path, found: HfConfig, config: Config) -> None:
    ineffective = keys_without_effect(config)
    differing = [
        f"model.{key}: {_shown(value)} in config.json, {_shown(getattr(config.model, key))} here"
        for key, value in found.model.items()
        if f"model.{key}" not in ineffective and value != getattr(config.model, key)
    ]
    if differing:
        lines = "\n  ".join(differing)
        raise ConfigError(
            f"{folder} is another model than the run's configuration describes; the weights fit "
            f"config.json's values alone:\n  {lines}"
        )


def _shown(value: object) -> str:
    return "null" if value is None else str(value)
