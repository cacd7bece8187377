"""Where the trials of a search are stored: in its run folder, or in a place that several machines share."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcompress.errors import UserError, first_line, usage_error

if TYPE_CHECKING:
    import optuna

STUDY, FACTOR = "res-student", 3
TRIES = 5  # if several processes create the tables of a new database, all but one fail and try again


@dataclass(frozen=True)
class SearchStorage:
    """A journal file, or a database.

    Attributes:
        address: Path of the file, or the database's URL for SQLAlchemy.
        name: The same without secrets: a URL without password and parameters.
    """

    address: str = field(repr=False)
    name: str

    @classmethod
    def of(cls, text: str) -> SearchStorage:
        """The storage that ``--search-storage`` names.

        Raises:
            UserError: An invalid URL, a file in a folder that does not exist, or a path that is not a file.
        """
        if "://" in text:
            return cls(text, _public(text))
        path = Path(text).expanduser().absolute()
        if not path.parent.is_dir():
            raise usage_error(
                f"--search-storage {shlex.quote(text)}: there is no folder {path.parent}.", "Create it first."
            )
        if path.exists() and not path.is_file():
            raise usage_error(
                f"--search-storage {shlex.quote(text)} is not a file.",
                "Name a file in a folder that all machines can access.",
            )
        return cls(str(path), str(path))

    def study(self) -> optuna.Study:
        """The study in the storage, created if there is none.

        Raises:
            UserError: It cannot be reached, or is damaged.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            with self.reached():
                return optuna.create_study(
                    storage=self._opened(),
                    study_name=STUDY,
                    direction="maximize",
                    pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=FACTOR),
                    load_if_exists=True,
                )
        except (UserError, KeyboardInterrupt):
            raise
        except Exception as error:  # Optuna trusts the content of the file
            problem = f"{self.name} cannot be read: {type(error).__name__}: {first_line(error)}"
            raise UserError(problem, "Start a new search elsewhere.") from error

    @contextlib.contextmanager
    def reached(self) -> Iterator[None]:
        """Turn the errors of a database that cannot be reached into a UserError."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (StorageInternalError, SQLAlchemyError) as error:
            cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
            problem = f"The search storage {self.name} cannot be reached: {first_line(cause)}"
            remedy = "Check the URL and the server. Saved trials are kept: continue with the same command and --resume."
            raise UserError(self._without_secrets(problem), remedy) from None

    def _without_secrets(self, text: str) -> str:
        from sqlalchemy.engine import make_url

        password = make_url(self.address).password if "://" in self.address else None
        return text.replace(str(password), "***") if password else text

    def _opened(self) -> Any:
        from optuna.storages import JournalStorage

        from kdcompress.api.checked_journal import CheckedJournal

        if "://" not in self.address:
            return JournalStorage(CheckedJournal(Path(self.address)))
        return _database(self.address)


def _database(url: str) -> Any:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    waits = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    for left in reversed(range(TRIES)):
        try:
            return RDBStorage(url, engine_kwargs=waits)
        except ImportError as error:
            remedy = "Install the driver of that database, or name a journal file that all machines can access."
            raise usage_error(f"--search-storage {_public(url)}: {first_line(error)}", remedy) from None
        except SQLAlchemyError:
            if not left:
                raise
            time.sleep(0.2)
    raise AssertionError


def _public(url: str) -> str:
    """A URL without password and parameters."""
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
        public = URL.create(parsed.drivername, parsed.username, None, parsed.host, parsed.port, parsed.database)
        return public.render_as_string()
    except (ArgumentError, ValueError):  # not quoted: it may hold a password
        remedy = "Write it like postgresql://user@host/database or sqlite:///search.db, or name a journal file."
        raise usage_error("--search-storage is not a URL that SQLAlchemy can parse.", remedy) from None
