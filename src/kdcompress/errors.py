"""The error that users see, and its helpers."""

USAGE = 2  # exit status of a command that was given something it cannot use


class UserError(Exception):
    """An error that the user can fix: bad input, an option out of range, a file that does not fit.

    The command line prints it as two lines and exits with ``exit_code``; in Python it is an ordinary exception.

    Args:
        problem: One line that says what is wrong and quotes the user's input.
        remedy: One line that says how to fix it.
        exit_code: 2 for wrong usage (an option or argument), 1 for anything else.
    """

    def __init__(self, problem: str, remedy: str = "", *, exit_code: int = 1) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.problem}\n{self.remedy}" if self.remedy else self.problem


class Diverged(UserError):
    """A training whose loss is no longer finite."""


def usage_error(problem: str, remedy: str = "") -> UserError:
    """A :class:`UserError` for wrong usage: exit status 2."""
    return UserError(problem, remedy, exit_code=USAGE)


def kind_of(value: object) -> str:
    """``an int``, ``a dict``: the type of a value, with its article."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def first_line(error: BaseException) -> str:
    """First line of a library's error message, short enough for a :class:`UserError`; its type if there is none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
