# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The weights of a checkpoint as whole canonical matrices, one at a time, without a run.

Keys are those of the canonical table (`layers.3.experts.7.gate`), and `layers.3.router_bias` [n, 1]
for the selection bias of a router's n experts. Values are fp32: the optimizer's master weights,
which a bf16 run rounds. Nothing here needs a process group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from k2_megatron.checkpoint.data_file import DataReader, matrix_name, write_data_file
from k2_megatron.checkpoint.folder import Keeping, partial_path, publish, start_partial, step_path
from k2_megatron.checkpoint.identity import model_identity, model_matrices
from k2_megatron.checkpoint.index import (
    INDEX_NAME,
    Index,
    Matrix,
    Part,
    check_shapes,
    check_tiling,
    read_index,
    write_index,
)
from k2_megatron.checkpoint.manifest import FileEntry, Manifest, data_file_name, file_entry
from k2_megatron.config.config import Config
from k2_megatron.errors import CheckpointError
from k2_megatron.parallel.model_space import Region

WEIGHT = "weight"
_PREFIX = matrix_name(WEIGHT, "")


def weight_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """(rows, columns) of every weight of the checkpoint `folder`, by canonical key.

    Raises:
        DamagedCheckpointError: the index cannot be read.
    """
    return {
        name.removeprefix(_PREFIX): (matrix.rows, matrix.cols)
        for name, matrix in read_index(folder).matrices.items()
        if name.startswith(_PREFIX)
    }


def read_weight(folder: Path, key: str) -> torch.Tensor:
    """One canonical matrix [rows, columns] of the checkpoint `folder`, fp32, on the CPU.

    Reads the index anew each time: `WeightReader` for many.

    Raises:
        CheckpointError: there is no such matrix, or it cannot be read.
    """
    with WeightReader(folder) as reader:
        return reader.read(key)


class WeightReader:
    """Reads canonical matrices of one checkpoint; memory is that of the matrix and 64 MiB."""

    def __init__(self, folder: Path) -> None:
        """Read the index; the caller has verified the checksums (`inspection.inspect`)."""
        self._folder = folder
        self._index = read_index(folder)
        self._reader = DataReader(folder, self._index.files)

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.__exit__(*error)

    def read(self, key: str) -> torch.Tensor:
        """One canonical matrix [rows, columns], fp32.

        Raises:
            CheckpointError: there is no such matrix, or it cannot be read.
        """
        matrix = self._index.matrices.get(matrix_name(WEIGHT, key))
        if matrix is None:
            raise CheckpointError(f"{self._folder}: holds no weight {key}")
        values = torch.empty(matrix.rows, matrix.cols)
        region = Region(key=key, rows=(0, matrix.rows), cols=(0, matrix.cols))
        self._reader.read(matrix, region, values)
        return values


def write_weights(
    folder: Path, config: Config, matrices: Iterable[tuple[str, torch.Tensor]]
) -> Path:
    """Write a checkpoint that holds weights alone: training starts from it at step 0.

    Memory is that of one matrix. The checkpoint gets its name when all is on the disk.

    Args:
        folder: a run's `checkpoints` folder.
        config: whose model the weights are of.
        matrices: canonical key and values [rows, columns] of every matrix, in any order.

    Returns:
        The checkpoint's folder, step_00000000.

    Raises:
        CheckpointError: a matrix is missing, unknown, misshapen or given twice, or the folder
            holds a checkpoint of step 0 already.
    """
    start_weights(folder)
    part = write_weight_part(folder, 0, matrices)
    return finish_weights(folder, config, [part])


# One part of the weights: the file's entry in the manifest, and what it holds.
WeightPart = tuple[int, FileEntry, list[tuple[str, int, int, int]]]


def start_weights(folder: Path) -> None:
    """Begin a checkpoint of weights that several processes write; one of them calls this.

    Raises:
        CheckpointError: the folder holds a checkpoint of step 0 already.
    """
    if step_path(folder, 0).exists():
        raise CheckpointError(f"{step_path(folder, 0)}: exists already; move it away first")
    start_partial(folder, 0)


def write_weight_part(
    folder: Path, number: int, matrices: Iterable[tuple[str, torch.Tensor]]
) -> WeightPart:
    """Write some of the matrices as file `number`; each number once, counted from 0.

    Returns:
        What `finish_weights` is given; plain data that may travel between processes.
    """
    held: list[tuple[str, int, int, int]] = []

    def pieces() -> Iterator[memoryview]:
        offset = 0
        for key, values in matrices:
            if values.dim() != 2:
                raise CheckpointError(f"{key}: {list(values.shape)} given, [rows, columns] wanted")
            data = values.detach().float().contiguous()
            held.append((key, offset, values.shape[0], values.shape[1]))
            offset += data.nbytes
            yield data.view(-1).view(torch.uint8).numpy().data

    entry = write_data_file(partial_path(folder, 0) / data_file_name(number), pieces())
    return number, entry, held


def finish_weights(folder: Path, config: Config, parts: Iterable[WeightPart]) -> Path:
    """Check that the parts are the model's weights, and give the checkpoint its name.

    Raises:
        CheckpointError: a matrix is missing, unknown, misshapen or given twice.
    """
    found = sorted(parts)
    index = Index(files=[data_file_name(number) for number, _, _ in found], matrices={})
    for file, (_, _, held) in enumerate(found):
        for key, offset, rows, cols in held:
            name = matrix_name(WEIGHT, key)
            matrix = index.matrices.setdefault(name, Matrix(rows=rows, cols=cols, dtype="float32"))
            matrix.parts.append(Part(file, offset, (0, rows), (0, cols)))
    shapes = {matrix_name(WEIGHT, k): size for k, size in model_matrices(config.model).items()}
    check_shapes(index, shapes, f"{folder}: these are not the weights of the model")
    check_tiling(index, f"{folder}: these are not the weights of the model")
    path = partial_path(folder, 0) / INDEX_NAME
    write_index(path, index)
    files = {data_file_name(number): entry for number, entry, _ in found}
    manifest = Manifest(
        step=0,
        world_size=1,
        layout={},
        identity=model_identity(config.model),
        metadata={"consumed_samples": 0, "data_order": None},
        files={**files, INDEX_NAME: file_entry(path)},
        weights_only=True,
    )
    return publish(folder, manifest, Keeping()).path
