"""Options: where a value comes from, and what is refused before anything is computed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kdcompress.cli.params import with_options
from kdcompress.errors import UserError
from kdcompress.option_set import Options, field_type, flag
from kdcompress.options import (
    AddResStudentOptions,
    BenchmarkOptions,
    CompressOptions,
    DataOptions,
    DistillOptions,
    EvalOptions,
    ExportOptions,
    GateCalibrateOptions,
    PredictOptions,
    ProfileFlopsOptions,
    ReportOptions,
    ShellOptions,
    TrainTeacherOptions,
)

ALL = (
    TrainTeacherOptions,
    DistillOptions,
    AddResStudentOptions,
    GateCalibrateOptions,
    ProfileFlopsOptions,
    EvalOptions,
    PredictOptions,
    ExportOptions,
    BenchmarkOptions,
    ReportOptions,
    ShellOptions,
)
NUMBERS = [
    pytest.param(option_set, field, id=f"{option_set.__name__}.{field.name}")
    for option_set in (TrainTeacherOptions, DistillOptions, GateCalibrateOptions)
    for field in dataclasses.fields(option_set)
    if field_type(option_set, field.name) in (int, float)
]


@pytest.mark.parametrize("option_set", ALL)
def test_defaults_pass_their_own_checks(option_set: type[Options]) -> None:
    """Without any option a command would be refused, or run with a value that its help forbids."""
    options = option_set()
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        assert value == field.default
        if value is not None and value != ():
            option_set(**{field.name: str(value)})


@pytest.mark.parametrize(
    ("given_", "environment", "config", "expected"),
    [
        (None, None, None, 30),
        (None, None, 7, 7),
        (None, "5", 7, 5),
        (3, "5", 7, 3),
        (3, None, 7, 3),
        ("3", "5", None, 3),
    ],
)
def test_flag_beats_environment_beats_config(
    given_: Any, environment: str | None, config: int | None, expected: int
) -> None:
    """A user's flag would be overruled by something written down long ago."""
    options = TrainTeacherOptions.resolve(
        {"epochs": given_},
        {} if config is None else {"epochs": config},
        {} if environment is None else {"KDCOMPRESS_EPOCHS": environment, "EPOCHS": "99"},
    )
    assert options.epochs == expected


def test_a_variable_holds_several_values() -> None:
    """Thresholds of a cascade of three could not be set by the environment."""
    options = GateCalibrateOptions.resolve({}, {}, {"KDCOMPRESS_THRESHOLD": "0.7 0.9"})
    assert options.threshold == (0.7, 0.9)
    assert AddResStudentOptions.resolve({}, {}, {"KDCOMPRESS_ARCH": "resnet8_cifar,width=0.5/0.4/0.3"}).arch == (
        "resnet8_cifar,width=0.5/0.4/0.3",
    )


def test_a_false_flag_and_a_zero_are_values() -> None:
    """--no-download or --seed 0 would not undo what the config file says."""
    given_ = {"download": False, "seed": 0, "holdout": None, "warmup_epochs": 0}
    config = {"download": True, "seed": 5, "holdout": 0.3, "warmup_epochs": 2}
    options = TrainTeacherOptions.resolve(given_, config)
    assert (options.download, options.seed, options.holdout, options.warmup_epochs) == (False, 0, 0.3, 0)


@pytest.mark.parametrize("name", ["batch-size", "batch_size"])
def test_config_takes_names_as_flags_or_fields(name: str) -> None:
    """A name copied from --help into the config file would be unknown."""
    assert TrainTeacherOptions.resolve({}, {name: 64}).batch_size == 64


@pytest.mark.parametrize(("value", "wanted"), [(True, "on"), (False, "off"), ("auto", "auto")])
def test_yaml_reads_on_and_off_as_booleans(value: Any, wanted: str) -> None:
    """``sync_bn: off`` was refused as no text, though it is one of the choices."""
    assert TrainTeacherOptions.resolve({}, {"sync_bn": value}, {}).sync_bn == wanted


