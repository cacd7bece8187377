"""Where the trials of a search are kept: in its run folder, or in a place that several machines share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcompress.errors import UserError, first_line, usage_error

if TYPE_CHECKING:
    import optuna

STUDY, FACTOR = "res-student", 3
TRIES = 5  # of several processes that make the tables of a new database, one is first


@dataclass(frozen=True)
class SearchStorage:
    """A journal file, or a database.

    Attributes:
        address: Path of the file, or the database's URL for SQLAlchemy.
        name: The same without what is secret: of a URL neither password nor parameters.
    """

    address: str = field(repr=False)
    name: str

    @classmethod
    def of(cls, text: str) -> SearchStorage:
        """What ``--search-storage`` names.

        Raises:
            UserError: It is no URL that can be read, a file in a folder that is not there, or no file.
        """
        if "://" in text:
            return cls(text, _public(text))
        path = Path(text).expanduser().absolute()
        if not path.parent.is_dir():
            raise usage_error(f"--search-storage {text}: there is no folder {path.parent}.", "Make it first.")
        if path.exists() and not path.is_file():
            raise usage_error(f"--search-storage {text} is no file.", "Name a file in a folder that all machines see.")
        return cls(str(path), str(path))

    def study(self) -> optuna.Study:
        """A new one, or that which is there.

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
        except Exception as error:  # what reads it takes its content for granted
            problem = f"{self.name} cannot be read: {type(error).__name__}: {first_line(error)}"
            raise UserError(problem, "Search anew in another place.") from error

    @contextlib.contextmanager
    def reached(self) -> Iterator[None]:
        """Tells of a database that is not, or no longer, to be reached."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (StorageInternalError, SQLAlchemyError) as error:
            cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
            problem = f"The search storage {self.name} cannot be reached: {first_line(cause)}"
            remedy = "Check the URL and the server. Saved trials stay: the same command with --resume goes on."
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
            remedy = "Install the driver of that database, or name a journal file that all machines see."
            raise usage_error(f"--search-storage {_public(url)}: {first_line(error)}", remedy) from None
        except SQLAlchemyError:
            if not left:
                raise
            time.sleep(0.2)
    raise AssertionError


def _public(url: str) -> str:
    """A URL without what is secret."""
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError

    try:
        found = make_url(url)
        public = URL.create(found.drivername, found.username, None, found.host, found.port, found.database)
        return public.render_as_string()
    except (ArgumentError, ValueError):  # not quoted: it may hold a password
        remedy = "Write it like postgresql://user@host/database or sqlite:///search.db, or name a journal file."
        raise usage_error("--search-storage is no URL that SQLAlchemy reads.", remedy) from None
