"""What a mistyped name may have meant: names that other tools use for the same thing, then names that look alike."""

from __future__ import annotations

import difflib
from collections.abc import Collection

# what other tools call it -> what it is called here
COMMANDS = {
    "add": "add-res-student",
    "auto": "compress",
    "calibrate": "gate-calibrate",
    "clean": "cache",
    "count": "profile-flops",
    "dataset": "data",
    "distil": "distill",
    "evaluate": "eval",
    "fine-tune": "train-teacher",
    "finetune": "train-teacher",
    "fit": "train-teacher",
    "flops": "profile-flops",
    "gate": "gate-calibrate",
    "grow": "add-res-student",
    "kd": "distill",
    "macs": "profile-flops",
    "params": "profile-flops",
    "preview": "data",
    "profile": "profile-flops",
    "res-student": "add-res-student",
    "score": "eval",
    "shrink": "compress",
    "student": "distill",
    "summary": "profile-flops",
    "teacher": "train-teacher",
    "test": "eval",
    "train": "train-teacher",
    "val": "eval",
    "validate": "eval",
}
# several names: the first one that the command has
OPTIONS: dict[str, tuple[str, ...]] = {
    "aa": ("augment",),
    "accumulate": ("grad_accum",),
    "amp": ("precision",),
    "arch": ("model", "student"),
    "architecture": ("student", "arch", "model"),
    "aug": ("augment",),
    "auto_augment": ("augment",),
    "b": ("batch_size",),
    "backbone": ("student", "model", "arch"),
    "batch": ("batch_size",),
    "batchsize": ("batch_size",),
    "bf16": ("precision",),
    "bs": ("batch_size",),
    "budget": ("target_macs", "max_macs"),
    "checkpoint": ("teacher", "run", "model"),
    "clip": ("clip_grad",),
    "clip_grad_norm": ("clip_grad",),
    "clip_norm": ("clip_grad",),
    "cuda": ("device",),
    "data_path": ("data",),
    "dataset": ("data",),
    "drop": ("max_drop",),
    "dtype": ("precision",),
    "ema": ("ema_decay",),
    "fp16": ("precision",),
    "gpu": ("device",),
    "gpus": ("device",),
    "grad_clip": ("clip_grad",),
    "gradient_accumulation_steps": ("grad_accum",),
    "image_size": ("input_size",),
    "img_size": ("input_size",),
    "imgsz": ("input_size",),
    "j": ("workers",),
    "kd_alpha": ("alpha",),
    "learning_rate": ("lr",),
    "lr_schedule": ("sched",),
    "lr_scheduler": ("sched",),
    "max_epochs": ("epochs",),
    "max_grad_norm": ("clip_grad",),
    "max_loss": ("max_drop",),
    "mixed_precision": ("precision",),
    "model": ("student", "run", "arch"),
    "model_path": ("run", "teacher", "model"),
    "n_epochs": ("epochs",),
    "net": ("student", "model", "arch"),
    "network": ("student", "model", "arch"),
    "num_epochs": ("epochs",),
    "num_workers": ("workers",),
    "optim": ("opt",),
    "optimiser": ("opt",),
    "optimizer": ("opt",),
    "output": ("out",),
    "output_dir": ("out",),
    "random_seed": ("seed",),
    "resolution": ("input_size",),
    "root": ("data",),
    "save_dir": ("out",),
    "schedule": ("sched",),
    "scheduler": ("sched",),
    "smoothing": ("label_smoothing",),
    "student": ("model",),
    "student_model": ("student",),
    "t": ("temperature",),
    "tau": ("temperature",),
    "teacher_model": ("teacher",),
    "temp": ("temperature",),
    "torchcompile": ("compile",),
    "torch_compile": ("compile",),
    "warmup": ("warmup_epochs",),
    "wd": ("weight_decay",),
}


def command(name: str, known: Collection[str]) -> str | None:
    """The command that was meant, if it can be told."""
    plain = name.lower().replace("_", "-")
    other = COMMANDS.get(plain)
    if plain in known or other in known:
        return plain if plain in known else other
    return _near(plain, known)


def option(name: str, known: Collection[str]) -> str | None:
    """The field that was meant by an option of that name, with or without dashes, if it can be told."""
    plain = name.lstrip("-").lower().replace("-", "_")
    if plain in known:
        return plain
    return next((other for other in OPTIONS.get(plain, ()) if other in known), None) or _near(plain, known)


def _near(name: str, known: Collection[str]) -> str | None:
    begins = [each for each in known if each.startswith(name)] if len(name) > 2 else []
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return begins[0] if len(begins) == 1 else near[0] if near else None