def test_none_means_the_default_wherever_it_comes_from() -> None:
    """``epochs:`` left blank in the config file would end in a traceback hours of set-up later."""
    assert TrainTeacherOptions.resolve({}, {"epochs": None, "opt": None}).epochs == 30
    assert TrainTeacherOptions(epochs=None, augment=None).augment == "auto"


@pytest.mark.parametrize(
    ("given_", "config", "problem", "remedy"),
    [
        ({"epoch": 3}, {}, "'epoch'", "'epochs'"),
        ({}, {"batch-sise": 3}, "'batch-sise' in the config file", "'batch_size'"),
        ({}, {"zzz": 3}, "'zzz' in the config file", "Known options: "),
        ({}, {1: 3}, "'1' in the config file", "Known options: "),
    ],
)
def test_unknown_names_are_refused_with_a_suggestion(
    given_: Mapping[str, Any], config: Mapping[str, Any], problem: str, remedy: str
) -> None:
    """A misspelt option would be ignored, and the run made with the default."""
    with pytest.raises(UserError) as caught:
        TrainTeacherOptions.resolve(given_, config)
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", "12", 12),
        ("epochs", 12.0, 12),
        ("seed", 0.0, 0),
        ("grad_accum", 1.0, 1),
        ("lr", "1e-3", 0.001),
        ("lr", 1, 1.0),
        ("mixup", 0, 0.0),
        ("download", "yes", True),
        ("download", "Off", False),
        ("download", "1", True),
        ("download", 0, False),
        ("input_size", 32, "32"),
        ("sched", "step", "step"),
    ],
)
def test_values_are_converted_to_the_type_of_the_option(name: str, value: Any, expected: Any) -> None:
    """What a config file or the environment gives would reach the training as text, or as 0.0 where 0 is needed."""
    found = getattr(TrainTeacherOptions(**{name: value}), name)
    assert found == expected
    assert type(found) is type(expected)


def test_paths_are_text(tmp_path: Any) -> None:
    """``kdcompress.distill(out=Path(...))`` would fail."""
    assert TrainTeacherOptions(out=tmp_path, data=tmp_path).out == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("epochs", "many", "--epochs takes a whole number, not 'many'"),
        ("epochs", 2.5, "whole number"),
        ("epochs", "2.5", "whole number"),
        ("epochs", True, "whole number"),
        ("seed", False, "whole number"),
        ("grad_accum", True, "whole number"),
        ("epochs", math.nan, "whole number"),
        ("epochs", math.inf, "whole number"),
        ("epochs", [3], "whole number"),
        ("lr", "fast", "--lr takes a number, not 'fast'"),
        ("lr", True, "takes a number"),
        ("lr", {}, "takes a number"),
        ("mixup", False, "takes a number"),
        ("lr", 10**400, "takes a number"),
        ("download", "maybe", "--download takes true or false, not 'maybe'"),
        ("opt", True, "--opt takes text"),
    ],
)
def test_values_of_the_wrong_type_are_refused(name: str, value: Any, words: str) -> None:
    """A typing error would end in a traceback, or train something else."""
    with pytest.raises(UserError) as caught:
        TrainTeacherOptions(**{name: value})
    assert words in caught.value.problem
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("epochs", value) for value in (0, -1)],
        *[("seed", value) for value in (-1, 2**31)],
        *[("lr", value) for value in (0, -0.1, math.nan, math.inf, "nan", "inf", "-inf", "1e999")],
        *[("holdout", value) for value in (0, 1, -0.1, 1.5, math.nan)],
        *[("label_smoothing", value) for value in (-0.1, 1)],
        *[("ema_decay", value) for value in (0, 1)],
        *[("decay_rate", value) for value in (0, 1.1)],
        *[("mixup", value) for value in (-1, math.inf)],
        ("workers", -1),
        ("weight_decay", -1e-9),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    """A negative rate, or NaN, would be found out only when the loss explodes."""
    with pytest.raises(UserError) as caught:
        TrainTeacherOptions(**{name: value})
    assert caught.value.problem.startswith(flag(name))
    assert "out of range" in caught.value.problem
    assert caught.value.remedy.startswith("It takes a")


