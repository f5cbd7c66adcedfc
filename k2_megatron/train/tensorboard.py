# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Writes every scalar of a step to TensorBoard, under the tags of tags.TABLE."""

from pathlib import Path
from typing import TYPE_CHECKING

from k2_megatron.train import tags
from k2_megatron.train.callbacks import Callback
from k2_megatron.train.layout import custom_scalars
from k2_megatron.train.metrics import StepRecord, scalars

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

FOLDER_NAME = "tensorboard"


class TensorBoardWriter(Callback):
    """Writes event files to `run_folder`/tensorboard/."""

    def __init__(self, run_folder: Path) -> None:
        """Remember the folder; nothing is opened until training starts."""
        self._folder = run_folder / FOLDER_NAME
        self._writer: SummaryWriter | None = None

    def on_train_start(self, resumed_step: int) -> None:
        """Open a new event file that hides what earlier files hold past `resumed_step`."""
        # Imported late: it takes a second, and ranks that do not write never need it.
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=resumed_step + 1)
        self._writer.add_custom_scalars(custom_scalars())

    def on_step_end(self, record: StepRecord) -> None:
        """Write the scalars of the step; values are stored as fp32."""
        assert self._writer is not None, "on_train_start opens the writer"
        for tag, value in scalars(record).items():
            self._writer.add_scalar(tag, value, record.step)

    def on_valid(self, step: int, valid_loss: float) -> None:
        """Write the loss before training; later ones are part of their step's scalars."""
        assert self._writer is not None, "on_train_start opens the writer"
        if step == 0:
            self._writer.add_scalar(tags.LOSS_VALID, valid_loss, 0)

    def on_rollback(self, step: int) -> None:
        """Open another event file that hides what came after `step`."""
        self.close()
        self.on_train_start(step)

    def on_train_end(self) -> None:
        """Put everything on disk."""
        assert self._writer is not None, "on_train_start opens the writer"
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            self._writer.close()
