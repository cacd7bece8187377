"""Networks that a teacher could be compressed to, and how each would start (our choice)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kdcompress.api.cost import macs_of
from kdcompress.api.inputs import is_fixed
from kdcompress.api.teacher import Teacher
from kdcompress.data.focus import OTHERS
from kdcompress.errors import UserError
from kdcompress.flops import profile
from kdcompress.models.assemble import new_network
from kdcompress.models.build import ModelSpec
from kdcompress.models.candidates import LEAST, affordable, series_for, with_weights
from kdcompress.models.loading import Network
from kdcompress.models.staged import Staged
from kdcompress.references import is_of_timm

FAMILY = re.compile(r"resnet(\d+)_cifar")
DEPTHS = (8, 14, 20, 32, 44, 56)
LARGE, LARGEST_SMALL = (224, 224), 64  # a search for large photos takes architectures of timm's, which have weights
WORTH_PRETRAINED = 48  # pixels: on smaller images timm's features say little
WORTH_RESIZING = 48  # pixels: smaller images lose too much by it
STEPS = {False: 4, True: 32}  # pixels between the sides of a smaller input, of small and of large images
SMALLEST_SIDE = 8
NEAR = 0.6  # of what is affordable: a cheaper network is another choice, not this one
STILL_NEAR = 0.4  # where cost comes in steps, as of the teacher at a smaller size
LAYERS, RESIZED = "layers", "resized"  # kinds of students
FIRST = "resnet"  # the family of what is trained from scratch
HALF_WIDTH = 2  # position of half the width in a series: narrower ones are deeper than they are worth


@dataclass(frozen=True)
class Student:
    """A network to train.

    Attributes:
        kind: Why it is tried: ``layers`` of the teacher's, the teacher ``resized``, ``pretrained`` by timm, or from
            ``scratch``.
        spec: Model spec, or the teacher's reference.
        macs: Per image.
        side: Of its input, where that is not the teacher's.
        options: Of ``distill``, besides the student.
        share: Of the images, that it is trained on.
    """

    kind: str
    spec: str
    macs: int
    side: int | None = None
    options: dict[str, object] = field(default_factory=dict)
    share: float = 1.0

    @property
    def key(self) -> str:
        """By which it is known what its epochs take."""
        return self.name if self.share == 1 else f"{self.name} on {self.share:g} of the images"

    @property
    def name(self) -> str:
        """For tables."""
        return f"the teacher at {self.side} px" if self.side else self.spec


def focused(student: Student, share: float) -> Student:
    """A student that is to be a res-student, trained on so many of the images (``--focus``)."""
    options = {**student.options, "focus": share}
    return dataclasses.replace(student, options=options, share=share + OTHERS * (1 - share))


class Students:
    """What can be trained on these data.

    Args:
        classes: K.
        channels, size: Of the images, as a student sees them.
        note: Receives what was left out.
    """

    def __init__(
        self, teacher: Teacher, classes: int, channels: int, size: tuple[int, int], note: Callable[[str], None]
    ) -> None:
        self.teacher, self.network, self.note = teacher, teacher.network, note
        self.classes, self.channels, self.size = classes, channels, size
        self.macs = int(teacher.entry["macs"])
        self.counted, self.are_weights_there = functools.cache(self._counted), True

    def within(self, most: float) -> list[Student]:
        """One of each kind that there is: the dearest of at most ``most`` MACs; the most promising kinds first.

        One from scratch only where nothing of about that cost has weights to start from: after an epoch of CIFAR-10
        it was 22 points behind the teacher's layers. There, a cheaper one with timm's weights is tried, too.
        """
        found = [each for each in (self._layers(most), self._resized(most), self._pretrained(most)) if each is not None]
        if not any(each.macs >= NEAR * most for each in found):
            found += [each for each in (self._pretrained(most, near=0.0), self._scratch(most)) if each is not None]
        return found

    def of_kind(self, kind: str, most: float, *, resized: bool = True) -> Student | None:
        """The dearest of this kind within ``most``, or else of any.

        Args:
            resized: Whether it may take smaller images than the data's.
        """
        found = [each for each in self.within(most) if resized or each.kind != RESIZED]
        return next((each for each in found if each.kind == kind), found[0] if found else None)

    def cheapest(self) -> int:
        """MACs of the cheapest network that there is; the teacher's where none is cheaper."""
        least = self.macs
        while found := self.within(least - 1):
            least = min(each.macs for each in found)
        return least

    def _layers(self, most: float) -> Student | None:
        """A shallower network of the teacher's family and width, which starts from its layers."""
        match = FAMILY.fullmatch(self.network.architecture)
        if match is None:
            return None
        args = {key: value for key, value in self.network.model_args.items() if key not in ("in_chans", "drop_rate")}
        shallower = [str(ModelSpec(f"resnet{depth}_cifar", args)) for depth in DEPTHS if depth < int(match[1])]
        fitting = self._fitting(shallower, most)
        if not fitting or (macs := self.counted(spec := fitting[-1])) < LEAST * most:
            return None
        given: dict[str, object] = {"student": spec, "from_teacher": True, "input_size": self._sides}
        return Student(LAYERS, spec, macs, options=given)

    def _resized(self, most: float) -> Student | None:
        """The teacher itself, for smaller images."""
        side = self.network.prep.size[0]
        if isinstance(self.network.model, Staged) or is_fixed(self.network) or self.network.prep.size[1] != side:
            return None
        if side < WORTH_RESIZING:
            return None
        step = STEPS[side > LARGEST_SMALL]
        for smaller in range((side - 1) // step * step, SMALLEST_SIDE - 1, -step):
            if self.macs * (smaller / side) ** 2 > 1.5 * most:  # cost goes with the area: far too dear
                continue
            try:
                macs = profile(self.network.model, (self.channels, smaller, smaller)).macs
            except UserError:
                return None
            if macs <= most:
                if macs < STILL_NEAR * most:
                    return None
                given: dict[str, object] = {
                    "student": self.network.reference,
                    "input_size": f"{self.channels}x{smaller}x{smaller}",
                }
                if self.network.arch is not None:
                    given["student_arch"] = self.network.arch
                elif is_of_timm(self.network.reference):
                    given["pretrained"] = True
                return Student(RESIZED, self.network.reference, macs, smaller, given)
        return None

    def _pretrained(self, most: float, near: float = NEAR) -> Student | None:
        """One of timm's networks with weights, if they can be had."""
        if min(self.size) < WORTH_PRETRAINED or self.channels != 3:
            return None
        ranked = affordable(with_weights(LARGE), self.counted, most)
        found = max(ranked, key=lambda each: each.macs, default=None)
        if found is None or found.macs < near * most or not self._has_weights(found.spec):
            return None
        given: dict[str, object] = {"student": found.spec, "pretrained": True, "input_size": self._sides}
        return Student("pretrained", found.spec, found.macs, options=given)

    def _scratch(self, most: float) -> Student | None:
        """The deepest ResNet that is no narrower than half its width; the dearest where all are cheap."""
        chosen: str | None = None
        dearest: str | None = None
        for one in series_for(self.size):
            if one.family == FIRST and (fitting := self._fitting(one.specs, most)):
                spec = fitting[-1]
                wide = chosen is None or one.specs.index(spec) >= HALF_WIDTH
                chosen = spec if self.counted(spec) >= NEAR * most and wide else chosen
                dearest = max(dearest or spec, spec, key=self.counted)
        if (found := chosen or dearest) is None:
            return None
        return Student("scratch", found, self.counted(found), options={"student": found, "input_size": self._sides})

    @property
    def _sides(self) -> str:
        return f"{self.channels}x{self.size[0]}x{self.size[1]}"

    def _fitting(self, specs: Iterable[str], most: float) -> list[str]:
        """Those of at most ``most`` MACs, of specs that get dearer."""
        return list(itertools.takewhile(lambda spec: self.counted(spec) <= most, specs))

    def _has_weights(self, spec: str) -> bool:
        """Whether timm's weights of an architecture can be had; after one that cannot, no other is tried."""
        if self.are_weights_there:
            try:
                self.new(spec, pretrained=True)
            except UserError as error:
                self.note(f"Notice: no pretrained student is tried. {error.problem}")
                self.are_weights_there = False
        return self.are_weights_there

    def _counted(self, spec: str) -> int:
        return macs_of(self.new(spec).model)

    def new(self, spec: str, pretrained: bool = False) -> Network:
        """A network of a spec, for these images and classes."""
        return new_network(
            ModelSpec.parse(spec),
            num_classes=self.classes,
            channels=self.channels,
            size=self.size,
            seed=0,
            pretrained=pretrained,
        )
