"""Data without labels: their labels are the teacher's answers, so that accuracy is agreement with it."""

from __future__ import annotations

import numpy as np

from kdcompress.api.inputs import settle_input, without_size
from kdcompress.data import Data, DataSource, SplitFile
from kdcompress.data.answered import answered_source, unanswered
from kdcompress.data.listing import state_of
from kdcompress.engine.distributed import from_main, start
from kdcompress.engine.evaluate import collect
from kdcompress.engine.targets import forward_batch
from kdcompress.errors import UserError
from kdcompress.models.fold import for_inference
from kdcompress.models.loading import Network
from kdcompress.options import METHODS, DataOptions, DistillOptions, LogitOptions
from kdcompress.options.methods import meaningless


def agreement_source(
    spec: str, network: Network | None, options: DataOptions, split: SplitFile | None, *, is_teacher: bool
) -> DataSource:
    """The images of ``unlabelled:DIR`` with a teacher's answers, computed or as a run recorded them.

    Args:
        network: The teacher; or any network of the chain, where the answers are on record.
        split: What was recorded.
        is_teacher: Whether ``network`` is the teacher.

    Raises:
        UserError: There is no teacher, and no record of its answers.
    """
    recorded = split is not None and split.answered
    if network is None or not (recorded or is_teacher):
        remedy = "Distill a student from a TEACHER with these data, whose run records its answers; or label the images."
        raise UserError(f"The images of {spec} have no labels, and no teacher's answers in their place.", remedy)
    classes = network.class_names or tuple(str(number) for number in range(network.num_classes))
    answers = None if recorded else from_main(lambda: _answers(spec, network, options))
    source = answered_source(spec, classes, answers, split)
    source.class_names = network.class_names
    return source


def _answers(spec: str, network: Network, options: DataOptions) -> np.ndarray:
    """The class that a network gives each image, as it is; int64 [N]. The same question is asked once in a process."""
    source = unanswered(spec, network.num_classes)
    settle_input(network, source, without_size(options), lambda _: None, "--teacher-arch")
    assert source.test is not None
    states = tuple(state_of(source.test.name(index)) for index in range(len(source.test.labels)))
    key = source.spec, network.fingerprint(), network.prep.described(), hash(states)
    if key not in _answered:
        _answered[key] = _asked(source, network, options)
    return _answered[key]


_answered: dict[tuple[str, str, str, int], np.ndarray] = {}


def _asked(source: DataSource, network: Network, options: DataOptions) -> np.ndarray:
    place = start(getattr(options, "device", "auto"), "fp32")
    batches = Data(source, network.prep, options, place.device).evaluation("test", forward_batch(place, network.prep))
    logits, _ = collect(for_inference(network.model, place.device), batches, place)
    assert source.test is not None
    answers = np.zeros(len(source.test.labels), dtype=np.int64)
    answers[batches.images.ids] = logits.argmax(-1).numpy()
    return answers


def check_agreement(source: DataSource, options: DistillOptions) -> None:
    """Refuse to learn from labels where there are none.

    Raises:
        UserError: A method that needs them, or a weight for them.
    """
    if not source.agreement:
        return
    others = [name for name, row in METHODS.items() if "unlabelled" in row.reads]
    if options.method not in others:
        problem = f"--method {options.method} learns from labels, and {source.spec} has none."
        raise UserError(problem, f"Choose --method {' or '.join(others)}, or label the images.")
    check_alpha(source, options)


def check_alpha(source: DataSource, options: LogitOptions) -> None:
    """Refuse a weight of labels where there are none.

    Raises:
        UserError: ``--alpha`` below 1.
    """
    if source.agreement and options.alpha not in (None, 1.0):
        raise meaningless("alpha", f"{source.spec} has no labels")
