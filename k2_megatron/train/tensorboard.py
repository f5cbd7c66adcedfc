# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Writes every scalar of a step to TensorBoard, under the tags of tags.TABLE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from k2_megatron.train import tags
from k2_megatron.train.callbacks import Callback
from k2_megatron.train.layout import custom_scalars
from k2_megatron.train.metrics import StepRecord, scalars

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

FOLDER_NAME = "tensorboard"
_ROOM_BYTES = 1 << 16
"""More than a step takes."""


class TensorBoardWriter(Callback):
    """Writes event files to `run_folder`/tensorboard/; after an OSError the next write opens one.

    TensorBoard's own thread writes, and ends with the first error: its writer raises that error
    ever after, so that it is given up and what comes later goes to another file.
    """

    def __init__(self, run_folder: Path) -> None:
        """Remember the folder; nothing is opened until training starts."""
        self._folder = run_folder / FOLDER_NAME
        self._writer: SummaryWriter | None = None
        self._started = False

    def on_train_start(self, resumed_step: int) -> None:
        """Open a new event file that hides what earlier files hold past `resumed_step`."""
        self._started = True
        self._open(resumed_step + 1)

    def on_step_end(self, record: StepRecord) -> None:
        """Write the scalars of the step; values are stored as fp32."""
        self._write(scalars(record), record.step)

    def on_valid(self, step: int, valid_loss: float) -> None:
        """Write the loss before training; later ones are part of their step's scalars."""
        if step == 0:
            self._write({tags.LOSS_VALID: valid_loss}, 0)

    def on_rollback(self, step: int) -> None:
        """Open another event file that hides what came after `step`."""
        with suppress(OSError):  # said with the step that it lost
            self.close()
        self._open(step + 1)

    def close(self) -> None:
        """Flush and close the event file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _write(self, values: Mapping[str, float], step: int) -> None:
        """Put the values of a step on disk; waits for it, so that an error is that of this step."""
        assert self._started, "on_train_start opens the writer"
        writer = self._writer or self._open(step)
        with self._given_up_on_error():
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)
            writer.flush()

    def _open(self, first_step: int) -> SummaryWriter:
        """Open a file that hides what earlier ones hold of `first_step` and later ones.

        Raises:
            OSError: there is no room; none was opened.
        """
        # Imported late: it takes a second, and ranks that do not write never need it.
        from torch.utils.tensorboard.writer import SummaryWriter

        # Asked first: each failed attempt would leave an empty event file, and a thread's traceback
        # on stderr.
        self._folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=self._folder) as file:
            file.write(bytes(_ROOM_BYTES))
        self._writer = SummaryWriter(str(self._folder), purge_step=first_step)
        with self._given_up_on_error():
            self._writer.add_custom_scalars(custom_scalars())
            self._writer.flush()
        return self._writer

    @contextmanager
    def _given_up_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            with suppress(OSError):
                self.close()
            raise
