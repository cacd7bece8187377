"""The training loop. It knows tasks, batches and a run folder, but no method."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import NativeScaler, dispatch_clip_grad
from torch import Tensor, nn

from kdcompress.data import EvalBatches, TrainBatches
from kdcompress.engine.contact import Lost
from kdcompress.engine.distributed import (
    Place,
    any_process,
    barrier,
    check_same,
    from_main,
    in_contact,
    share_buffers,
    summed,
)
from kdcompress.engine.evaluate import evaluate
from kdcompress.engine.interrupt import Interrupted, StopSignal
from kdcompress.engine.logs import logged
from kdcompress.engine.muon import in_fp32_on_cpu
from kdcompress.engine.plan import Plan
from kdcompress.engine.progress import Reporter
from kdcompress.engine.sync_bn import is_wanted
from kdcompress.engine.targets import CachedBatches, CachedEval, unpacked
from kdcompress.errors import Diverged, UserError, first_line, usage_error
from kdcompress.options import TrainingOptions
from kdcompress.runs import CHECKPOINT, RunFolder
from kdcompress.training_task import TrainingTask, unwrapped

RECIPE = "recipe"  # in run.json: by phase
REPORT_SECONDS = 0.5
AGREE_EVERY = 16
STATE = frozenset(("options", "epoch", "step", "update", "seconds", "history", "sums", "state_dict", "optimizer"))
VECTOR = 16  # float32 numbers in the widest vector register of a CPU


def fit(
    task: TrainingTask,
    batches: TrainBatches | CachedBatches,
    calibration: EvalBatches | CachedEval,
    options: TrainingOptions,
    plan: Plan,
    place: Place,
    run: RunFolder,
    reporter: Reporter,
    *,
    title: str,
    num_classes: int,
    phase: int = 0,
    history: Sequence[dict[str, Any]] = (),
    memory_format: torch.memory_format | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Train a task to its last epoch, from the start or from the run's checkpoint.

    All randomness of a step is seeded by (seed, epoch, step), so a checkpoint needs no generator state, and a resumed
    run takes exactly the steps of an uninterrupted one. At the end the task has the averaged weights, if there are any.

    Args:
        phase: Number of this training phase in the run; each has its own task, schedule and optimiser.
        history: Rows of ``metrics.csv`` from earlier phases.
        memory_format: Of images and weights; None: as :func:`memory_format_of` chooses.
        recipe: How it is trained, with all defaults filled in; kept in ``run.json``. A resumed run must have the same.

    Returns:
        The rows of ``metrics.csv``.

    Raises:
        Diverged: The loss is no longer finite.
        UserError: A checkpoint was made with other options.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    trainer = Trainer(task, batches, options, plan, place, run, num_classes, phase, history, memory_format, recipe)
    resumed = from_main(lambda: run.has_checkpoint and phase_of(run) == phase)
    if resumed:
        trainer.load()
    if recipe is not None:
        from_main(lambda: run.write_phase(RECIPE, phase, recipe))
    check_same({"the state": (trainer.epoch, trainer.step, trainer.update)})
    done = len(trainer.history)
    with contextlib.ExitStack() as stack:
        logs: list[Callable[[dict[str, Any]], None]] = []  # of the main process
        from_main(lambda: logs.append(stack.enter_context(logged(run, options, reporter.note))))
        reporter.start(title, options.epochs, len(batches), done)
        stack.callback(reporter.stop)
        with StopSignal() as stop:
            if not resumed:
                trainer.save_together()
            while trainer.epoch < plan.epochs and not trainer.is_good_enough():
                try:
                    if not calibration.prepare(lambda: stop.requested):
                        trainer.interrupt()
                    row = trainer.run_epoch(stop, reporter)
                    scores = evaluate(trainer.eval_model(), calibration, place)
                except Lost:
                    if not stop.requested:
                        raise
                    trainer.interrupt()
                except (RuntimeError, OSError, EOFError) as error:
                    if not stop.excuses(error):
                        raise
                    trainer.interrupt()
                trainer.check_calibration(scores.loss)
                row["calibration_loss"], row["calibration_top1"] = round(scores.loss, 6), round(scores.top1, 4)
                trainer.finish_epoch(row)
                reporter.epoch(row)
                for log in logs:
                    log(row)
            if any_process(stop.requested, place):  # too late for a step, and another training may follow
                trainer.interrupt()
    trainer.take_average()
    return trainer.history


def phase_of(run: RunFolder) -> int:
    """The phase in which a run was interrupted, from 0; read from this host's disk."""
    return int(_state(run).get("phase", 0)) if run.has_checkpoint else 0


