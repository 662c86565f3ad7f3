"""From a dataset's annotations to batches: samples, the mixing of datasets, their order.

A sample is a pure function of its annotation and an augmentation. Which annotation and which augmentation stand at a
position of an epoch is a pure function of (seed, epoch, position). So the order is the same for any number of processes
and loader workers, and training can resume at any step.
"""

import math
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, default_collate

from common.distributed import usable_cores
from common.errors import WORKER_KILLED, UserError, error_context, explain_failure
from common.targets import make_eval_sample, make_sample
from common.types import Annotation, EvalSample, Sample
from common.utils.augment import IDENTITY, Augmentation, AugmentationRange, draw_augmentation
from common.utils.frames import Frames
from common.utils.images import load_image, quiet_opencv

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]  # an optional module

T = TypeVar("T")

MAX_REPLACED = 100  # broken samples in a row; more is not an accident
HELD_OUT, MAX_HELD_OUT = 0.05, 128  # share and number of a dataset's samples that validation uses
PREFETCHED = 2  # batches that each worker holds ready, PyTorch's default
MAX_FILES = 1 << 16  # open files a process may ask for: some programs walk through all that they may have
FILES_PER_BATCH = 64  # open files of a batch on its way from a worker: one for each tensor, and pipes


class Source(Protocol):
    """What a dataset knows; one class each under data/."""

    name: str
    split: str
    in_the_wild: bool  # photos, whose body box is enlarged more

    def __len__(self) -> int: ...

    def id(self, index: int) -> int | tuple: ...

    def annotation(self, index: int) -> Annotation: ...

    # For tool/doctor.py.
    def files(self, index: int) -> list[Path]: ...

    def problems(self) -> Sequence[tuple[int, str]]: ...

    def counts(self) -> dict[str, int]: ...

    def check_cache(self) -> None: ...


class HandDataset(Dataset):
    """The images of one source as samples.

    Args:
        source: provides the annotations.
        frames: sizes of the frames.
        box_extension: factor by which the body box is enlarged.

    Attributes:
        exchanged: (1,) int64, images so far whose sides are exchanged against the annotation, of all workers.
    """

    def __init__(self, source: Source, frames: Frames, box_extension: float) -> None:
        self.source, self.frames, self.box_extension = source, frames, box_extension
        self.exchanged = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.source)

    def id(self, index: int) -> str:
        """The name of an annotation in messages."""
        id = self.source.id(index)
        return f"{self.source.name} {'/'.join(map(str, id)) if isinstance(id, tuple) else id}"

    def sample(self, index: int, augmentation: Augmentation, replaced: int = 0, float_crop: bool = False) -> Sample:
        """The sample of one annotation under one augmentation. `replaced`, `float_crop`: see `make_sample`.

        Raises:
            UserError: names the annotation and what is wrong with it or its files.
        """
        with error_context(self.id(index)):
            annotation, image = self._load(index)
            return make_sample(
                annotation, image, augmentation, self.frames, self.box_extension, self.id(index), replaced, float_crop
            )

    def __getitem__(self, index: int) -> EvalSample:
        """The test item of one annotation. Raises UserError like `sample`."""
        with error_context(self.id(index)):
            annotation, image = self._load(index)
            return make_eval_sample(annotation, image, self.frames, self.box_extension, self.id(index))

    def _load(self, index: int) -> tuple[Annotation, np.ndarray]:
        annotation = self.source.annotation(index)
        image = load_image(annotation.image_path)
        height, width = annotation.image_size
        if image.shape[:2] == (width, height) and width != height:
            # InterHand2.6M has such images (camera 400412). As published, the annotation's size is used.
            self.exchanged += 1
            if self.exchanged == 1:
                text = f"{annotation.image_path} has its sides exchanged against its annotation, perhaps others too"
                print(f"warning: {text}; they are read with the annotation's size", file=sys.stderr, flush=True)
        return annotation, image


class EvalItems(Dataset):
    """Some test samples of a dataset, each as its index and the sample.

    Args:
        skip_bad: a sample that cannot be read is its error message instead of an error.
    """

    def __init__(self, dataset: HandDataset, indices: Sequence[int], skip_bad: bool) -> None:
        self.dataset, self.indices, self.skip_bad = dataset, indices, skip_bad

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[int, EvalSample | str]:
        """Raises UserError if the sample cannot be read and is not to be skipped."""
        index = self.indices[position]
        try:
            return index, self.dataset[index]
        except UserError as error:
            if not self.skip_bad:
                raise
            return index, str(error)


