"""The long run: what it says of its counts, and that it fails where it must. The README shows the last one's table."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.attacks import __main__ as command_line
from tests.attacks.report import ATTACKERS, Attacker, table

ROOT = Path(__file__).parents[2]
LATEST = Path(__file__).with_name("latest")
HOPS = Attacker(
    "hops", "things that hop", "{hops} hops, {landed} landed", 10, 1, {"hops": 1_000}, {"falls": 2}, (("hops", "landed"),)
)


def test_a_run_that_did_too_little_or_lost_something_says_so() -> None:
    assert HOPS.lacks({"hops": 1_000, "landed": 1_000}) == []
    assert HOPS.lacks({"hops": 999, "landed": 999}) == ["hops: hops is 999, at least 1,000 are required"]
    assert HOPS.lacks({"hops": 1_234, "landed": 1_233}) == ["hops: hops is 1,234, landed is 1,233"]
    assert HOPS.lacks({"hops": 1_000, "landed": 1_000, "falls": 3}) == ["hops: falls is 3, at most 2 are allowed"]
    assert len(HOPS.lacks({})) == 1


def test_the_table_has_a_row_and_a_command_for_each_attacker() -> None:
    assert table([(HOPS, {"hops": 1_234, "landed": 1_234})], 7) == (
        "| what | figures | command |\n|---|---|---|\n"
        "| things that hop | 1,234 hops, 1,234 landed | `python -m tests.attacks --only hops --seed 7` |"
    )


def test_the_required_counts_are_those_that_were_promised() -> None:
    least = {attacker.name: attacker.least for attacker in ATTACKERS}
    assert least["generated"]["requests"] == 10_000
    assert least["tenants"] == {"sequences of 50 steps": 1_000, "steps": 50_000}
    assert least["crashes"]["kills"] == 200
    assert {attacker.name: attacker.most for attacker in ATTACKERS if attacker.most} == {
        "crashes": {"slowest_start_ms": 2_000, "repeated_starts": 10}
    }
    for attacker in ATTACKERS:
        assert (("acknowledged", "found") in attacker.equal) == (attacker.name in ("crashes", "hangups"))
        assert (Path(__file__).with_name(f"{attacker.name}.py")).is_file()


HOPPING = """print('{"hops": 1000, "landed": 1000}')"""
FALLING = 'raise AssertionError("fell at the third hop")'
RESTING = "import time\ntime.sleep(60)"


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, programs: dict[str, str], budget: float = 1) -> Any:
    """Runs attackers that are small programs."""

    class Popen(command_line.subprocess.Popen):  # type: ignore[name-defined, misc]  # typed as an attribute of a module
        def __init__(self, arguments: list[str], **settings: Any) -> None:
            super().__init__([sys.executable, "-c", programs[arguments[arguments.index("--only") + 1]]], **settings)

    monkeypatch.setattr(command_line, "subprocess", SimpleNamespace(Popen=Popen, STDOUT=command_line.subprocess.STDOUT))
    monkeypatch.setattr(command_line, "ATTACKERS", [replace(HOPS, name=name) for name in programs])
    return command_line.run_all(7, budget, folder, small=False)


def test_all_green_gives_the_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = run(monkeypatch, tmp_path, {"one": HOPPING, "two": HOPPING, "three": HOPPING})
    assert [(attacker.name, counts["hops"]) for attacker, counts in results] == [
        ("one", 1000),
        ("two", 1000),
        ("three", 1000),
    ]


def test_a_failure_is_shown_whole_with_the_command_that_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, {"one": FALLING, "two": HOPPING}) is None
    said = capsys.readouterr().out
    assert "AssertionError: fell at the third hop" in said
    assert "python -m tests.attacks --only one --seed 7" in said
    assert "two: green" in said


def test_what_takes_longer_than_the_budget_is_ended_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, {"one": RESTING, "two": HOPPING}, budget=0.005) is None
    assert "the time is over, 0.005 minutes; not done: one" in capsys.readouterr().out


def test_too_small_counts_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, tmp_path, {"one": HOPPING.replace("1000", "999")}) is None
    assert "one: hops is 999, at least 1,000 are required" in capsys.readouterr().out


def test_the_readme_shows_the_table_of_the_last_long_run() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("\n## What has tried to break it\n")[2].partition("\n## ")[0]
    stored = (LATEST / "table.md").read_text(encoding="utf-8").strip()
    shown = section.partition("-->\n")[2].partition("\n<!-- end -->")[0]
    assert shown.strip() == stored
    facts = json.loads((LATEST / "figures.json").read_text(encoding="utf-8"))
    assert not facts["small"]
    results = [(attacker, facts["attackers"][attacker.name]) for attacker in ATTACKERS]
    assert stored.startswith(table(results, facts["seed"]))
    for attacker, counts in results:
        assert attacker.lacks(counts) == []