def test_the_error_names_both_bounds_of_the_range() -> None:
    """The user would have to guess which bound is open."""
    with pytest.raises(UserError) as caught:
        TrainTeacherOptions(holdout=1)
    assert caught.value.remedy == "It takes a number, more than 0 and less than 1."
    with pytest.raises(UserError) as caught:
        TrainTeacherOptions(epochs=0)
    assert caught.value.remedy == "It takes a number, at least 1 and at most 1000000."


@pytest.mark.parametrize(("option_set", "field"), NUMBERS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_number_is_kept_or_refused_by_its_range(
    option_set: type[Options], field: dataclasses.Field[Any], data: st.DataObject
) -> None:
    """A number would come out changed, or one that the help allows be refused."""
    meta = field.metadata
    whole = field_type(option_set, field.name) is int
    value = data.draw(st.integers(-(2**33), 2**33) | st.integers(-3, 3) if whole else st.floats() | st.floats(-2, 2))
    good = math.isfinite(value)
    good = good and meta["low"] <= value <= meta["high"] and meta["above"] < value < meta["below"]
    for spelling in (value, repr(value)):
        if good:
            assert getattr(option_set(**{field.name: spelling}), field.name) == value
        else:
            with pytest.raises(UserError, match=flag(field.name)):
                option_set(**{field.name: spelling})


@pytest.mark.parametrize(
    ("value", "remedy"), [("bf61", "Did you mean bf16?"), ("double", "Choose from: auto, fp32, bf16, fp16.")]
)
def test_unknown_choices_are_refused_with_what_there_is(value: str, remedy: str) -> None:
    """The user would have to look the choices up."""
    with pytest.raises(UserError) as caught:
        TrainTeacherOptions(precision=value)
    assert caught.value.problem == f"--precision {value!r} is unknown."
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.5, (0.5,)), ("0.5", (0.5,)), ([0.5, "0.25"], (0.5, 0.25)), ((), ()), ([], ()), (None, ()), (0, (0.0,))],
)
def test_options_that_repeat(value: Any, expected: tuple[float, ...]) -> None:
    """One threshold, or several from a config file, would not be taken."""
    assert GateCalibrateOptions(threshold=value).threshold == expected


@pytest.mark.parametrize("value", [1.5, [0.5, -0.1], [0.5, "high"], ["nan"], [[0.5]], [0.5, True]])
def test_each_value_of_a_repeated_option_is_checked(value: Any) -> None:
    """A bad second threshold would slip through behind a good first one."""
    with pytest.raises(UserError, match="--threshold"):
        GateCalibrateOptions(threshold=value)


def test_an_empty_repeated_option_is_not_given() -> None:
    """The command line, which knows no None for these, would wipe out what the config file says."""
    options = DistillOptions.resolve({"arch": ()}, {"arch": ["resnet8_cifar,width=0.5", "lenet5"]})
    assert options.arch == ("resnet8_cifar,width=0.5", "lenet5")
    assert DistillOptions.resolve({"arch": ("lenet5",)}, {"arch": "resnet8_cifar"}).arch == ("lenet5",)
    environment = {"KDCOMPRESS_ARCH": "resnet8_cifar,width=0.5"}
    assert DistillOptions.resolve({}, {}, environment).arch == ("resnet8_cifar,width=0.5",)