def collate_readable(items: Sequence[tuple[int, EvalSample | str]]) -> tuple[list[int], EvalSample | None, list[str]]:
    """`EvalItems` -> indices and batch of the readable ones (None if there is none), the errors of the others."""
    readable = {index: item for index, item in items if not isinstance(item, str)}
    errors = [item for _, item in items if isinstance(item, str)]
    return list(readable), default_collate(list(readable.values())) if readable else None, errors


class SampleKey(NamedTuple):
    """A position in the order of training: all that a sample depends on."""

    part: int  # which dataset
    index: int  # type: ignore[assignment]  # which of its annotations; tuple.index is not used
    epoch: int
    position: int  # in the epoch's order


class MixedDataset(Dataset):
    """The datasets of a training as one; its keys come from a `MixedSampler`.

    Args:
        parts_3d, parts_2d: datasets with and without depth.
        seed: of all draws.
        limits: the range that augmentations are drawn from.
        skip_bad: replace a broken sample by another of its dataset and count it (`Sample.replaced`), instead of
            raising an error.
        hold_out: keep the end of each dataset, a share of `HELD_OUT`, out of the training, for `held_out`.
    """

    def __init__(
        self,
        parts_3d: Sequence[HandDataset],
        parts_2d: Sequence[HandDataset],
        seed: int,
        limits: AugmentationRange | None = None,
        skip_bad: bool = False,
        hold_out: bool = False,
    ) -> None:
        self.parts = [*parts_3d, *parts_2d]
        held = [min(MAX_HELD_OUT, math.ceil(HELD_OUT * len(part))) if hold_out else 0 for part in self.parts]
        self.sizes = [len(part) - number for part, number in zip(self.parts, held, strict=True)]
        self.group_sizes = [self.sizes[: len(parts_3d)], self.sizes[len(parts_3d) :]]
        self.seed, self.limits, self.skip_bad = seed, limits or AugmentationRange(), skip_bad
        self._reported: set[tuple[int, int]] = set()

    def held_out(self) -> Iterator[Sample]:
        """The samples that are not trained on, without augmentation. Those that cannot be read are skipped."""
        for part, size in zip(self.parts, self.sizes, strict=True):
            for index in range(size, len(part)):
                with suppress(UserError):
                    yield part.sample(index, IDENTITY)

    def augmentation(self, key: SampleKey) -> Augmentation:
        """The augmentation at a position."""
        return draw_augmentation(np.random.default_rng((self.seed, key.epoch, key.position)), self.limits)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Raises UserError, which names the annotation, if it is broken and `skip_bad` is not set."""
        part, index, augmentation = self.parts[key.part], key.index, self.augmentation(key)
        for replaced in range(MAX_REPLACED):
            try:
                return part.sample(index, augmentation, replaced)
            except UserError as error:
                if not self.skip_bad:
                    raise
                problem = error
            if (key.part, index) not in self._reported:
                self._reported.add((key.part, index))
                print(f"skipped {problem}", file=sys.stderr, flush=True)
            rng = np.random.default_rng((self.seed, key.epoch, key.position, replaced + 1))
            index = int(rng.integers(self.sizes[key.part]))
        raise UserError(f"{MAX_REPLACED} samples in a row cannot be used; the last: {problem}")


def mix_groups(counts: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """An epoch's annotations before shuffling: every group as long as the longest.

    A shorter group is repeated whole as often as it fits; the rest is drawn at random. Empty groups are skipped.

    Args:
        counts: number of annotations in each group.

    Returns:
        Indices into the concatenation of all groups, (present groups x longest,) int64.
    """
    longest, start = max(counts), 0
    order: list[np.ndarray] = []
    for count in counts:
        if count:
            whole = np.tile(np.arange(count), longest // count)
            rest = rng.integers(0, count, longest - len(whole))
            order += [start + whole, start + rest]
        start += count
    return np.concatenate(order)


class MixedSampler(Sampler[list[SampleKey]]):
    """The batches of one process, as keys of a `MixedDataset`; for `DataLoader(batch_sampler=...)`.

    A global batch is a run of the shuffled epoch; process `rank` takes every `world`-th sample, starting at `rank`.
    The last, partial batch is dropped.

    Args:
        group_sizes: number of annotations of each dataset, by group; see `MixedDataset.group_sizes`.
        global_batch: samples per step in all processes together.
        seed: of the order.
        rank, world: this process and the number of processes.

    Raises:
        UserError: there are no samples, or fewer than a batch, or the batch does not divide among the processes.
    """

    def __init__(
        self, group_sizes: Sequence[Sequence[int]], global_batch: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        if global_batch % world:
            raise UserError(f"a global batch of {global_batch} does not divide among {world} processes")
        self.group_sizes = [list(group) for group in group_sizes]
        self.counts = [sum(group) for group in group_sizes]
        sizes = [size for group in group_sizes for size in group]
        self.starts = np.cumsum([0, *sizes[:-1]])
        self.total = max(self.counts) * sum(count > 0 for count in self.counts)
        self.steps_per_epoch = self.total // global_batch
        if not self.steps_per_epoch:
            raise UserError(f"an epoch has {self.total} samples, fewer than a batch of {global_batch}")
        self.global_batch, self.seed, self.rank, self.world = global_batch, seed, rank, world
        self.epoch, self.start_step = 0, 0

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Set what the next iteration yields: this epoch, from this step on."""
        self.epoch, self.start_step = epoch, start_step

    def __len__(self) -> int:
        return self.steps_per_epoch - self.start_step

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, rng = self.epoch, np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(mix_groups(self.counts, rng))
        for step in range(self.start_step, self.steps_per_epoch):
            first = step * self.global_batch
            positions = range(first + self.rank, first + self.global_batch, self.world)
            yield [self._key(int(order[position]), epoch, position) for position in positions]

    def _key(self, index: int, epoch: int, position: int) -> SampleKey:
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return SampleKey(part, index - int(self.starts[part]), epoch, position)


