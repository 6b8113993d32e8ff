"""A tenant as a file: JSON Lines, of which the first says what it is, and the last whether it is whole.

    {"format": "agent-platform tenant", "version": 1, "tenant": {"id": …, "created_at": …}, "exported_at": …, "from": …}
    {"table": "tools", "row": {"id": 1, "name": …}}
    …
    {"counts": {"tools": 1, …}, "sha256": "…"}

The tables stand in the order of TABLES, the rows of each in the order of their keys, and the SHA-256 is that of all bytes
before the last line: so a file that was cut off or altered is found out before anything is done with it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, BinaryIO

import orjson

from service.storage.units import Row
from service.times import utc_text

FORMAT = "agent-platform tenant"
VERSION = 1
# half of all numbers that an id can be: a file can't use up what is left
LARGEST_ID = 2**52
# bytes; a run of the largest task, with the most steps, has far less
_LONGEST_LINE = 2**26

_NUMBER = (int,)
_NUMBER_OR_NONE = (int, type(None))
_TEXT = (str,)
_TEXT_OR_NONE = (str, type(None))


@dataclass(frozen=True)
class Table:
    """What a table's rows have: each column with the types of its values in the file."""

    columns: Mapping[str, tuple[type, ...]]
    # the columns that bear an id, and of what it is one
    ids: Mapping[str, str]
    # what comes before its first key
    before: Row = field(default_factory=lambda: {"id": 0})
    # the columns that are text in the database and the JSON that it stands for in the file
    json: tuple[str, ...] = ()


_TIMES = {"created_at": _TEXT, "updated_at": _TEXT, "version": _NUMBER}

# Everything that a tenant has but its keys, which are secrets of the place where they were made, and the answers kept for
# retries, which are of the last day. No row refers to one that comes after it.
TABLES: Mapping[str, Table] = {
    "tools": Table({"id": _NUMBER, "name": _TEXT, "description": _TEXT, **_TIMES}, {"id": "tools"}),
    "agent_ids": Table({"id": _NUMBER}, {"id": "agent_ids"}),
    "agents": Table({"id": _NUMBER, "name": _TEXT, "role": _TEXT, "description": _TEXT, **_TIMES}, {"id": "agent_ids"}),
    "agent_tools": Table(
        {"agent_id": _NUMBER, "tool_id": _NUMBER},
        {"agent_id": "agent_ids", "tool_id": "tools"},
        before={"agent_id": 0, "tool_id": 0},
    ),
    "runs": Table(
        {
            "id": _NUMBER,
            "agent_id": _NUMBER,
            "agent_name": _TEXT,
            "model": _TEXT,
            "status": _TEXT,
            "prompt_tokens": _NUMBER,
            "completion_tokens": _NUMBER,
            "created_at": _TEXT,
            "duration_ms": _NUMBER,
            "task": _TEXT,
            "response": _TEXT_OR_NONE,
            "error": (dict, type(None)),
            "steps": (list,),
            "prompt": _TEXT,
        },
        {"id": "runs", "agent_id": "agent_ids"},
        json=("error", "steps"),
    ),
    # what was used of a day may be more than what is left in the history
    "usage": Table(
        {
            "day": _TEXT,
            "agent_id": _NUMBER,
            "model": _TEXT,
            "agent_name": _TEXT,
            "runs": _NUMBER,
            "failures": _NUMBER,
            "prompt_tokens": _NUMBER,
            "completion_tokens": _NUMBER,
            "duration_ms": _NUMBER,
        },
        {"agent_id": "agent_ids"},
        before={"day": "", "agent_id": 0, "model": ""},
    ),
    "audit_log": Table(
        {
            "id": _NUMBER,
            "created_at": _TEXT,
            "actor": _TEXT,
            "key_id": _NUMBER_OR_NONE,
            "action": _TEXT,
            "resource": _TEXT,
            "resource_id": _NUMBER_OR_NONE,
            "request_id": _TEXT_OR_NONE,
            "before": (dict, type(None)),
            "after": (dict, type(None)),
        },
        {"id": "audit_log"},
        json=("before", "after"),
    ),
    # no table, but what was given last of each kind: none of them is to be given again
    "last_ids": Table({"name": _TEXT, "last_id": _NUMBER}, {}, before={"name": ""}),
}
# the words of openapi.yaml
_WORDS = {
    "action": ("create", "change", "delete", "rotate", "revoke", "disable", "enable", "limit"),
    "resource": ("tool", "agent", "key", "tenant"),
}
# what has ids of its own
COUNTED = ("tools", "agent_ids", "runs", "audit_log")


class TransferError(Exception):
    """What can't be exported, imported or deleted as it is; the sentence says why."""


