"""How many threads a command computes with: one per free core, or as many as the resumed run started with."""

from __future__ import annotations

import os

import torch

from kdcompress import threads
from kdcompress.engine.distributed import Place
from kdcompress.engine.precision import Process
from kdcompress.engine.progress import Reporter


def take_free_cores(place: Place, reporter: Reporter) -> None:
    """Set PyTorch's number of threads to the cores that are idle now; call it after any waiting for other commands.

    A command chooses once. Nothing happens when kdcompress is used as a library, in several processes, on a GPU, or
    where the user has set ``OMP_NUM_THREADS``.
    """
    if _is_ours_to_choose(place) and not Process.has_chosen_threads:
        free, cores = threads.free_cores()
        _take(free)
        reporter.detail(f"Computing on {free} of {cores} cores; {threads.COUNT} sets another number.")


def take_as_before(place: Place, then: int | None, reporter: Reporter) -> None:
    """Resume with the number of threads that the run started with: another number changes the last bits of sums.

    Args:
        then: That number; None where it was not recorded.
    """
    if then is None or place.device.type != "cpu" or place.world > 1:
        return
    if then == torch.get_num_threads():
        Process.has_chosen_threads = True
    elif _is_ours_to_choose(place):
        _take(then)
        reporter.detail(f"Computing on {then} cores, as when the run started.")
    else:
        now = torch.get_num_threads()
        reporter.note(
            f"Notice: this run started with {then} threads and resumes with {now}; results may differ in the last bits."
        )


def _take(count: int) -> None:
    torch.set_num_threads(count)
    Process.has_chosen_threads = True


def _is_ours_to_choose(place: Place) -> bool:
    alone = place.world == 1 and place.device.type == "cpu"
    return alone and Process.is_ours and threads.COUNT not in os.environ
