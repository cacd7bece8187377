"""``push``: a run to the Hugging Face hub, by timm's own function, with a model card."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timm.models import push_to_hf_hub

from kdcompress.api.reference import resolve
from kdcompress.api.report import write_report
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.errors import UserError, first_line, usage_error
from kdcompress.models.hub import brief_downloads
from kdcompress.models.loading import Network, load_network
from kdcompress.options import PushOptions, ReportOptions
from kdcompress.references import HUB
from kdcompress.report import MARK
from kdcompress.results import PushResult
from kdcompress.runs import CONFIG
from kdcompress.trust import PREFIX

NAME = re.compile(r"[\w.-]+/[\w.-]+")
CARD = "README.md"
FOLDERS = re.compile(r"(?<![\w/.~-])/(?!/)(?:[^\s\"'`|,;()<>/]+/)+")  # of an absolute path, not of an address


def push(options: PushOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any) -> PushResult:
    """Upload the network of a run, its configuration and a model card to the hub.

    ``timm.create_model("hf-hub:ORG/NAME", pretrained=True)`` then loads it; cascades after ``import kdcompress``. A
    README that the repository has already is left as it is.

    Args:
        options: All options at once; else give them by name (the fields of :class:`PushOptions`).
        reporter: Receives notices.

    Raises:
        UserError: No run, a name that is not ORG/NAME, a hub that does not answer, or one that refuses.

    Example:
        >>> kdcompress.push(run="runs/gated", repository="hf-hub:me/small").url
    """
    options = options or PushOptions.resolve(given)
    name = (options.repository or "").removeprefix(HUB)
    if not NAME.fullmatch(name):
        problem = f"{options.repository!r} is no repository of the hub." if name else "push needs a repository."
        raise usage_error(problem, "Write it like hf-hub:ORG/NAME.")
    reference, began = resolve(options.run), time.perf_counter()
    reporter = reporter or Silent()
    network = load_network(reference, arch_flag=None)
    if network.path is None:
        raise UserError(f"{network.reference} is not a run.", "Give the folder of one; other networks have no record.")
    if (code := _code_of(network)) is not None:
        problem = f"{code} is a function of yours, which whoever loads the network would need."
        raise UserError(problem, "Export it, and upload the file; or train one of timm's architectures.")
    with brief_downloads() as hub:
        if hub.problem is not None:
            raise UserError(
                f"Nothing was pushed: {hub.problem}.", "Check the connection, and run the same command again."
            )
        try:
            url = _pushed(network, name, lambda: _addressed(_card(network, reporter), network, name), options)
        except UserError:
            raise
        except Exception as error:  # of the hub's client, or of the HTTP library that it is made with
            remedy = "Log in with a token that may write there (`hf auth login`, or HF_TOKEN)."
            raise UserError(f"The hub refused {name}: {first_line(error)}", remedy) from error
    return PushResult(
        command="push",
        run=str(network.path),
        seconds=round(time.perf_counter() - began, 3),
        repository=name,
        url=url,
    )


def _code_of(network: Network) -> str | None:
    """The first function of the user's own, if any, that makes the network or a part of it."""
    parts = [network.architecture]
    parts += [each["architecture"] for each in network.model_args.get("members", ())]
    parts += [(network.model_args.get("model") or {}).get("architecture", "")]
    return next((part for part in parts if part.startswith(PREFIX)), None)


def _pushed(network: Network, name: str, card: Callable[[], str], options: PushOptions) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    text = (
        None if api.file_exists(repo_id=name, filename=CARD) else card()
    )  # where it fails, there is no repository yet
    url = api.create_repo(name, private=options.private, exist_ok=True)
    if text is not None:  # timm's function would write one of its own
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo=CARD, repo_id=url.repo_id, commit_message=CARD)
    assert network.path is not None
    config = json.loads((network.path / CONFIG).read_text())
    config.pop("architecture")  # timm takes it from the network
    push_to_hf_hub(
        network.model,
        url.repo_id,
        commit_message=options.message,
        model_config=config,
        model_args=config.pop("model_args", None),
        safe_serialization=True,
    )
    return str(url)


def _addressed(card: str, network: Network, name: str) -> str:
    """A card whose readers find the network on the hub, not in a folder of ours."""
    assert network.path is not None
    return card.replace(f"'local-dir:{network.path.name}'", f"'{HUB}{name}'")


def _card(network: Network, reporter: Reporter) -> str:
    """The model card of a run: the one that is there, or a new one."""
    assert network.path is not None
    known = network.path / CARD
    if known.is_file():
        text = known.read_text()
        return _without_places(text) if MARK in text else text  # one of our own, or written by hand
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / CARD
        try:
            write_report(ReportOptions(runs=(str(network.path),), out=str(out), time=False), reporter=reporter)
        except UserError as error:  # the data of the run may be on another machine
            command = f"kdcompress report {shlex.quote(str(network.path))} --format md --data DATA"
            remedy = f"Make it with {command}, then push again."
            raise UserError(f"There is no model card, and none can be made. {error.problem}", remedy) from error
        return _without_places(out.read_text())


def _without_places(card: str) -> str:
    """A card with absolute paths cut to their last part: it is to be read by others."""
    return FOLDERS.sub("", card)
