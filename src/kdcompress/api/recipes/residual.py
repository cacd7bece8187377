"""Training of one more member, for ``add-res-student`` and each trial of its search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from kdcompress.api.agreement import check_alpha
from kdcompress.api.check import check_enough_classes
from kdcompress.api.cost import macs_of
from kdcompress.api.fitting import check_channels, check_classes, check_images, open_data, resize_input
from kdcompress.api.job import Job, Phase
from kdcompress.api.recipes.prepare import adapter, batches_for, logit_weights, shared
from kdcompress.api.reference import inherit
from kdcompress.api.starting import check_seen, fitted
from kdcompress.api.teacher import (
    SEEN,
    Teacher,
    as_teacher,
    load_teacher,
    may_have_seen_calibration,
    recall_teacher,
    start_from,
)
from kdcompress.data import Data
from kdcompress.data.focus import least_sure
from kdcompress.data.prepared import HOLDOUT
from kdcompress.engine.distributed import from_main, gather_objects
from kdcompress.engine.evaluate import collect
from kdcompress.engine.targets import forward_batch
from kdcompress.errors import UserError
from kdcompress.gating import margin
from kdcompress.methods.base import Frozen
from kdcompress.methods.reskd import ResKdTask
from kdcompress.models.assemble import as_cascade, joined, new_member, take_input
from kdcompress.models.build import ModelSpec, zero_classifier
from kdcompress.models.loading import Network, Note, load_network
from kdcompress.models.residual_cascade import ResidualCascade
from kdcompress.models.staged import Staged
from kdcompress.models.starting import single
from kdcompress.models.student_assistant import StudentAssistant
from kdcompress.options import METHODS, AddResStudentOptions, PolishOptions
from kdcompress.references import Reference
from kdcompress.results import TrainResult

FromRun = TypeVar("FromRun", AddResStudentOptions, PolishOptions)  # the run names the teacher and the data


@dataclass
class Residual:
    """What a new member learns from.

    Attributes:
        base: The cascade of the members so far.
        teacher: Its logits are what the members should add up to.
        data: At the new member's input size, or the teacher's if that is larger.
        pretrained: Whether a new member starts from timm's weights.
    """

    base: Network
    teacher: Teacher
    data: Data
    pretrained: bool = False

    @classmethod
    def of(cls, job: Job[AddResStudentOptions]) -> Residual:
        """Load what the options of ``job`` name, and fill in those that are inherited from the run.

        Raises:
            UserError: Networks and data that do not fit together; a run whose teacher is not known.
        """
        base = as_cascade(_ungated(load_network(job.options.run, arch_flag=None), job))
        return cls(base, *teacher_and_data(base, job), job.options.pretrained)

    def member(self, arch: str | Reference, seed: int, note: Note = lambda _: None) -> Network:
        """A new member before its training, by its model spec or with trained weights."""
        reference = Reference(arch) if isinstance(arch, str) else arch
        return member_of(reference, self.base, seed, note, self.pretrained)

    def train(
        self,
        job: Job[AddResStudentOptions],
        arch: str | Reference,
        *,
        energies: bool = True,
        search: list[dict[str, Any]] | None = None,
    ) -> TrainResult:
        """Train a member of the architecture ``arch`` into the run folder that the options of ``job`` name.

        Args:
            energies: Whether the result contains the energy of the residual.
            search: The trials by which ``arch`` was chosen, to be recorded.
        """
        options, base, teacher, data = job.options, self.base, self.teacher, self.data
        assert isinstance(base.model, ResidualCascade)
        member = self.member(arch, options.seed, job.reporter.note)
        if options.from_teacher and start_from(teacher, member, data, job.reporter):
            theirs = teacher.network.prep
            if (theirs.mean, theirs.std) != (data.prep.mean, data.prep.std):
                job.reporter.note(
                    "Notice: the teacher was trained with another normalisation than the cascade, whose members share "
                    "one; the layers have to adapt."
                )
        weight = options.sum_weight if options.sum_weight is not None else _share(base, member)
        if (
            not options.residual_warmup
        ):  # trained on the residual alone, it starts with zero logits, from the sum so far
            zero_classifier(member.model)
        frozen = teacher.freeze(adapter(data.prep, teacher.network.prep))
        task = ResKdTask(
            member.model,
            Frozen(base.model, adapter(data.prep, base.prep)),
            frozen,
            adapter(data.prep, base.prep),
            options.label_smoothing or 0.0,
            options.residual_loss,
            **logit_weights(options, agreement=data.source.agreement),
            sum_weight=weight,
            warmup=options.residual_warmup,
            partly_labelled=options.unlabelled is not None,
        )
        # in a gated run, "result" is of the gate, "training" of the training before
        earlier = (base.record.get("training") or base.record.get("result") or {}).get("energies") or []
        return job.train(
            [Phase(lambda: task)],
            member,
            data,
            teacher,
            assemble=lambda network: joined(base, network, weight),
            residual_of=frozen if energies else None,
            energies=[*earlier[:-1], job.energy(task.members, frozen, data)] if energies else (),
            parent=base,
            view_shift=len(base.model.members),
            chosen=None if options.focus is None else lambda: _focused(base, data, job),
            search=search,
        )


def _focused(base: Network, data: Data, job: Job[AddResStudentOptions]) -> np.ndarray:
    """Positions in the fit split of the images that a new member is trained on.

    The share that ``--focus`` asks for is of images that the members so far are least sure of, by the margin of their
    softmax on the images as they are.
    """
    share, place = job.options.focus, job.place
    assert share is not None
    members = Frozen(base.model, adapter(data.prep, base.prep)).to(place.device)
    batches = data.evaluation("fit", forward_batch(place, data.prep))
    own = collect(lambda x: margin(members(x))[:, None], batches, place)[0][:, 0]  # logits of ImageNet take GiB
    of_all = gather_objects(own.numpy())
    margins = np.empty(sum(map(len, of_all)), np.float32)
    for rank, part in enumerate(of_all):
        margins[rank :: place.world] = part
    chosen: np.ndarray = from_main(lambda: least_sure(margins, share, job.options.seed))
    members.cpu()
    job.reporter.note(
        f"Training on {len(chosen):,} of {len(margins):,} images: the {share:.0%} that the members so far are least "
        "sure of, and a tenth of the others"
    )
    return chosen


def member_of(reference: Reference, base: Network, seed: int, note: Note, pretrained: bool = False) -> Network:
    """A new member of the cascade ``base`` before its training.

    Args:
        pretrained: Whether to start a member without weights of its own from timm's.

    Raises:
        UserError: Nothing of that name, or weights that cannot be had, or used at the input size of the cascade.
    """
    if not reference.has_weights:
        spec = ModelSpec.parse(reference.text)
        member = new_member(spec, base, seed, pretrained)
        if pretrained:
            check_seen(member, spec, note)
        return member
    flag = f"--arch {reference.text} --arch"
    given = single(load_network(reference.text, reference.arch, note=note, arch_flag=flag, headless=True))
    prep = base.prep
    if given.assumed:
        side = "x".join(map(str, prep.size))
        note(f"Notice: {given.reference} does not record its input: it gets that of the cascade, {side} pixels.")
    if not given.assumed and (given.prep.mean, given.prep.std) != (prep.mean, prep.std):
        note(
            f"Notice: {given.reference} was trained with another normalisation than the cascade, whose members share "
            "one; it has to adapt."
        )
    member = fitted(given, base.num_classes, prep.channels, prep.size, seed, note)
    known = given.has_classifier and given.num_classes == base.num_classes
    data, fingerprint = base.record.get("options", {}).get("data"), base.record.get("data_fingerprint", "")
    if known and may_have_seen_calibration(given, data, fingerprint, _holdout(base)):
        member.record = {SEEN: True}
    take_input(member.model, base.model)
    return member


def _holdout(base: Network) -> float:
    return float(base.record.get("options", {}).get("holdout", HOLDOUT))


def _share(base: Network, member: Network) -> float:
    """The earlier members' share of the MACs, as their weight in the sum: larger networks weigh more (our choice)."""
    before = macs_of(base.model)
    return round(before / (before + macs_of(member.model)), 4)


