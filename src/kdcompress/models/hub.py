"""Downloads of weights that give up within seconds where there is no network, and still find what is in the cache."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from kdcompress.errors import first_line

PATIENCE = 5.0  # seconds; huggingface_hub alone tries six times, for a minute each


class Connection:
    """Whether the hub answers.

    Attributes:
        problem: Why it is out of reach, with its address; None where it answers.
    """

    problem: str | None = None


@contextlib.contextmanager
def brief_downloads() -> Iterator[Connection]:
    """Ask the hub once whether it answers; while it does not, its client looks at the cache alone.

    Example:
        >>> with brief_downloads() as hub:
        ...     timm.create_model("resnet18", pretrained=True)
    """
    hub, former = Connection(), socket.getdefaulttimeout()
    try:
        from huggingface_hub import constants
    except ImportError:
        constants = None  # type: ignore[assignment]
    socket.setdefaulttimeout(PATIENCE)  # of downloads from elsewhere, which torch.hub lets wait for ever
    offline = constants is not None and constants.HF_HUB_OFFLINE
    try:
        if offline:
            hub.problem = "HF_HUB_OFFLINE is set"
        elif constants is not None and (reason := _unreachable(constants.ENDPOINT)) is not None:
            hub.problem = f"{constants.ENDPOINT} does not answer ({reason})"
            constants.HF_HUB_OFFLINE = True
        yield hub
    finally:
        socket.setdefaulttimeout(former)
        if constants is not None:
            constants.HF_HUB_OFFLINE = offline


def elsewhere(repository: str) -> str:
    """How to come to weights of the hub without a connection."""
    where = f"download {repository} from the hub on another machine"
    return f"{where} and give its folder, or copy that machine's Hugging Face cache here (HF_HOME)"


def _unreachable(endpoint: str) -> str | None:
    """Why there is no answer from there, of whatever status; by the client's own session, which knows of proxies."""
    from huggingface_hub.utils import get_session

    try:
        get_session().head(endpoint, timeout=PATIENCE)
    except Exception as error:  # those of whichever HTTP library the client is made with
        return first_line(error)
    return None
