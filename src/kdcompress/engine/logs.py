"""Where the rows of a training go besides ``metrics.csv``: TensorBoard, Weights & Biases, MLflow, by their own clients.

Where these send or store them is set by their own variables (``WANDB_MODE``, ``MLFLOW_TRACKING_URI`` and so on).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kdcompress.errors import UserError, first_line
from kdcompress.options import TrainingOptions
from kdcompress.runs import RunFolder, atomic_file

PROJECT = "kdcompress"  # unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names another
IDS = "log.json"  # by client, the id of the run there: a resumed training goes on in it
MOST_PARAM = 500  # characters of a parameter that MLflow takes

Row = Mapping[str, Any]


class Log(ABC):
    """A client of a service that shows curves."""

    name: str

    @abstractmethod
    def add(self, row: Row) -> None:
        """An epoch is over; ``row`` is its row of ``metrics.csv``."""

    @abstractmethod
    def close(self, done: bool) -> None:
        """The training has ended; ``done`` if it was not interrupted."""


class TensorBoard(Log):
    """Event files in the run folder."""

    name = "TensorBoard"

    def __init__(self, run: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run.path / "tensorboard"))

    def add(self, row: Row) -> None:
        for key, value in row.items():
            self.writer.add_scalar(key, value, row["epoch"])

    def close(self, done: bool) -> None:
        self.writer.close()


class WandB(Log):
    """A run of Weights & Biases."""

    name = "Weights & Biases"

    def __init__(self, run: RunFolder, options: TrainingOptions) -> None:
        import wandb

        id = known_id(run, "wandb") or os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]
        quiet = wandb.Settings(silent=True, console="off")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run.path.name),
            dir=os.environ.get("WANDB_DIR", str(run.path)),
            id=id,
            resume="allow",
            config=options.to_dict(),
            settings=quiet,
        )
        keep_id(run, "wandb", id)

    def add(self, row: Row) -> None:
        self.run.log(dict(row), step=row["epoch"])

    def close(self, done: bool) -> None:
        self.run.finish(exit_code=0 if done else 1)


class MLflow(Log):
    """A run of MLflow."""

    name = "MLflow"

    def __init__(self, run: RunFolder, options: TrainingOptions) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        self.client = MlflowClient()
        if (id := known_id(run, "mlflow")) is not None:
            with contextlib.suppress(MlflowException):  # it was deleted, or is in another store
                self.client.update_run(id, status="RUNNING")
                self.id = id
                return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self.client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self.client.create_experiment(name)
        self.id = self.client.create_run(experiment, run_name=run.path.name).info.run_id
        params = [Param(key, str(value)[:MOST_PARAM]) for key, value in options.to_dict().items()]
        self.client.log_batch(self.id, params=params)
        keep_id(run, "mlflow", self.id)

    def add(self, row: Row) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self.client.log_batch(self.id, [Metric(key, float(value), now, row["epoch"]) for key, value in row.items()])

    def close(self, done: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if done else "KILLED")


@contextlib.contextmanager
def logged(run: RunFolder, options: TrainingOptions, note: Callable[[str], None]) -> Iterator[Callable[[Row], None]]:
    """The logs that were asked for, while a training runs; yields a function that adds a row to each.

    One that fails later is left out with a warning: curves are not worth a training.

    Raises:
        UserError: A client is not installed, or does not start in the first phase of a new run.
    """
    wanted: list[tuple[str, Callable[[], Log]]] = []
    if options.tensorboard:
        wanted.append(("tensorboard", lambda: TensorBoard(run)))
    if options.log == "wandb":
        wanted.append(("wandb", lambda: WandB(run, options)))
    if options.log == "mlflow":
        wanted.append(("mlflow", lambda: MLflow(run, options)))
    logs: list[Log] = []

    def close(log: Log, done: bool) -> None:
        try:
            log.close(done)
        except (Exception, KeyboardInterrupt) as error:  # whatever a client raises, and the wish to end it
            note(f"Warning: the {log.name} log is incomplete: {first_line(error)}")

    def add(row: Row) -> None:
        for log in tuple(logs):
            try:
                log.add(row)
            except Exception as error:  # whatever a client raises
                note(f"Warning: the {log.name} log is incomplete: {first_line(error)}")
                logs.remove(log)
                with contextlib.suppress(Exception):
                    log.close(False)

    done = False
    try:
        for extra, make in wanted:
            try:
                logs.append(_opened(extra, make))
            except UserError as error:
                if known_id(run, extra) is None:
                    raise
                note(f"Warning: {error.problem} The training goes on without it.")
        yield add
        done = True
    finally:
        for log in logs:
            close(log, done)


def _opened(extra: str, make: Callable[[], Log]) -> Log:
    flag = "--tensorboard" if extra == "tensorboard" else f"--log {extra}"
    try:
        return make()
    except ModuleNotFoundError as error:
        remedy = f"pip install 'kdcompress[{extra}]'"
        raise UserError(f"{flag} needs a package that is not installed.", remedy, exit_code=2) from error
    except Exception as error:  # whatever a client raises
        remedy = {
            "wandb": "Log in with `wandb login`, or set WANDB_MODE=offline.",
            "mlflow": "Set MLFLOW_TRACKING_URI to a server that answers, or to a local store.",
        }.get(extra, f"Leave {flag} out.")
        raise UserError(f"{flag} does not start: {first_line(error)}", remedy) from error


def known_id(run: RunFolder, client: str) -> str | None:
    """The id by which a client knows this run."""
    id = _ids(run).get(client)
    return id if isinstance(id, str) else None


def keep_id(run: RunFolder, client: str, id: str) -> None:
    """Keep it for a training that is resumed."""
    with atomic_file(run.path / IDS) as file:
        file.write(json.dumps({**_ids(run), client: id}).encode())


def _ids(run: RunFolder) -> dict[str, Any]:
    known: Any = None
    with contextlib.suppress(OSError, ValueError):
        known = json.loads((run.path / IDS).read_text())
    return known if isinstance(known, dict) else {}
