"""Units of work: what must happen together, said without saying how.

A unit is a generator. It yields `ask("query_name", parameter=…)`, receives what the query answers, and returns its result;
an exception that leaves it undoes all it did. It awaits nothing, so no unit can hold a transaction open, and any engine can
drive it: SQLite on the writer's thread, another one over a socket.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ask:
    """One query of a unit, by name; `is_last` where the unit promises to ask for nothing more."""

    name: str
    parameters: dict[str, Any]
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class Together:
    """Several queries at once, and the last that a unit asks for: values, and behind them one of many rows.

    `rows` is how many of them it looks at, at the most, however much there is; None where nobody can say.
    """

    asks: tuple[Ask, ...]
    rows: int | None = None

    @property
    def is_last(self) -> bool:
        return True


Unit = Generator[Ask | Together, Any, T]


def ask(query: str, /, **parameters: Any) -> Ask:
    """What a unit yields to run the named `query`.

    The yield gives a row or None, a value, a list of rows, or the number of rows written, as the sign in the .sql file
    says. It raises UniqueViolation and ForeignKeyViolation inside the unit, which may say what they mean, and ends with
    that: to PostgreSQL a unit in which a statement has failed is lost.
    """
    return Ask(query, parameters)


def ask_last(query: str, /, **parameters: Any) -> Ask:
    """What a unit yields that asks for nothing more: an engine may run the last queries of several units together."""
    return Ask(query, parameters, is_last=True)


def ask_together(*asks: Ask, rows: int | None = None) -> Together:
    """What a unit yields that asks for several things as of one moment, and for nothing more.

    The yield gives what each of them answers, in their order. All but the last give a value, the last one many rows; none of
    them writes. With `rows` the unit promises that they look at no more than that, see Together.
    """
    return Together(asks, rows)


class UniqueViolation(Exception):
    """A row with the same key is there already."""


class ForeignKeyViolation(Exception):
    """The row that this one refers to is not there, or is another tenant's."""
