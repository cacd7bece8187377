"""Each method's task: its loss is the formula that the docstring gives, and what is frozen stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import small_networks
import torch
from small_networks import CLASSES
from timm.task import TrainingTask
from torch import Tensor, nn
from torch.nn import functional as F

from kdcompress import options
from kdcompress.data import InputAdapter, Preprocess
from kdcompress.methods.base import Frozen, StudentTask
from kdcompress.methods.kd import KdTask
from kdcompress.methods.losses import LOGIT_LOSSES
from kdcompress.methods.reskd import ResKdTask
from kdcompress.methods.supervised import SupervisedTask, TfKdTask
from kdcompress.models.build import zero_classifier
from kdcompress.training_task import unwrapped


def network(seed: int, spec: str = "resnet8_cifar,width=0.25") -> nn.Module:
    return small_networks.network(seed, spec)


def tasks() -> dict[str, Callable[[], StudentTask]]:
    """Every task, newly made at each call."""
    return {
        "ce": lambda: SupervisedTask(network(0)),
        "label-smoothing": lambda: SupervisedTask(network(0), label_smoothing=0.1),
        "tf-kd": lambda: TfKdTask(network(0)),
        "kd": lambda: KdTask(network(0), Frozen(network(1))),
        "reskd": lambda: ResKdTask(network(0), Frozen(network(2)), Frozen(network(1))),
        "reskd-mse": lambda: ResKdTask(network(0), Frozen(network(2)), Frozen(network(1)), residual_loss="mse"),
    }


def naive_ce(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    soft = F.one_hot(target, CLASSES).float() if target.ndim == 1 else target
    soft = soft * (1 - smoothing) + smoothing / CLASSES
    return -(soft * logits.log_softmax(1)).sum(1).mean()


def naive_kl(teacher: Tensor, student: Tensor, tau: float) -> Tensor:
    p = (teacher / tau).softmax(1)
    return (p * (p.log() - (student / tau).log_softmax(1))).sum(1).mean() * tau**2


def logits_of(model: nn.Module, x: Tensor, *, train: bool) -> Tensor:
    """From a copy, so that no statistics move."""
    return copy.deepcopy(model).train(train)(x)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_supervised_is_cross_entropy(x: Tensor, y: Tensor, smoothing: float) -> None:
    """The baseline of every comparison."""
    model = network(0)
    expected = logits_of(model, x, train=True)
    result = SupervisedTask(model, label_smoothing=smoothing)(x, y)
    torch.testing.assert_close(result["output"], expected)
    torch.testing.assert_close(result["loss"], naive_ce(expected, y, smoothing))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_kd_is_the_weighted_sum(x: Tensor, y: Tensor, smoothing: float) -> None:
    """Swapped weights still train, only worse: nobody would notice."""
    student, teacher = network(0), network(1)
    logits, teacher_logits = logits_of(student, x, train=True), logits_of(teacher, x, train=False)
    result = KdTask(student, Frozen(teacher), label_smoothing=smoothing, alpha=0.7, temperature=3.0)(x, y)
    expected = 0.3 * naive_ce(logits, y, smoothing) + 0.7 * naive_kl(teacher_logits, logits, 3.0)
    torch.testing.assert_close(result["loss"], expected)
    torch.testing.assert_close(result["task_loss"], naive_ce(logits, y, smoothing))
    torch.testing.assert_close(result["kd_loss"], naive_kl(teacher_logits, logits, 3.0))


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_alpha_has_the_default_of_its_loss_or_the_given_value(x: Tensor, y: Tensor, name: str) -> None:
    """With the default weight of one loss for all of them, that one would seem the best."""
    student, teacher = network(0), Frozen(network(1))
    for given in ({}, {"alpha": 0.3}, {"temperature": 5.0}):
        result = KdTask(student, teacher, logit_loss=name, **given)(x, y)
        usual = options.LOGIT_LOSSES[name]
        alpha, temperature = usual.alpha, usual.temperature
        alpha, temperature = given.get("alpha", alpha), given.get("temperature", temperature)
        kd_loss = LOGIT_LOSSES[name](teacher(x), result["output"], y, temperature)
        torch.testing.assert_close(result["loss"], (1 - alpha) * result["task_loss"] + alpha * kd_loss)
    assert options.LOGIT_LOSSES.keys() == LOGIT_LOSSES.keys()


def test_tf_kd_is_kd_from_the_hand_made_teacher(x: Tensor, y: Tensor) -> None:
    """The control of LW-KD: a wrong virtual teacher would flatter our own method."""
    student = network(0)
    logits = logits_of(student, x, train=True)
    result = TfKdTask(student, alpha=0.4, temperature=20.0)(x, y)
    virtual = torch.full((16, CLASSES), 0.01 / (CLASSES - 1))
    virtual[torch.arange(16), y] = 0.99
    expected = 0.6 * naive_ce(logits, y) + 0.4 * naive_kl(virtual.log(), logits, 20.0)
    torch.testing.assert_close(result["loss"], expected)


@pytest.mark.parametrize("loss", ["kl", "mse"])
@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0), (0.1, 0.125), (0.4, 0.5), (0.9, 0.5)])
def test_reskd_trains_through_the_sum(x: Tensor, y: Tensor, loss: str, progress: float, weight: float) -> None:
    """One trained by itself, not in the sum, would not correct anything; one that never was would learn nothing."""
    member, members, teacher = network(0), network(2), network(1)
    total = weight * logits_of(members, x, train=False) + logits_of(member, x, train=True)
    teacher_logits = logits_of(teacher, x, train=False)
    shared = {"residual_loss": loss, "alpha": 0.7, "temperature": 3.0, "sum_weight": 0.5, "warmup": 0.4}
    task = ResKdTask(member, Frozen(members), Frozen(teacher), **shared)
    task.progress = progress
    result = task(x, y)
    energy = (teacher_logits - total).square().mean()
    expected = energy if loss == "mse" else 0.3 * naive_ce(total, y) + 0.7 * naive_kl(teacher_logits, total, 3.0)
    torch.testing.assert_close(result["loss"], expected)
    torch.testing.assert_close(result["energy"], energy)
    torch.testing.assert_close(result["output"], total)
    whole = 0.5 * logits_of(members, x, train=False) + logits_of(member, x, train=False)
    torch.testing.assert_close(task.eval().get_eval_model()(x), whole)


def test_a_res_student_starts_exactly_at_the_sum_before(x: Tensor, y: Tensor) -> None:
    """A new member must not change the sum at first, or early epochs only repair it."""
    member, members = network(0), Frozen(network(2))
    zero_classifier(member)
    expected = members(x)
    task = ResKdTask(member, members, Frozen(network(1)), warmup=0)
    assert torch.equal(task(x, y)["output"], expected)
    assert torch.equal(task.eval().get_eval_model()(x), expected)


@pytest.mark.parametrize("method", ["kd", "reskd", "reskd-mse"])
def test_frozen_networks_stay_as_they_were(x: Tensor, y: Tensor, method: str) -> None:
    """A teacher that drifts with the student's batches would differ from the run's fingerprint."""
    task = tasks()[method]()
    frozen = [module for module in task.children() if isinstance(module, Frozen)]
    assert frozen
    before = [copy.deepcopy(module.state_dict()) for module in frozen]
    start = copy.deepcopy(task.trainable_module.state_dict())
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        task.train()
        optimizer.zero_grad()
        task(x, y)["loss"].backward()
        optimizer.step()
    for module, state in zip(frozen, before, strict=True):
        assert not any(part.training for part in module.modules())
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    after = task.trainable_module.state_dict()
    assert all(not torch.equal(after[key], start[key]) for key in ("bn1.running_mean", "conv1.weight", "fc.weight"))


class Normalised(nn.Module):
    """A user's own wrapper, which has the name of PyTorch's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5]))
        self.module = network(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.module((x - self.mean) / 0.1)


def test_a_wrapper_of_the_users_own_is_part_of_the_network() -> None:
    """The network was scored and saved without it: what is inside alone, on images that are not normalised."""
    task = KdTask(Normalised(), Frozen(network(1)))
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(task.eval().get_eval_model()(x), task.trainable_module(x))
    assert isinstance(task.trained(), Normalised)
    task.setup_ema(decay=0.5)
    task.update_ema(step=1)
    average = unwrapped(task.get_trainable_module(ema=True))
    assert isinstance(average, Normalised)
    assert average.mean == 0.5


@pytest.mark.parametrize("method", list(tasks()))
def test_only_the_student_is_trained_and_saved(method: str) -> None:
    """timm's protocol: optimiser, EMA, clipping and checkpoint see the student alone."""
    task = tasks()[method]()
    assert isinstance(task, TrainingTask)
    student = task.get_trainable_module()
    assert student is not None
    trainable = {id(p) for p in task.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in student.parameters()} == {id(p) for p in task.get_clip_parameters()}
    assert not task.has_ema()
    task.setup_ema(decay=0.5)
    assert task.has_ema()
    task.update_ema(step=1)
    state = task.get_task_state()
    assert not state
    assert set(task.train().state_dict()) >= {f"trainable_module.{key}" for key in student.state_dict()}


@pytest.mark.parametrize("method", list(tasks()))
def test_results_follow_the_protocol(x: Tensor, y: Tensor, method: str) -> None:
    """The loop logs every entry but the output as a number per batch."""
    result = tasks()[method]()(x, y)
    assert result["output"].shape == (16, CLASSES)
    assert all(value.ndim == 0 for key, value in result.items() if key != "output")
    assert result["loss"].requires_grad


@pytest.mark.parametrize("method", list(tasks()))
def test_soft_targets_generalise_labels(x: Tensor, y: Tensor, method: str) -> None:
    """Mixup gives soft targets: one-hot ones must change nothing, mixed ones must count."""
    hard = tasks()[method]()(x, y)["loss"]
    soft = F.one_hot(y, CLASSES).float()
    torch.testing.assert_close(tasks()[method]()(x, soft)["loss"], hard)
    mixed = 0.5 * soft + 0.5 * soft.flip(0)
    loss = tasks()[method]()(x, mixed)["loss"]
    assert torch.isfinite(loss)
    assert (loss == hard) == (method == "reskd-mse")


def test_tf_kd_mixes_its_teacher_as_the_targets_are_mixed(x: Tensor) -> None:
    """Of two classes mixed in half each, the hand-made teacher must favour neither."""
    student = network(0)
    logits = logits_of(student, x, train=True)
    mixed = torch.zeros(16, CLASSES)
    mixed[:, :2] = 0.5
    kd_loss = TfKdTask(student, temperature=1.0)(x, mixed)["kd_loss"]
    p = torch.tensor([0.99, 0.99, *[0.01 / (CLASSES - 1)] * (CLASSES - 2)])
    geometric = torch.tensor([(0.99 * 0.01 / (CLASSES - 1)) ** 0.5] * 2 + [0.01 / (CLASSES - 1)] * (CLASSES - 2))
    assert p[0] == p[1]
    torch.testing.assert_close(kd_loss, naive_kl(geometric.log().expand(16, -1), logits, 1.0))


def test_adapters_reach_each_network(x: Tensor, y: Tensor) -> None:
    """Teacher and student of other normalisation and size must each get what it was made for."""
    batch = Preprocess((8, 8), 1, (0.4,), (0.2,))
    student, teacher = network(0), network(1)
    narrow, wide = Preprocess((8, 8), 1, (0.1,), (0.3,)), Preprocess((16, 16), 1, (0.4,), (0.2,))
    ours, theirs = InputAdapter.between(batch, narrow), InputAdapter.between(batch, wide)
    logits = logits_of(student, (x * 0.2 + 0.4 - 0.1) / 0.3, train=True)
    larger = F.interpolate(x, (16, 16), mode="bilinear", antialias=True)
    teacher_logits = logits_of(teacher, larger, train=False)
    result = KdTask(student, Frozen(teacher, theirs), ours, alpha=0.5, temperature=2.0)(x, y)
    torch.testing.assert_close(result["output"], logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result["kd_loss"], naive_kl(teacher_logits, logits, 2.0), rtol=1e-4, atol=1e-5)


def test_the_eval_model_takes_the_batches_of_the_task(x: Tensor, y: Tensor) -> None:
    """The calibration score would be of wrongly normalised images, or of the res-student without its sum."""
    adapter = InputAdapter.between(Preprocess((8, 8), 1, (0.4,), (0.2,)), Preprocess((8, 8), 1, (0.1,), (0.3,)))
    for task in (
        SupervisedTask(network(0), adapter),
        ResKdTask(network(0), Frozen(network(2), adapter), Frozen(network(1)), adapter),
    ):
        task.eval()
        with torch.no_grad():
            torch.testing.assert_close(task.get_eval_model()(x), task(x, y)["output"])


def test_a_frozen_network_returns_float32(x: Tensor) -> None:
    """KL in half precision loses the small probabilities that distillation needs."""
    frozen = Frozen(network(1).bfloat16())
    frozen.model.forward = lambda x: torch.zeros(len(x), CLASSES, dtype=torch.bfloat16)
    assert frozen(x).dtype == torch.float32


@pytest.mark.parametrize("name", LOGIT_LOSSES)
@pytest.mark.parametrize("kind", [KdTask, ResKdTask])
def test_images_without_labels_count_as_their_distance_to_the_teacher(
    x: Tensor, y: Tensor, name: str, kind: type
) -> None:
    """Without a label there is nothing to weigh the teacher against; labels of other images must count as before."""
    frozen = [Frozen(network(seed)) for seed in ((1,) if kind is KdTask else (2, 1))]
    some = y.clone()
    some[::3] = -1

    def loss(target: Tensor, alpha: float, partly: bool = True) -> Tensor:
        task = kind(network(0), *frozen, None, 0.1, logit_loss=name, alpha=alpha, partly_labelled=partly)
        return task.eval()(x, target)["loss"]

    torch.testing.assert_close(loss(y, 0.3), loss(y, 0.3, partly=False))
    none = torch.full_like(y, -1)
    torch.testing.assert_close(loss(none, 0.3), loss(none, 1.0))
    if name != "dkd":  # which needs a class: the teacher's, where there is no label
        torch.testing.assert_close(loss(none, 0.3), loss(y, 1.0, partly=False))
    assert loss(some, 0.3).isfinite()


def test_each_image_weighs_as_much_with_a_label_as_without(x: Tensor, y: Tensor) -> None:
    """A few labelled images would be drowned by, or drown, the others."""
    student, teacher = network(0).eval(), Frozen(network(1))
    some = y.clone()
    some[::3] = -1
    labelled = some >= 0
    result = KdTask(student, teacher, alpha=0.25, temperature=2.0, partly_labelled=True).eval()(x, some)
    logits, theirs = student(x), teacher(x)
    count, of_label = len(x), int(labelled.sum())
    expected = 0.75 * naive_ce(logits[labelled], y[labelled]) * of_label / count
    expected = expected + 0.25 * naive_kl(theirs[labelled], logits[labelled], 2.0) * of_label / count
    expected = expected + naive_kl(theirs[~labelled], logits[~labelled], 2.0) * (count - of_label) / count
    torch.testing.assert_close(result["loss"], expected)


def test_shares_of_a_batch_add_up_whatever_labels_they_have(x: Tensor, y: Tensor) -> None:
    """With several processes, each would weigh its labelled images by how many happen to be in its own share."""
    some = y.clone()
    some[3:] = -1
    task = KdTask(network(0), Frozen(network(1)), partly_labelled=True).eval()
    shares = [(x[:5], some[:5]), (x[5:], some[5:])]
    parts = [task(images, labels)["loss"] * len(images) / len(x) for images, labels in shares]
    torch.testing.assert_close(torch.stack(parts).sum(), task(x, some)["loss"])
