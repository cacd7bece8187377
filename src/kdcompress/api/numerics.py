"""Precision and memory format of a training: checked when it begins, and recorded in the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from kdcompress.data import TrainBatches
from kdcompress.engine.distributed import Place, any_process, from_main
from kdcompress.engine.fit import memory_format_of, phase_of
from kdcompress.engine.gradient_check import Numerics, checked, has_unused
from kdcompress.engine.interrupt import Interrupted, StopSignal
from kdcompress.engine.step_speed import worth_it
from kdcompress.methods.base import StudentTask
from kdcompress.runs import RunFolder

KEY = "numerics"  # in run.json: by phase


def numerics_of(
    run: RunFolder,
    phase: int,
    task: StudentTask,
    batches: TrainBatches,
    place: Place,
    note: Callable[[str], None],
    *,
    may_choose: bool = False,
) -> Numerics:
    """Numerics of a phase: those recorded when it began, or else the result of a check now.

    A resumed training keeps its numerics, so that its steps are those of an uninterrupted one.

    Args:
        may_choose: Whether ``--precision`` is auto; on a CPU float32 is then used if bf16 is not faster.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the phase has not begun.
    """
    kept = from_main(lambda: run.record().get(KEY, {}).get(str(phase)))
    if kept is not None:
        return Numerics.from_dict(kept)
    module = task.to(place.device).get_trainable_module()
    assert module is not None
    wanted = Numerics(place.precision, memory_format_of(module, place.device) is torch.channels_last)
    began = from_main(lambda: run.has_checkpoint and phase_of(run) >= phase)  # by a version that did not check
    numerics = wanted
    if not began:
        batch = next(iter(batches.load(batches.parts(0)[:1], batches.seed, 0)))
        with StopSignal() as stop:
            if may_choose and place.device.type == "cpu":
                with torch.no_grad(), place.autocast():
                    cached = {name: network(batch[0]) for name, network in task.frozen().items()}
                numerics = worth_it(wanted, task, batch, cached, place, note)
            numerics = checked(numerics, task, batch, place, note)
            if place.world > 1 and has_unused(task, batch, place):
                numerics = dataclasses.replace(numerics, find_unused=True)
            if any_process(stop.requested, place):
                raise Interrupted(run.path)
    from_main(lambda: run.write_phase(KEY, phase, numerics.to_dict()))
    return numerics
