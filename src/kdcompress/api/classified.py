"""Image files in, predictions out, batch by batch and in constant memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from kdcompress import threads
from kdcompress.api.classifier import Classifier
from kdcompress.data.ahead import ahead
from kdcompress.data.images import FileImages
from kdcompress.data.preprocess import read_image
from kdcompress.errors import UserError, first_line
from kdcompress.results import Candidate, Prediction, Unreadable

READERS = 8  # threads at most
AHEAD = 2  # batches that are read while one is classified
NO_LABELS = np.empty(0, dtype=np.int64)

Row = Prediction | Unreadable


@dataclass(frozen=True)
class _Read:
    """An image as the classifier takes it."""

    path: str
    prepared: np.ndarray


def classified(
    names: Iterable[str | Unreadable], classifier: Classifier, batch_size: int, top_k: int
) -> Iterator[list[Row]]:
    """The rows of each batch of files, in their order; batches are read by threads while others are classified."""

    def read(path: str) -> _Read | Unreadable:
        try:
            image = read_image(FileImages([path], NO_LABELS, b""), 0, classifier.channels)
            return _Read(path, classifier.prepare(image))
        except UserError as error:
            return Unreadable(path, f"{error.problem}.")
        except Exception as error:  # a transform may fail as well
            return Unreadable(path, f"Unreadable image {path}: {type(error).__name__}: {first_line(error)}.")

    pool = ThreadPoolExecutor(min(threads.available(), READERS))
    batches = ahead(_being_read(names, batch_size, lambda path: pool.submit(read, path)), AHEAD)
    with contextlib.closing(batches):
        try:
            for batch in batches:
                inputs = [each if isinstance(each, Unreadable) else each.result() for each in batch]
                yield _rows(inputs, classifier, top_k)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _being_read(
    names: Iterable[str | Unreadable], batch_size: int, submit: Callable[[str], Future[_Read | Unreadable]]
) -> Iterator[list[Future[_Read | Unreadable] | Unreadable]]:
    batch: list[Future[_Read | Unreadable] | Unreadable] = []
    for name in names:
        batch.append(name if isinstance(name, Unreadable) else submit(name))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _rows(inputs: list[_Read | Unreadable], classifier: Classifier, top_k: int) -> list[Row]:
    """A row for each input, in its place."""
    images = [each for each in inputs if isinstance(each, _Read)]
    found = iter(_predicted(images, classifier, top_k) if images else [])
    return [each if isinstance(each, Unreadable) else next(found) for each in inputs]


def _predicted(images: list[_Read], classifier: Classifier, top_k: int) -> list[Prediction]:
    logits, stopped = classifier.classify([image.prepared for image in images])
    most = logits.topk(min(top_k, logits.shape[1]), dim=1).indices
    chances = logits.softmax(1).gather(1, most).tolist()
    exits = [None] * len(images) if stopped is None else stopped.tolist()
    rows = []
    for image, indices, probabilities, stage in zip(images, most.tolist(), chances, exits, strict=True):
        named = tuple(
            Candidate(_name(classifier.labels, index), index, round(probability, 6))
            for index, probability in zip(indices, probabilities, strict=True)
        )
        first = named[0]
        rows.append(Prediction(image.path, first.label, first.index, first.probability, stage, named))
    return rows


def _name(labels: tuple[str, ...] | None, index: int) -> str | None:
    return labels[index] if labels is not None and index < len(labels) else None
