"""What a shell is offered when its user presses Tab."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import timm

from cli.conftest import Cli
from cli.shell import TINY, shell
from kdcompress.cli import completion
from kdcompress.options import MEASURES, METHODS


def offered(line: str, cwd: Path) -> list[str]:
    """What bash is told of the last word of a line."""
    words = f"COMP_WORDS='{line}' COMP_CWORD={len(line.split(' ')) - 1}"
    return shell(f"{completion.ASKED}=complete_bash {words} kdcompress", cwd, XDG_CACHE_HOME=str(cwd)).out.split()


def test_commands_options_and_choices_are_offered(here: Path) -> None:
    """Tab does nothing, or offers what the command refuses."""
    assert offered("kdcompress gate", here) == ["gate-calibrate"]
    assert offered("kdcompress distill --from", here) == ["--from-teacher"]
    assert offered("kdcompress distill --method ", here) == list(METHODS)
    assert offered("kdcompress gate-calibrate runs/a --measure ", here) == ["auto", *MEASURES, "learned"]
    assert offered("kdcompress distill --student wrn_28", here) == ["wrn_28_10_cifar"]
    assert offered("kdcompress eval runs/", here) == [], "bash then completes files"


def test_completion_does_without_torch(here: Path) -> None:
    """Tab takes seconds."""
    line = "kdcompress distill --student lenet"
    words = f"COMP_WORDS='{line}' COMP_CWORD=3"
    done = shell(f"{completion.ASKED}=complete_bash {words} python -X importtime $(command -v kdcompress)", here)
    modules = {each.rpartition("|")[2].strip().split(".")[0] for each in done.err.splitlines() if "|" in each}
    assert "lenet5" in done.out.split()
    assert "typer" in modules
    assert not modules & {"torch", "timm"}


def test_a_shell_is_given_its_script(here: Path) -> None:
    """The option that installs completion is there, and its script calls another variable than the one we read."""
    told = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # the shell is named, not detected
    assert f"{completion.ASKED}=complete_bash" in shell("kdcompress --show-completion bash", here, **told).out


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_names_of_timm_are_offered_after_a_command(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only our own networks are ever offered, or those of a timm that is no longer installed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert completion.networks() == list(completion.OURS)
    assert cli("profile-flops", f"{TINY},in_chans=1").status == 0
    assert completion.networks() == timm.list_models()
    file = tmp_path / "cache" / "kdcompress" / completion.FILE
    file.write_text("timm 0.1\nold\n")
    completion.remember_networks()
    assert "resnet18" in completion.networks()
    file.unlink()
    os.mkfifo(file)
    assert completion.networks() == list(completion.OURS), "Tab would wait for ever"


def test_a_cache_that_cannot_be_used_costs_nothing(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A command fails for the sake of what Tab offers."""
    blocked = tmp_path / "file"  # not a folder
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert cli("profile-flops", f"{TINY},in_chans=1").status == 0
    assert completion.networks() == list(completion.OURS)


def test_the_offered_names_of_our_networks_are_complete() -> None:
    """Tab offers a network of ours that does not exist, or leaves one out."""
    registered = {name for module in ("cifar_resnet", "cifar_wrn", "lenet") for name in timm.list_models(module=module)}
    assert set(completion.OURS) == registered
