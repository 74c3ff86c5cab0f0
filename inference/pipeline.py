"""A run over a view: read | infer | write, overlapped.

Reader threads decode and warp images; workers take a batch of one shape each through the network, group people, write
PNGs and then, with one bulk write per batch, the database. Files come first and the database after, so that a sample
has all its maps or none, whenever the process is killed.

A GPU runs one batch at a time, while the other workers write. A CPU runs one in each worker, on a share of the cores:
they wait for nothing but Python, where one batch on all cores would wait at the end of every layer for the slowest.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import bson
import fiftyone as fo
import fiftyone.core.utils as fou
import numpy as np
import torch
from bson import ObjectId
from pymongo import UpdateOne

from . import checkpoints, labels, recording, runs, shards, weights
from .batching import automatic_batch_size
from .cores import usable_cores
from .images import read_image
from .joints import JointSet
from .map_files import MapWriter, check_writable
from .maps import map_wh
from .predictor import Predictor, PreparedImage, find_precision
from .settings import Settings
from .views import bulk_write, change, pages, patiently, target_problem, whole_samples

MAX_LISTED = 100
MAX_DOCUMENT = 15_500_000  # MongoDB's 16 MB, less what else a sample usually holds
TOO_LARGE = (
    "Its maps do not fit MongoDB's 16 MB for a sample. Use storage='files', dtype='uint8', resolution='network', or "
    "fewer joints."
)
MAX_CPU_BATCHES = 4  # at once; more would need much memory and not be faster
MAX_GPU_WRITERS = 6  # each holds a batch of up to 32 images
BATCH_BYTES = 250_000_000  # of maps; one image may have more
FULL = (errno.ENOSPC, errno.EDQUOT)
# Of the folder, not of one sample's files.
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ESTALE, errno.EIO, errno.ENOTCONN)


@dataclass
class Progress:
    """How far a run is, and how it went at the end.

    Attributes:
        total: samples to do
        done, failed: samples finished
        skipped: samples that were done already when the run began
        failures: up to 100 (file, reason)
        warnings: up to 100 (file, what to know)
        seconds: since the run began
        maps_dir: root of the files, or None
        fields: that the run writes
        busy: seconds of work by stage, over all its threads
    """

    total: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    maps_dir: str | None = None
    fields: tuple[str, ...] = ()
    busy: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "infer": 0.0, "write": 0.0})

    def summary(self) -> str:
        """One line for people."""
        parts = [f"{self.done} of {self.total} samples got pose heatmaps in {self.seconds:.0f} s"]
        if self.skipped:
            parts.append(f"{self.skipped} had them already")
        if self.failed:
            parts.append(f"{self.failed} failed (see their status field)")
        return ", ".join(parts) + "."


@dataclass(frozen=True)
class _Outcome:
    """How it went for one sample."""

    sample_id: str
    filepath: str
    problem: str | None


@dataclass(frozen=True)
class _Finished:
    """A batch in the database."""

    outcomes: list[_Outcome]
    infer_seconds: float
    write_seconds: float


_Failure = tuple[str, str, str]  # sample id, file, reason


@dataclass(frozen=True)
class _Item:
    """A sample on its way through the pipeline."""

    sample_id: str
    filepath: str
    image: PreparedImage


def problems(view: fo.core.collections.SampleCollection, settings: Settings, existing: str | None = None) -> list[str]:
    """What keeps a run from starting, as sentences that say what to do; empty if nothing does. Changes nothing."""
    target = target_problem(view)
    if target:
        return [target]
    dataset: fo.Dataset = view._dataset
    settings = settings.resolved(dataset)
    entry = checkpoints.find_model(settings.model, settings.checkpoint)
    found = runs.conflicts(dataset, recording.fields_of(settings, entry.joint_set))
    if settings.storage == "files":
        unwritable = check_writable(str(settings.maps_dir))
        found += [unwritable] if unwritable else []
    try:
        present = weights.find(entry, settings.checkpoint)
    except checkpoints.CheckpointError as error:
        return [*found, str(error)]
    changed = recording.change_problem(dataset, settings, present.sha256 if present else None, existing)
    return [*found, changed] if changed else found


def run(
    view: fo.core.collections.SampleCollection,
    settings: Settings | None = None,
    *,
    skip_existing: bool = True,
    existing: str | None = None,
    progress: bool | Callable | None = None,
) -> Progress:
    """Attach pose heatmaps to the samples of a view. See :func:`process`.

    Args:
        progress: True or False = with or without a progress bar, None = FiftyOne's default, or a callable as
            FiftyOne's progress callbacks
    """
    steps = process(view, settings, skip_existing=skip_existing, existing=existing)
    state = next(steps)
    with fou.ProgressBar(total=state.total, progress=progress) as bar:
        for state in steps:
            bar.set_iteration(state.done + state.failed)
    return state


def process(
    view: fo.core.collections.SampleCollection,
    settings: Settings | None = None,
    *,
    skip_existing: bool = True,
    existing: str | None = None,
    run_id: str | None = None,
) -> Generator[Progress, None, None]:
    """Attach pose heatmaps to the samples of a view, step by step.

    Args:
        view: a dataset or view of images
        settings: what to compute and store
        skip_existing: leave out the samples that are done; those with an error are tried again
        existing: what to do where the label field has a run with other settings: None = raise, ``"replace"`` it
            sample by sample, or ``"append"``: keep it, and do the samples that it has not done
        run_id: the run that the call is a shard of; None = whichever the label field has, or a new one

    Yields:
        the state of the run, the same object each time: before the first batch, after each batch, and at the end

    Raises:
        ValueError: before anything is written, if the view, the settings, a field or the folder cannot work
        CheckpointError: if the weights cannot be used
        OSError: if the disk is full, the database stays away, or the photos of maps that are to be replaced do; what
            was finished stays, and a later run goes on
        RuntimeError: if another call replaces or deletes the run meanwhile
    """
    started = time.monotonic()
    settings = settings or Settings()
    if existing not in (None, "replace", "append"):
        raise ValueError(f"existing is '{existing}'; it must be None, 'replace' or 'append'.")
    dataset: fo.Dataset = view._dataset
    recording.expect(dataset, settings.label_field, run_id)
    found = problems(view, settings, existing)
    if found:
        raise ValueError(" ".join(found))
    view = whole_samples(view)
    settings = settings.resolved(dataset)
    entry = checkpoints.find_model(settings.model, settings.checkpoint)
    present = weights.find(entry, settings.checkpoint)
    model, predictor = _load(
        entry,
        settings.checkpoint,
        present.sha256 if present else None,
        int(settings.input_size or entry.input_size),
        settings.flip,
        settings.scales,
        settings.device,
        find_precision(settings.precision, settings.device),
    )
    joint_set = model.entry.joint_set
    if recording.starts_over(dataset, settings, joint_set, model.sha256, existing):
        # Chosen by what the run before has written, which is undone when this one begins.
        view = shards.written_down(view, recording.written_fields(dataset, settings, joint_set))
    record = recording.open_record(dataset, settings, model.entry, model.sha256, existing, run_id)
    status = runs.field_name(settings.label_field, "status")
    todo = view.match({status: {"$ne": runs.DONE}}) if skip_existing else view

    fields = recording.fields_of(settings, joint_set)
    state = Progress(total=len(todo), maps_dir=settings.maps_dir, fields=tuple(fields))
    state.skipped = len(view) - state.total
    yield state
    with ExitStack() as stack:
        files = None
        if settings.storage == "files":
            files = stack.enter_context(MapWriter(str(settings.maps_dir), record.run_id))
        stages = _Stages(dataset, settings, predictor, record, files, joint_set, state, not skip_existing)
        for _ in stages.work_through(todo):
            state.seconds = time.monotonic() - started
            yield state
    recording.close_record(dataset, settings.label_field)
    patiently(dataset.reload)
    state.seconds = time.monotonic() - started
    yield state


@lru_cache(maxsize=1)  # a worker does one shard after the other
def _load(
    entry: checkpoints.ModelEntry,
    checkpoint: str | None,
    sha256: str | None,
    input_size: int,
    flip: bool,
    scales: tuple[float, ...],
    device: str | None,
    precision: torch.dtype,
) -> tuple[checkpoints.LoadedModel, Predictor]:
    """A model on its device; loaded again when its description or the file of its weights (``sha256``) has changed."""
    model = checkpoints.load(entry.name, checkpoint)
    flipped = model.entry.joint_set.flip
    return model, Predictor(model.network, flipped, input_size, flip, scales, device, precision)


def _must_work(device: torch.device) -> None:
    """Raises RuntimeError where a GPU cannot be used any more in this process: no image is to blame then."""
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        _load.cache_clear()
        raise RuntimeError(
            f"The run stopped because {device} failed ({str(error).splitlines()[0]}). Start this process anew, and run "
            "again: finished samples are kept."
        ) from error


class _Stages:
    """The three stages of a run and what they share."""

    def __init__(
        self,
        dataset: fo.Dataset,
        settings: Settings,
        predictor: Predictor,
        record: runs.Record,
        files: MapWriter | None,
        joint_set: JointSet,
        state: Progress,
        again: bool,
    ):
        self.dataset = dataset
        self.settings = settings
        self.predictor = predictor
        self.record = record
        self.files = files
        self.labeller = labels.Labeller(settings, joint_set, files)
        self.state = state
        self.again = again  # also samples that are done
        cores = usable_cores()
        on_cpu = predictor.device.type == "cpu"
        self.batch_size = settings.batch_size or automatic_batch_size(predictor, self._see)
        self.num_readers = settings.num_readers or max(1, cores // 2)
        batches_at_once = min(cores, MAX_CPU_BATCHES) if on_cpu else 1
        # More workers than batches: while one writes, another takes its place.
        self.num_workers = batches_at_once + (1 if on_cpu else min(max(2, cores // 2), MAX_GPU_WRITERS))
        self._network_slots = threading.BoundedSemaphore(self.num_workers if on_cpu else 1)
        # On a GPU they are for the pose refiner, which stays on the CPU.
        self._threads_per_batch = max(1, cores // (batches_at_once if on_cpu else self.num_workers))
        self._failed: list[_Failure] = []  # of samples that did not come to the workers
        self._verdicts: tuple[str, ...] = ()  # on earlier maps

    def work_through(self, todo: fo.DatasetView) -> Iterator[None]:
        """Yields after each batch that was written."""
        usual_threads = torch.get_num_threads()
        readers = ThreadPoolExecutor(self.num_readers, "read")
        workers = ThreadPoolExecutor(self.num_workers, "work", torch.set_num_threads, (self._threads_per_batch,))
        working: deque[Future[_Finished]] = deque()
        try:
            for batch in self._batches(todo, readers):
                working.append(workers.submit(self._work, batch, self._take_failures()))
                while len(working) > self.num_workers or (working and working[0].done()):
                    self._note(working.popleft().result())
                    yield
            working.append(workers.submit(self._work, [], self._take_failures()))
            while working:
                self._note(working.popleft().result())
                yield
        finally:
            readers.shutdown(wait=True, cancel_futures=True)
            workers.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(usual_threads)  # a worker's setting is also that of threads that begin later
            if self.predictor.device.type == "cuda":
                with suppress(RuntimeError):  # of a GPU that failed; that has been told
                    torch.cuda.empty_cache()  # an App or a worker lives on, and other processes need the memory

    # --- read

    def _batches(self, todo: fo.DatasetView, readers: ThreadPoolExecutor) -> Iterator[list[_Item]]:
        """Images of one shape, up to ``batch_size``, at times none; at most 4 * ``batch_size`` wait anywhere."""
        # Never more than was counted: a view that filters by what the run writes changes while it is read.
        samples = itertools.islice(pages(todo), self.state.total)
        reading: deque[tuple[str, str, Future[tuple[PreparedImage, float]]]] = deque()
        waiting: dict[tuple, list[_Item]] = {}  # the oldest shape first
        while True:
            while (count := sum(map(len, waiting.values()))) >= 3 * self.batch_size:
                yield waiting.pop(next(iter(waiting)))
            free = max(0, 4 * self.batch_size - len(reading) - count)
            for sample_id, filepath in itertools.islice(samples, free):
                reading.append((sample_id, filepath, readers.submit(self._read, filepath)))
            if not reading:
                break
            sample_id, filepath, future = reading.popleft()
            try:
                image, seconds = future.result()
            except Exception as error:
                self._must_be_there(sample_id, Path(filepath).parent)
                self._failed.append((sample_id, filepath, str(error) or type(error).__name__))
                if len(self._failed) == MAX_LISTED:
                    yield []  # nothing to infer, but failures to write
                continue
            self.state.busy["read"] += seconds
            if image.warp.reduced and len(self.state.warnings) < MAX_LISTED:
                self.state.warnings.append((filepath, "is much longer than wide; it was scaled down as a whole."))
            same_shape = waiting.setdefault(image.shape, [])
            same_shape.append(_Item(sample_id, filepath, image))
            if len(same_shape) >= self.batch_size or sum(map(self._map_bytes, same_shape)) >= BATCH_BYTES:
                yield waiting.pop(image.shape)
        yield from waiting.values()

    def _map_bytes(self, item: _Item) -> int:
        width, height = map_wh(item.image.warp, self.settings.resolution)
        return (1 + len(self.labeller.joints)) * width * height * np.dtype(self.settings.dtype).itemsize

    def _must_be_there(self, sample_id: str, folder: Path) -> None:
        """Stop where a folder of photos went away and a sample would lose the maps that it has."""
        try:
            with os.scandir(folder) as files:
                if next(files, None):
                    return
            reason = "the folder is empty"  # as where a disk is mounted otherwise
        except OSError as error:
            reason = str(error.strerror)
        names = {*runs.heatmap_fields(self.dataset)} & {*self.record.fields}
        lost = {"_id": ObjectId(sample_id), "$or": [{name: {"$ne": None}} for name in sorted(names)]}
        if patiently(lambda: self.dataset._sample_collection.count_documents(lost)):
            raise OSError(
                errno.ENOENT,
                f"The run stopped because the photos in {folder} cannot be read ({reason}), and going on would delete "
                "the maps that they have. Make them available and run again, or run on a view without them: finished "
                "samples are kept",
            )

    def _read(self, filepath: str) -> tuple[PreparedImage, float]:
        started = time.perf_counter()
        return self.predictor.prepare(read_image(filepath)), time.perf_counter() - started

    # --- infer and write, in a worker

    def _work(self, batch: list[_Item], failed: list[_Failure]) -> _Finished:
        """Take a batch, of any length, to the database, together with samples that failed before."""
        with self._network_slots:
            started = time.perf_counter()
            items, seen, failed_now = self._infer(batch) if batch else ([], [], [])
            inferred = time.perf_counter()
        outcomes = self._write(items, seen, failed + failed_now)
        return _Finished(outcomes, inferred - started, time.perf_counter() - inferred)

    def _infer(self, items: list[_Item]) -> tuple[list[_Item], list[labels.Seen], list[_Failure]]:
        """Run a batch; where it fails (out of memory, say), run its halves, down to the image that cannot be run."""
        try:
            return items, self._see([item.image for item in items]), []
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                if len(items) > 1:  # later batches are smaller from the start; one image says nothing about others
                    self.batch_size = min(self.batch_size, (len(items) + 1) // 2)  # not 1 where 3 were too many
            elif self.predictor.device.type == "cuda":
                _must_work(self.predictor.device)
            if len(items) == 1:
                reason = f"The network failed on it: {str(error).splitlines()[0]}"
                return [], [], [(items[0].sample_id, items[0].filepath, reason)]
        if self.predictor.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(items) // 2
        first, second = self._infer(items[:middle]), self._infer(items[middle:])
        return first[0] + second[0], first[1] + second[1], first[2] + second[2]

    def _see(self, images: list[PreparedImage]) -> list[labels.Seen]:
        return labels.see(self.predictor, self.settings, images, bool(self.labeller.joints))

    def _write(self, items: list[_Item], seen: list[labels.Seen], failed: list[_Failure]) -> list[_Outcome]:
        """Files first, then one bulk write, also of samples that failed before."""
        if not runs.is_current(self.record):
            raise RuntimeError(runs.gone(self.settings.label_field))
        self._verdicts = runs.verdicts(self.record)
        ids = [*(sample_id for sample_id, _, _ in failed), *(item.sample_id for item in items)]
        if self.again and self.files:  # none counts as done while its files are replaced, whatever happens then
            patiently(lambda: recording.undo_done(self.dataset, self.settings.label_field, ids))
        outcomes = [_Outcome(*failure) for failure in failed]
        updates = [self._update(sample_id, {"status": reason}) for sample_id, _, reason in failed]
        for item, image in zip(items, seen, strict=True):
            try:
                values = self.labeller.documents(image, item.sample_id)
                large = self.settings.storage == "memory" and len(bson.encode(values)) > MAX_DOCUMENT
                problem = TOO_LARGE if large else None
            except ValueError as error:  # what the network gave cannot be used
                problem = str(error)
            except OSError as error:
                if not runs.is_current(self.record):  # its folder goes with it
                    raise RuntimeError(runs.gone(self.settings.label_field)) from error
                if error.errno in (*FULL, *UNWRITABLE):
                    way_out = "Make room" if error.errno in FULL else "Make the folder writable"
                    raise OSError(
                        error.errno,
                        f"The run stopped because maps can no longer be written to {self.settings.maps_dir} "
                        f"({error.strerror}). {way_out} and run again: finished samples are kept",
                    ) from error
                problem = f"Its maps could not be written: {error}."
            if problem:
                values = {"status": problem}
            outcomes.append(_Outcome(item.sample_id, item.filepath, problem))
            updates.append(self._update(item.sample_id, values))
        try:
            bulk_write(self.dataset, updates)
        except ValueError:  # as FiftyOne says that one of the samples would be too large with what else it holds
            outcomes = [self._write_one(*parts) for parts in zip(outcomes, updates, strict=True)]
        if not runs.is_current(self.record):  # replaced or deleted between the look above and the update
            self._take_back(ids)
            raise RuntimeError(runs.gone(self.settings.label_field))
        if self.files:
            for outcome in outcomes:
                if outcome.problem is not None:  # it has none of the run's labels any more, and no files
                    self.files.remove(outcome.sample_id)
        return outcomes

    def _write_one(self, outcome: _Outcome, update: UpdateOne) -> _Outcome:
        try:
            bulk_write(self.dataset, [update])
        except ValueError:
            bulk_write(self.dataset, [self._update(outcome.sample_id, {"status": TOO_LARGE})])
            return replace(outcome, problem=TOO_LARGE)
        return outcome

    def _take_back(self, sample_ids: list[str]) -> None:
        """Samples count as done only with maps of the run that their label field has: they are to be done again."""
        fields = dict.fromkeys(self.record.fields, "")
        bulk_write(self.dataset, [UpdateOne({"_id": ObjectId(one)}, {"$unset": fields}) for one in sample_ids])
        if self.files:
            for one in sample_ids:
                self.files.remove(one)

    def _update(self, sample_id: str, values: dict[str, Any]) -> UpdateOne:
        prefix = f"{self.settings.label_field}_"
        done = values["status"] == runs.DONE  # then maps of joints that this call does not make stay
        others = (*(self.record.replaced if done else self.record.fields), *self._verdicts)
        written = {prefix + name: value for name, value in values.items()}
        return UpdateOne({"_id": ObjectId(sample_id)}, change({**dict.fromkeys(self.state.fields), **written}, others))

    def _take_failures(self) -> list[_Failure]:
        failed, self._failed = self._failed, []
        return failed

    def _note(self, finished: _Finished) -> None:
        state = self.state
        state.busy["infer"] += finished.infer_seconds
        state.busy["write"] += finished.write_seconds
        for outcome in finished.outcomes:
            if outcome.problem is None:
                state.done += 1
                continue
            state.failed += 1
            if len(state.failures) < MAX_LISTED:
                state.failures.append((outcome.filepath, outcome.problem))