def _ungated(network: Network, job: Job[AddResStudentOptions]) -> Network:
    if isinstance(network.model, Staged) and network.model.gate is not None:
        job.reporter.note("Notice: the run's gate is dropped, as it does not cover the new member; calibrate again.")
        network.model.gate = None
        network.model_args = {key: value for key, value in network.model_args.items() if key != "gate"}
    if isinstance(network.model, StudentAssistant):
        job.reporter.note("Notice: student and assistant are one member from now on; neither runs without the other.")
    return network


def teacher_and_data(base: Network, job: Job[FromRun]) -> tuple[Teacher, Data]:
    """The teacher to train a run's cascade with, and the data at the larger input size of the two.

    The options of ``job`` are filled in with those that are inherited from the run.

    Raises:
        UserError: Networks and data that do not fit together; a run whose teacher is not known.
    """
    teacher = _teacher_of(base, job)
    options = job.options = inherit(job.options, base.record)
    resize_input(base, options)
    source = open_data(options, base)
    check_alpha(source, options)
    check_enough_classes(options, source.num_classes)
    check_classes(teacher, source, "teacher")
    check_classes(base, source, "student")
    check_images(base, source, options, "calibration", "student")
    check_channels(teacher, base.prep.channels, "teacher", source.size)
    known = as_teacher(teacher, source, options, job.reporter)
    return known, batches_for(source, shared(base.prep, teacher.prep, source), job)


def _teacher_of(base: Network, job: Job[FromRun]) -> Network:
    options = job.options
    known = base.record.get("teacher")
    if options.teacher is not None:
        return load_teacher(options.teacher, options.teacher_arch, options.weights_key, job.reporter)
    if known is None:
        raise UserError(
            f"The run {base.reference} has no teacher on record.", "Give the one to learn from: --teacher REF."
        )
    method = METHODS.get(str(base.record.get("method")))
    if method is not None and not method.teacher_knows_images:
        problem = f"{base.reference} was distilled from a lightweight teacher, which cannot classify its images."
        raise UserError(problem, "Give a teacher of these data: --teacher REF.")
    return recall_teacher(known, job.reporter)
