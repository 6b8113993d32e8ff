"""Durations as people write them; what times look like is tested where they are used."""

from datetime import timedelta

import pytest

from service.times import duration


def test_a_duration_is_a_number_and_a_unit() -> None:
    for text, long in {
        "45s": timedelta(seconds=45),
        "30m": timedelta(minutes=30),
        "12h": timedelta(hours=12),
        "90d": timedelta(days=90),
        "2w": timedelta(weeks=2),
        "36500d": timedelta(days=36_500),
    }.items():
        assert duration(text) == long


@pytest.mark.parametrize(
    "text", ["", "d", "0d", "09d", "-1d", "+1d", "1", "1.5h", "1 d", "1D", "1d ", "१d", "1d2h", "36501d", "1y"]
)
def test_anything_else_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="as in 90d"):
        duration(text)