class Writer:
    """Writes the lines of one tenant."""

    def __init__(self, file: BinaryIO, tenant: Row, exported_at: str, source: str) -> None:
        self._file = file
        self._hashed = sha256()
        self.counts = dict.fromkeys(TABLES, 0)
        header = {"tenant": tenant, "exported_at": exported_at, "from": source}
        self._line({"format": FORMAT, "version": VERSION, **header})

    def add(self, table: str, rows: list[Row]) -> None:
        """Writes rows as the database has them."""
        for row in rows:
            parsed = {name: row[name] and orjson.loads(row[name]) for name in TABLES[table].json}
            self._line({"table": table, "row": row | parsed})
        self.counts[table] += len(rows)

    def end(self) -> None:
        self._line({"counts": self.counts, "sha256": self._hashed.hexdigest()})

    def _line(self, value: Row) -> None:
        line = orjson.dumps(value) + b"\n"
        self._hashed.update(line)
        self._file.write(line)


class Reader:
    """Reads a file of one tenant; raises TransferError where it is not what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        file.seek(0)
        header = self._header(file.readline(_LONGEST_LINE))
        self.tenant: Row = header["tenant"]

    def rows(self) -> Iterator[tuple[str, Row, int]]:
        """Each row, its table and its length in the file; the last one is given before it is known that all were whole."""
        self._file.seek(0)
        hashed, counts = sha256(), dict.fromkeys(TABLES, 0)
        place: tuple[Any, ...] = ()
        for number, (line, value) in enumerate(self._lines(), 1):
            if "sha256" in value:
                if value != {"counts": counts, "sha256": hashed.hexdigest()}:
                    raise TransferError("The file was altered: its last line has other counts or another checksum.")
                if self._file.read(1):
                    raise TransferError("The file was altered: something stands behind its last line.")
                return
            hashed.update(line)
            if number > 1:
                table, row = _checked(value, number)
                last, place = place, (list(TABLES).index(table), *(row[name] for name in TABLES[table].before))
                if place <= last:
                    raise _wrong(number)
                counts[table] += 1
                yield table, row, len(line)
        raise TransferError("The file ends without its last line: it is not whole.")

    def _lines(self) -> Iterator[tuple[bytes, Row]]:
        number = 0
        while line := self._file.readline(_LONGEST_LINE):
            number += 1
            # a line that was cut off is no line, even where what is left could be read
            value = _parsed(line) if line.endswith(b"\n") else None
            if value is None:
                raise _wrong(number)
            yield line, value

    def _header(self, line: bytes) -> Row:
        header = _parsed(line) or {}
        if header.get("format") != FORMAT:
            raise TransferError("The file is no export of a tenant.")
        if header.get("version") != VERSION:
            raise TransferError(f"The file's format is not the version {VERSION}, which is the one that is known here.")
        tenant = header.get("tenant")
        if not isinstance(tenant, dict) or tenant.keys() != {"id", "created_at", "disabled_at", "run_limit", "run_window"}:
            raise _wrong(1)
        disabled, limit = tenant["disabled_at"], (tenant["run_limit"], tenant["run_window"])
        fits = limit == (None, None) or all(type(each) is int and each > 0 for each in limit)
        if not isinstance(tenant["id"], str) or not _is_time(tenant["created_at"]) or not fits:
            raise _wrong(1)
        if disabled is not None and not _is_time(disabled):
            raise _wrong(1)
        return header


def _parsed(line: bytes) -> Row | None:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _checked(value: Row, number: int) -> tuple[str, Row]:
    """A line's table and row, if it has the shape of one."""
    name, row = value.get("table"), value.get("row")
    table = TABLES.get(name) if isinstance(name, str) else None
    if table is None or not isinstance(name, str) or not isinstance(row, dict) or value.keys() != {"table", "row"}:
        raise _wrong(number)
    if row.keys() != table.columns.keys():
        raise _wrong(number)
    # a bool is an int to isinstance
    if not all(type(row[column]) in types for column, types in table.columns.items()):
        raise _wrong(number)
    ids = [row[column] for column in table.ids]
    if name == "last_ids":
        ids = [row["last_id"]]
        if row["name"] not in COUNTED:
            raise _wrong(number)
    if not all(1 <= each <= LARGEST_ID for each in [*ids, *tool_ids(row)]):
        raise _wrong(number)
    if not all(_fits(column, each) for column, each in row.items()):
        raise _wrong(number)
    return name, row


def _fits(column: str, value: Any) -> bool:
    """Could the service have stored this? What it answers with later, it does not look at again."""
    if isinstance(value, int):
        return 0 <= value <= LARGEST_ID
    if not isinstance(value, str):
        return True
    if column == "day":
        return _is_time(f"{value}T00:00:00.000000Z")
    if column.endswith("_at"):
        return _is_time(value)
    return "\0" not in value and value in _WORDS.get(column, (value,))


def tool_ids(row: Row) -> list[int]:
    """The ids of the tools that the steps of a run have called; some of them may be of tools that are no longer there."""
    steps = row.get("steps", ())
    found = [step.get("tool_id") if isinstance(step, dict) else None for step in steps]
    # 0 is nobody's id
    return [each if type(each) is int else 0 for each in found]


def _is_time(value: Any) -> bool:
    try:
        return isinstance(value, str) and utc_text(value) == value
    except ValueError:
        return False


def _wrong(number: int) -> TransferError:
    return TransferError(f"The file was altered or cut off: its line {number} is not what an export has there.")
