"""The threads that a command computes with: as many as there are free cores, or as its run began with."""

from __future__ import annotations

import os

import torch

from kdcompress import threads
from kdcompress.engine.distributed import Place
from kdcompress.engine.precision import Process
from kdcompress.engine.progress import Reporter


def take_free_cores(place: Place, reporter: Reporter) -> None:
    """Compute on the cores that nobody else uses now; called when the waiting for other commands is over.

    A command chooses once. In somebody else's process, on several, on a GPU, or where the user has set
    ``OMP_NUM_THREADS``, do nothing.
    """
    if _is_ours_to_choose(place) and not Process.has_chosen_threads:
        free, cores = threads.free_cores()
        _take(free)
        reporter.detail(f"Computing on {free} of {cores} cores; {threads.COUNT} sets another number.")


def take_as_before(place: Place, then: int | None, reporter: Reporter) -> None:
    """Go on with as many threads as a run began with: sums of other numbers of threads differ in the last bits.

    Args:
        then: None where it is not on record.
    """
    if then is None or place.device.type != "cpu" or place.world > 1:
        return
    if then == torch.get_num_threads():
        Process.has_chosen_threads = True
    elif _is_ours_to_choose(place):
        _take(then)
        reporter.detail(f"Computing on {then} cores, as the run began.")
    else:
        now = torch.get_num_threads()
        reporter.note(f"Notice: this run began with {then} threads and goes on with {now}; its last bits may differ.")


def _take(count: int) -> None:
    torch.set_num_threads(count)
    Process.has_chosen_threads = True


def _is_ours_to_choose(place: Place) -> bool:
    alone = place.world == 1 and place.device.type == "cpu"
    return alone and Process.is_ours and threads.COUNT not in os.environ