def _state(run: RunFolder) -> dict[str, Any]:
    """The checkpoint of a run.

    Raises:
        UserError: It cannot be read, or is not a checkpoint of a training.
    """
    state = run.read_checkpoint()
    missing = STATE - state.keys() if isinstance(state, dict) else STATE
    if missing:
        remedy = f"Remove {run.path} and start again without --resume."
        problem = f"{run.path / CHECKPOINT} is not a checkpoint of a training: {sorted(missing)[0]} is missing."
        raise UserError(problem, remedy)
    return state


class Trainer:
    """The state of a training that a checkpoint holds, and the step that advances it.

    The arguments are those of :func:`fit`.
    """

    def __init__(
        self,
        task: TrainingTask,
        batches: TrainBatches | CachedBatches,
        options: TrainingOptions,
        plan: Plan,
        place: Place,
        run: RunFolder,
        num_classes: int,
        phase: int = 0,
        history: Sequence[dict[str, Any]] = (),
        memory_format: torch.memory_format | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self.task, self.batches, self.options, self.plan = task, batches, options, plan
        self.place, self.run, self.recipe = place, run, dict(recipe or {})
        task.to(place.device)
        module = task.get_trainable_module()
        assert module is not None
        self.memory_format = memory_format or memory_format_of(module, place.device)
        module.to(memory_format=self.memory_format)
        if options.ema_decay:
            task.setup_ema(decay=options.ema_decay, use_warmup=True)
        self.optimizer = in_fp32_on_cpu(_optimizer(module, options, plan), place.device)
        updates = -(-len(batches) // options.grad_accum)
        self.updates = updates * plan.epochs
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            sched=options.sched,
            num_epochs=plan.epochs,
            warmup_epochs=plan.warmup_epochs,  # type: ignore[arg-type]
            decay_epochs=plan.decay_epochs,
            decay_rate=options.decay_rate,
            warmup_lr=plan.lr / 100,
            step_on_epochs=False,
            updates_per_epoch=updates,
        )
        self.scaler = NativeScaler(device=place.device.type) if place.precision == "fp16" else None
        self.mixup = (
            Mixup(options.mixup, options.cutmix, label_smoothing=0.0, num_classes=num_classes)
            if options.mixup or options.cutmix
            else None
        )
        self.num_classes, self.partly_labelled = num_classes, batches.partly_labelled()
        self.epoch, self.step, self.update = 0, 0, 0
        self.phase, self.history = phase, list(history)
        self.sums: dict[str, Tensor] = {}
        self.seconds = self.preparing = 0.0
        self.bad_step = torch.full((), -1, device=place.device)
        if place.world > 1:
            barrier()
            with in_contact():
                task.prepare_distributed(device_ids=[place.device.index] if place.device.type == "cuda" else None)

    def eval_model(self) -> torch.nn.Module:
        """The network to score, with the averaged weights if there are any, in eval mode.

        In all processes it has the BatchNorm statistics of the first, which are those that are saved.
        """
        self.task.eval()
        if self.place.world > 1:
            share_buffers(unwrapped(self.task.get_trainable_module()))
            if self.task.has_ema():
                share_buffers(unwrapped(self.task.get_trainable_module(ema=True)))
        model = self.task.get_eval_model(ema=self.task.has_ema())
        assert model is not None
        return model

    def run_epoch(self, stop: StopSignal, reporter: Reporter) -> dict[str, Any]:
        """Take the remaining steps of an epoch.

        Returns:
            Its row of ``metrics.csv``, without the calibration scores.

        Raises:
            Diverged: The loss is not finite.
            Interrupted: The process was asked to stop.
        """
        self.task.train()
        began, now = time.perf_counter() - self.seconds, time.perf_counter()
        if not self.batches.prepare(len(self.history), lambda: stop.requested):
            self.interrupt()
        self.preparing += time.perf_counter() - now
        barrier()
        with in_contact():
            return self._run_epoch(stop, reporter, began)

    def _run_epoch(self, stop: StopSignal, reporter: Reporter, began: float) -> dict[str, Any]:
        shown, unreported = 0.0, 0
        sizes = self.batches.sizes()
        for input, target, cached in map(unpacked, self.batches.epoch(len(self.history), self.step)):
            due = self._step(input, target, cached, sizes[self.step])
            self.step += 1
            unreported += 1
            now = time.perf_counter()
            self.seconds = now - began
            if now - shown > REPORT_SECONDS or self.step == len(sizes):
                shown = now
                self._check_finite()
                reporter.step(len(self.history), *self._so_far(), unreported)
                unreported = 0
            if due and self._should_stop(stop):  # between updates, accumulated gradients would be lost
                self.interrupt()
        self._check_finite()
        self.seconds = time.perf_counter() - began
        return self._row()

    def _so_far(self) -> tuple[float, float]:
        """Mean loss, and images per second over all processes, of this epoch."""
        images = self.sums["images"].item()
        return self.sums["loss"].item() / images, images * self.place.world / self.seconds

    def _should_stop(self, stop: StopSignal) -> bool:
        """Whether to stop; several processes stop at the same step, so that none waits for another's gradients."""
        if self.place.world == 1:
            return stop.requested
        return self.update % AGREE_EVERY == 0 and any_process(stop.requested, self.place)

    def finish_epoch(self, row: dict[str, Any]) -> None:
        """Record a whole epoch, and save the state."""
        self.history.append(row)
        self.next_epoch()
        self.save_together()

    def is_good_enough(self) -> bool:
        """Whether the calibration accuracy has reached ``--stop-top1``."""
        wanted = self.options.stop_top1
        return wanted is not None and self.epoch > 0 and self.history[-1]["calibration_top1"] >= wanted

    def take_average(self) -> None:
        """Replace the trained weights by their moving average, if there is one."""
        if self.task.has_ema():
            average = unwrapped(self.task.get_trainable_module(ema=True)).state_dict()
            unwrapped(self.task.get_trainable_module()).load_state_dict(average)

    def next_epoch(self) -> None:
        """Reset what is counted per epoch."""
        self.epoch, self.step, self.sums, self.seconds, self.preparing = self.epoch + 1, 0, {}, 0.0, 0.0

    def _step(self, input: Tensor, target: Tensor, cached: Mapping[str, Tensor], images: int) -> bool:
        """One batch: forward, backward, and an optimiser update after every ``grad_accum`` batches.

        Args:
            cached: Cached targets of the batch, by argument of the task.
            images: Size of the batch over all processes.

        Returns:
            Whether there was an update.
        """
        _seed(self.place.device, self.options.seed, len(self.history), self.step, self.place.rank)
        accum, last = self.options.grad_accum, len(self.batches) - 1
        first = self.step - self.step % accum
        group = min(accum, last + 1 - first)
        due = self.step == last or (self.step + 1) % accum == 0
        if due:
            self.scheduler.step_update(self.update)
        input = input.contiguous(memory_format=self.memory_format)
        self.task.progress = self.update / self.updates  # type: ignore[assignment]
        labels = target
        if self.mixup is not None:
            input, target = _mixed(self.mixup, input, target, self.num_classes)
        with contextlib.nullcontext() if due else self.task.no_sync():
            with self.place.autocast():
                result = self.task(input, target, **cached)
            # gradients are averaged over processes, whose shares of a batch may differ by one image
            self._backward(result["loss"] * (len(labels) * self.place.world / images / group), due)
        if due:
            self.optimizer.zero_grad()
            self.update += 1
            if self.task.has_ema():
                self.task.update_ema(step=self.update)
        self._record(result, labels)
        return due

    def _backward(self, loss: Tensor, due: bool) -> None:
        """Backward pass, and the optimiser step where one is due, with gradient clipping if asked for."""
        clip = self.options.clip_grad
        if self.scaler is not None:
            parameters = list(self.task.get_clip_parameters())
            self.scaler(loss, self.optimizer, clip, parameters=parameters, need_update=due)
            return
        loss.backward()
        if due:
            if clip:
                dispatch_clip_grad(self.task.get_clip_parameters(), clip)
            self.optimizer.step()

    def _record(self, result: dict[str, Tensor], labels: Tensor) -> None:
        """Add to the epoch's sums on the device, without synchronizing with it."""
        n = len(labels)
        correct = (result["output"].detach().argmax(1) == labels).sum()
        values = {key: value.detach() * n for key, value in result.items() if key != "output"}
        counts = {"right": correct, "images": torch.full_like(correct, n)}
        if self.partly_labelled:
            counts["labelled"] = (labels >= 0).sum()
        for key, value in {**values, **counts}.items():
            self.sums[key] = self.sums.get(key, 0) + value.to(self.place.sum_dtype)
        bad = ~torch.isfinite(result["loss"].detach()) & (self.bad_step < 0)
        self.bad_step.masked_fill_(bad, self.step)

    def check_calibration(self, loss: float) -> None:
        """Refuse a calibration loss that is not finite: the last update of the epoch diverged.

        Raises:
            Diverged: It is not finite, or the loss of a step was not.
        """
        if not math.isfinite(loss):
            self.bad_step.fill_(len(self.batches) - 1)
        self._check_finite()

    def _check_finite(self) -> None:
        step = int(self.bad_step.item())
        if step >= 0:
            precision = "" if self.place.precision == "fp32" else ", --precision fp32"
            remedy = f"Try a lower --lr{precision} or --clip-grad 1, with another --out"
            done = len(self.history)
            saved = f"; the state after epoch {done} is in {self.run.path}." if done else "."
            raise Diverged(f"The loss is not finite at step {step + 1} of epoch {done + 1}.", remedy + saved)

    def _row(self) -> dict[str, Any]:
        names = list(self.sums)
        totals = dict(zip(names, summed(torch.stack([self.sums[name] for name in names])).tolist(), strict=True))
        n = totals.pop("images")
        correct, labelled = totals.pop("right"), totals.pop("labelled", n)
        row = {
            "epoch": len(self.history) + 1,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_top1": round(100 * correct / max(labelled, 1), 4),
            "images_per_second": round(n / self.seconds, 1),
            "seconds": round(self.seconds, 3),
        }
        if isinstance(self.batches, CachedBatches):
            row["target_seconds"] = round(self.preparing, 3)
        return {**row, **{f"train_{key.removeprefix('train_')}": round(value / n, 6) for key, value in totals.items()}}

    def interrupt(self) -> None:
        """Stop the training. A single process saves the state of the last step, unless gradients are being accumulated;
        otherwise the state of the last whole epoch stands.

        Raises:
            Interrupted: Always.
        """
        if self.place.world == 1 and (self.step == len(self.batches) or self.step % self.options.grad_accum == 0):
            self._check_finite()
            self.save()
        raise Interrupted(self.run.path)

    def save_together(self) -> None:
        """Save the state in the main process, while the others wait, however slow its disk is.

        Raises:
            UserError: The run folder cannot be written.
        """

        def write() -> None:
            if self.history:
                self.run.write_metrics(self.history)
            self.save()

        from_main(write)

    def save(self) -> None:
        """Write the checkpoint.

        Raises:
            UserError: The run folder cannot be written.
        """
        task, ema = self.task, self.task.has_ema()
        self.run.write_checkpoint(
            {
                "version": 1,
                "options": self._fixed_options(),
                "recipe": self.recipe,
                "phase": self.phase,
                "epoch": self.epoch,
                "step": self.step,
                "update": self.update,
                "seconds": self.seconds,
                "preparing": self.preparing,
                "history": self.history,
                "sums": self.sums,
                "state_dict": unwrapped(task.get_trainable_module()).state_dict(),
                "task_state": task.get_task_state(),
                "optimizer": self.optimizer.state_dict(),
                "ema": unwrapped(task.get_trainable_module(ema=True)).state_dict() if ema else None,
                "scaler": self.scaler.state_dict() if self.scaler else None,
            }
        )

    def load(self) -> None:
        """Restore the state from the checkpoint.

        Raises:
            UserError: It cannot be read, or was made with other options or another number of processes.
        """
        state = _state(self.run)
        kept = state.get("recipe", {})  # older versions kept none
        now = self._fixed_options() | {key: value for key, value in self.recipe.items() if key in kept}
        then = {**state["options"], **kept}
        changed = self.options.differing(then, now)
        if "world" in changed:
            count = then.get("world")
            remedy = "Resume without torchrun." if count == 1 else f"Resume with {count}, by torchrun."
            raise UserError(f"The run {self.run.path} was started with {count} process(es).", remedy)
        if changed:
            detail = ", ".join(f"{key} {then.get(key, '-')}, now {now.get(key, '-')}" for key in changed[:3])
            remedy = "Resume with the same options, or start a new run without --resume."
            raise UserError(f"The run {self.run.path} was started with other options: {detail}.", remedy)
        unwrapped(self.task.get_trainable_module()).load_state_dict(state["state_dict"])
        self.task.load_task_state(state["task_state"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["ema"] is not None:
            unwrapped(self.task.get_trainable_module(ema=True)).load_state_dict(state["ema"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.update = state["epoch"], state["step"], state["update"]
        self.seconds, self.history = state["seconds"], state["history"]
        self.preparing = state.get("preparing", 0.0)
        self.sums = {key: value.to(self.place.device) for key, value in state["sums"].items()}

    def _fixed_options(self) -> dict[str, Any]:
        """All options that decide the result; a resumed run must have the same."""
        place: dict[str, Any] = {"precision": self.place.precision, "world": self.place.world}
        if is_wanted(self.options.sync_bn, self.plan.batch_size, self.place):
            place["sync_bn"] = "on"
        return {**self.options.affecting_result(), **vars(self.plan), **place, "target_views": self.batches.views}


def memory_format_of(module: nn.Module, device: torch.device) -> torch.memory_format:
    """Channels last, except where that would crash or be slow.

    On a CPU, oneDNN's gradient of a strided 1x1 convolution on channels-last images writes past its buffer where there
    are fewer channels than a vector register holds (its issue 6035). And where the channels do not fill whole cache
    lines (16 floats, as a vector register), the threads of PyTorch's BatchNorm share cache lines and wait for each
    other: its share of a step triples.
    """
    if device.type == "cpu":
        channels = [layer.num_features for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
        odd = [count for count in channels if count % VECTOR]
        if torch.get_num_threads() > 1 and (2 * len(odd) > len(channels) or min(odd, default=VECTOR) < VECTOR):
            return torch.contiguous_format
        convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
        strided = [layer for layer in convolutions if layer.kernel_size == (1, 1) and layer.stride != (1, 1)]
        if any(layer.in_channels // layer.groups < VECTOR for layer in strided):
            return torch.contiguous_format
    return torch.channels_last


def _optimizer(module: torch.nn.Module, options: TrainingOptions, plan: Plan) -> torch.optim.Optimizer:
    # timm's sgd uses Nesterov momentum, which needs a momentum above 0
    opt = "momentum" if plan.opt == "sgd" and not options.momentum else plan.opt
    try:
        return create_optimizer_v2(
            module,
            opt=opt,
            lr=plan.lr,
            weight_decay=plan.weight_decay,
            momentum=options.momentum,
            layer_decay=plan.layer_decay,
        )
    except (ValueError, AssertionError, KeyError, TypeError) as error:
        problem = f"--opt {plan.opt} cannot be used: {first_line(error)}"
        raise usage_error(problem, "Choose another optimizer, e.g. adamw.") from error


def _mixed(mixup: Mixup, x: Tensor, target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """timm's mixup and cutmix, which need an even batch: the last image of an odd one is left unmixed."""
    even = len(x) - len(x) % 2
    mixed, soft = mixup(x[:even].clone(), target[:even])
    if even == len(x):
        return mixed, soft
    rest = torch.nn.functional.one_hot(target[even:], classes).to(soft.dtype)
    return torch.cat([mixed, x[even:]]), torch.cat([soft, rest])


def _seed(device: torch.device, *parts: int) -> None:
    number = int(np.random.SeedSequence(parts).generate_state(1)[0])
    # torch.manual_seed would also seed devices that are not in use, which takes a millisecond
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(number)
    np.random.seed(number)
