"""``polish``: fine-tune a gated cascade as a whole, and keep the result if it is better."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

from kdcompress.api.check import check_logit_loss, check_teacher
from kdcompress.api.gated import Calibration
from kdcompress.api.job import Job, Phase, finished
from kdcompress.api.nested import nested
from kdcompress.api.recipes.prepare import adapter, logit_weights
from kdcompress.api.recipes.residual import teacher_and_data
from kdcompress.api.targets import check_views
from kdcompress.api.teacher import Teacher
from kdcompress.data import Data
from kdcompress.engine.progress import Reporter
from kdcompress.engine.targets import forward_batch
from kdcompress.errors import UserError
from kdcompress.gate_search import search
from kdcompress.gating import outcome
from kdcompress.methods.polish import PolishTask, SoftlyGated
from kdcompress.models.loading import Network, load_network
from kdcompress.models.staged import Staged
from kdcompress.options import PolishOptions
from kdcompress.results import GateResult

TRAINED = "trained"  # folder of the fine-tuned weights, inside the run
SHIFT = 1000


def polish(options: PolishOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any) -> GateResult:
    """Fine-tune all members of a gated cascade together, and choose its thresholds again for the same expected MACs.

    The new weights are kept if they are more accurate on the calibration split; else the run has the old ones.

    Args:
        options: All options at once; else give them by name (the fields of :class:`PolishOptions`).
        reporter: Receives progress and notices.

    Raises:
        UserError: No cascade, or one without a gate; otherwise as for :func:`add_res_student`.

    Example:
        >>> kdcompress.polish(run="runs/gated", epochs=5).polished
    """
    options = options or PolishOptions.resolve(given)
    check_teacher(options, "no --teacher")
    check_logit_loss(options)
    check_views(options)
    job = Job.begin("polish", "reskd", options, reporter)
    if (done := finished(job.options, "polish", GateResult, job.reporter)) is not None:
        return done
    network = load_network(job.options.run, arch_flag=None)
    gate = network.staged("so there are no members to polish together").gate
    if gate is None:
        raise UserError(f"{network.reference} has no gate.", "Choose its thresholds first: kdcompress gate-calibrate.")
    job.method = network.record.get("method", job.method)
    teacher, data = teacher_and_data(network, job)
    options, past = job.options, network.record.get("result", {})
    place = job.place if options.precision != "auto" else dataclasses.replace(job.place, precision="fp32")
    images = Data(data.source, network.prep, options, place.device)
    batches = images.evaluation("calibration", forward_batch(place, network.prep))
    before = Calibration.of(network, images, batches, place).for_thresholds(gate.measured)
    scores = before.member_scores(gate.measured)
    own = outcome(scores, gate.measured, gate.thresholds)
    # searching the thresholds again helps by itself; what counts is the gain of the weights
    former, curve = search(scores, gate.measured, max_macs=own.expected_macs)

    with nested(options, "polish", f"polished-{Path(options.run).name}", place, job.reporter) as run:
        inner = dataclasses.replace(options, out=str(run.path / TRAINED), resume=True)
        training = dataclasses.replace(job, command="polish-training", options=inner)
        if training.finished() is None:
            _train(network, teacher, data, training)
        trained = load_network(str(run.path / TRAINED))
        after = Calibration.of(trained, images, batches, place).for_thresholds(gate.measured)
        chosen, later = search(after.member_scores(gate.measured), gate.measured, max_macs=own.expected_macs)
        better = chosen.top1 > former.top1
        if not better:
            job.reporter.note("Notice: the calibration accuracy did not improve; the weights are left as they were.")
        elif past.get("promise") or past.get("cost_bound"):
            job.reporter.note("Notice: what was guaranteed of the gate does not hold for the new weights.")
        return (after if better else before).save_gated(
            run,
            "polish",
            options,
            (gate.measured, chosen if better else own),
            began=job.began,
            parent=network,
            curve=later if better else curve,
            promise=None if better else past.get("promise"),
            cost_bound=None if better else past.get("cost_bound"),
            timing=None if better else past.get("timing"),
            former_top1=round(former.top1, 4),
            polished=better,
        )


def _train(network: Network, teacher: Teacher, data: Data, job: Job[PolishOptions]) -> None:
    """Fine-tune a copy of the network into the folder that the options of ``job`` name."""
    model = copy.deepcopy(network.model)
    assert isinstance(model, Staged)
    task = PolishTask(
        SoftlyGated(model),
        teacher.freeze(adapter(data.prep, teacher.network.prep)),
        adapter(data.prep, network.prep),
        job.options.label_smoothing or 0.0,
        **logit_weights(job.options, agreement=data.source.agreement),
    )
    trained = dataclasses.replace(network, model=model)
    shift = SHIFT + len(model.stages())  # augmented views that no member was or will be trained on
    job.train([Phase(lambda: task)], trained, data, teacher, parent=network, view_shift=shift)
