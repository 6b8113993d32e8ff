"""Times as the API writes them: RFC 3339, UTC, microseconds, so that text order is time order."""

import re
from datetime import UTC, datetime, timedelta

# RFC 3339 section 5.6, to the microsecond; the numbers' ranges are left to datetime.
_RFC_3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(\.\d{1,6})?(?:[Zz]|([+-](?:[01]\d|2[0-3]):[0-5]\d))", re.ASCII
)

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION = re.compile(r"([1-9][0-9]{0,5})([smhdw])", re.ASCII)
_LONGEST = timedelta(days=36_500)


def utc_now(later: timedelta = timedelta()) -> str:
    """The present as text, such as `2026-11-22T10:48:00.000000Z`, or the time so much `later`."""
    return _text(datetime.now(UTC) + later)


def duration(value: str) -> timedelta:
    """How long `value` is: a whole number with one of the units s, m, h, d and w, as in `90d`; a hundred years at most.

    Raises ValueError, a sentence, for anything else.
    """
    match = _DURATION.fullmatch(value)
    long = timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else None
    if long is None or long > _LONGEST:
        raise ValueError("a time is a whole number and one of the units s, m, h, d and w, as in 90d, up to a hundred years.")
    return long


def utc_text(value: str) -> str:
    """An RFC 3339 time with any offset, as the same time in UTC with microseconds.

    Raises ValueError where `value` is no such time, has more than six digits of a second, or leaves the years 1 to 9999.
    """
    match = _RFC_3339.fullmatch(value)
    if match is None:
        raise ValueError(value)
    date, time, fraction, offset = match.groups()
    leaps = time.endswith(":60")
    if leaps:  # a leap second (section 5.7): datetime has none, the end of the second before stands for it
        time, fraction = time[:-2] + "59", ".999999"
    try:
        moment = datetime.fromisoformat(f"{date}T{time}{fraction or ''}{offset or '+00:00'}")
        text = _text(moment.astimezone(UTC))
    except OverflowError as error:
        raise ValueError(value) from error
    if leaps and not text.endswith("T23:59:59.999999Z"):
        raise ValueError(value)
    return text


def _text(moment: datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