@pytest.mark.parametrize("option_set", ALL)
def test_what_run_json_holds_makes_the_same_options(option_set: type[Options]) -> None:
    """A run could not be repeated from its own record."""
    changed = {"epochs": 3, "lr": 0.5, "arch": ("a", "b"), "threshold": (0.5,), "download": True, "teacher": "x"}
    known = {field.name for field in dataclasses.fields(option_set)}
    options = option_set(**{key: value for key, value in changed.items() if key in known and key != "arch"})
    if "arch" in known:
        is_tuple = isinstance(getattr(options, "arch"), tuple)  # noqa: B009
        options = dataclasses.replace(options, arch=("a", "b") if is_tuple else "a")
    record = options.to_dict()
    assert None not in record.values()
    assert not any(isinstance(value, tuple) for value in record.values())
    assert option_set(**record) == options
    assert option_set.resolve({}, record) == options


@pytest.mark.parametrize("option_set", ALL)
def test_every_option_is_a_flag_with_help(option_set: type[Options]) -> None:
    """An option of the Python API would be missing on the command line, or undocumented."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(with_options(lambda values: None, option_set))
    parameters = {parameter.name: parameter for parameter in typer.main.get_command(app).params}
    for field in dataclasses.fields(option_set):
        parameter = parameters[field.name]
        assert len(getattr(parameter, "help") or "") > 3  # noqa: B009
        if field.metadata["argument"]:
            assert parameter.param_type_name == "argument"
            assert not parameter.required
        else:
            assert flag(field.name) in parameter.opts


def test_every_switch_can_be_switched_off() -> None:
    """``--report`` of compress is on by default, and there was no ``--no-report``."""
    for option_set in (CompressOptions, ReportOptions, EvalOptions):
        command = typer.Typer()
        command.command()(with_options(lambda values: None, option_set))
        known = {flag for each in typer.main.get_command(command).params for flag in (*each.opts, *each.secondary_opts)}
        switches = [each.name for each in dataclasses.fields(option_set) if field_type(option_set, each.name) is bool]
        assert switches
        assert {f"--no-{name.replace('_', '-')}" for name in switches} <= known


def test_the_command_line_hands_over_what_was_typed_and_no_more() -> None:
    """A flag that was not given would overrule the config file, or a repeated one lose a value."""
    seen: list[dict[str, Any]] = []
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(with_options(seen.append, GateCalibrateOptions))
    line = ["runs/x", "--threshold", "0.5", "--threshold", "0.25", "--no-download", "--max-drop", "1"]
    assert CliRunner().invoke(app, line).exit_code == 0
    given_ = {key: value for key, value in seen[0].items() if value is not None and value != ()}
    assert given_ == {"run": "runs/x", "threshold": ["0.5", "0.25"], "download": False, "max_drop": "1"}
    options = GateCalibrateOptions.resolve(seen[0], {"download": True, "data": "digits", "max_drop": 3})
    assert (options.run, options.threshold, options.max_drop) == ("runs/x", (0.5, 0.25), 1.0)
    assert (options.download, options.data, options.measure) == (False, "digits", "confidence")


def test_replacing_an_option_checks_it_again() -> None:
    """What a run inherits from its parent would go by unchecked."""
    with pytest.raises(UserError, match="--holdout"):
        dataclasses.replace(DataOptions(), holdout=2)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("1.5h", 5400), (None, 300), (7, 7)]
)
def test_durations_of_dist_timeout(text: object, seconds: float) -> None:
    """Minutes would be read as seconds, and a host that is slow for a moment given up."""
    assert EvalOptions(dist_timeout=text).patience == seconds  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["0", "4.9s", "-5m", "m", "soon", "1e9h", "8000h", "nan"])
def test_dist_timeouts_out_of_range_are_refused(text: str) -> None:
    """Every job would end at its first step, or hang for ever."""
    with pytest.raises(UserError, match=f"--dist-timeout {text!r}") as caught:
        _ = EvalOptions(dist_timeout=text).patience
    assert caught.value.exit_code == 2