# ---- Loader workers ----


def loader_workers(limit: int, processes: int, batches: int | None = None) -> int:
    """Number of loader workers of this process.

    Args:
        limit: at most so many.
        processes: of this machine, which share the cores that this job may use.
        batches: that the loader makes; more workers than that would have nothing to do.
    """
    return min(limit, max(1, usable_cores() // processes), limit if batches is None else batches)


def check_machine(workers: int, batch_bytes: int) -> None:
    """Prepare this process for its loader workers, before they start.

    Batches pass from the workers through shared memory: each tensor needs an open file, and all of them need space.

    Args:
        workers: of this process.
        batch_bytes: size of one batch.

    Raises:
        UserError: the shared memory is too small.
    """
    if not workers:
        return
    batches = workers * PREFETCHED + 1
    if resource:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            with suppress(ValueError, OSError):  # the system allows less than it says
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if soft != resource.RLIM_INFINITY and soft < batches * FILES_PER_BATCH:
            torch.multiprocessing.set_sharing_strategy("file_system")  # does not keep files open
    shared = Path("/dev/shm")  # where Linux has it; elsewhere its size is not known
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        if free < batches * batch_bytes:
            raise UserError(
                f"the shared memory /dev/shm has {free / 2**20:.0f} MiB free, {workers} loader workers need "
                f"{batches * batch_bytes / 2**20:.0f} MiB; in Docker give --shm-size or --ipc=host, or use fewer "
                "--workers (0 needs none)"
            )


def init_worker(worker: int) -> None:
    """For `DataLoader(worker_init_fn=...)`: the workers are the parallelism, OpenCV adds none."""
    cv2.setNumThreads(0)
    quiet_opencv()


def unwrap_worker_errors(batches: Iterable[T]) -> Iterator[T]:
    """Pass batches on; a worker's `UserError`, which arrives wrapped in its traceback, becomes one line again.

    Raises:
        UserError: also if a worker was killed.
    """
    try:
        yield from batches
    except UserError as error:
        raise UserError(str(error).strip().rsplit(f"{UserError.__name__}: ", 1)[-1]) from None
    except (EOFError, ConnectionError):  # of the pipe from a worker
        raise UserError(WORKER_KILLED) from None
    except RuntimeError as error:
        if explain_failure(error) != WORKER_KILLED:
            raise
        raise UserError(WORKER_KILLED) from None


def to_device(batch: Any, device: torch.device) -> Any:
    """The tensors of a batch, of nested named tuples, on a device; the rest as it is."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if hasattr(batch, "_fields"):
        return type(batch)(*(to_device(part, device) for part in batch))
    return batch
