"""The replay under Lightning: one `PriorZeroData` a Trainer, all on the same replay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from priorzero.data.streams import Stream
from priorzero.types import TensorRecord

Evaluation = Callable[[], Any]  # plays episodes, returns what the module's validation_step takes


class PriorZeroData(lightning.LightningDataModule):
    """Training batches from a stream, evaluation as the validation loop.

    The two Trainers of a run each get their own, with a `WorldModelStream` or a `PolicyStream` on the one replay. The
    Trainer must have an integer ``limit_train_batches``, the updates of a round: with it Lightning fetches no batch
    ahead, so that what is drawn in a round is what was there when it was drawn.

    Validation runs one loader for each evaluation, in the order given, and each yields one item: what the callable
    returns, played when the loop asks for it. ``validation_step(item, batch_idx, dataloader_idx)`` logs it.

    Checkpoints get the stream's state, which is small. Replay and limiter belong to whoever runs the collector, and are
    saved there. Under several ranks Lightning stores the state of rank 0 only: save ``stream.state_dict()`` beside each
    rank's replay, and load it after the Trainer has restored.

    Args:
        stream: endless training batches.
        evaluations: by name; under several ranks each rank gets its own share from the caller.
    """

    def __init__(self, stream: Stream, *, evaluations: Mapping[str, Evaluation] | None = None) -> None:
        super().__init__()
        self.stream = stream
        self.evaluations = dict(evaluations or {})

    @property
    def names(self) -> list[str]:
        """Names of the evaluations; ``dataloader_idx`` counts along them."""
        return list(self.evaluations)

    def setup(self, stage: str) -> None:
        """Turn validation off where there is nothing to evaluate; Lightning warns of an empty list of loaders."""
        if self.trainer is not None and not self.evaluations:
            self.trainer.limit_val_batches = 0

    def train_dataloader(self) -> DataLoader:
        """Endless batches.

        Raises:
            ValueError: the Trainer has no integer ``limit_train_batches``.
        """
        limit = self.trainer.limit_train_batches if self.trainer is not None else 1
        if not isinstance(limit, int):
            raise ValueError(
                f"the Trainer has limit_train_batches={limit!r}, but the stream never ends: set it to the number of "
                "updates a round, as an integer"
            )
        return _loader(_Batches(self.stream))

    def val_dataloader(self) -> list[DataLoader]:
        """One loader for each evaluation."""
        return [_loader(_Once(evaluation)) for evaluation in self.evaluations.values()]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches move as one; results of evaluations stay as they are."""
        return batch.to(device) if isinstance(batch, TensorRecord) else batch

    def state_dict(self) -> dict[str, Any]:
        """The stream's."""
        return self.stream.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give it back to the stream."""
        self.stream.load_state_dict(state_dict)


def _loader(dataset: Dataset) -> DataLoader:
    # In this process: a worker would hold a copy of the replay, for ever as empty as it was at its start.
    # With random numbers of its own: a loader draws a seed whenever it is iterated, and how often that is depends on
    # where a run was interrupted.
    return DataLoader(dataset, batch_size=None, num_workers=0, collate_fn=_unchanged, generator=torch.Generator())


def _unchanged(item: Any) -> Any:
    return item


class _Batches(IterableDataset):
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[Any]:
        return iter(self._stream)


class _Once(Dataset):
    """One item. It has a length: without, Lightning would fetch ahead, before the module is in evaluation mode."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return self._evaluation()
