"""The long run: what it says of its counts, and that it fails where it must. The README shows the last one's table."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.attacks import __main__ as command_line
from tests.attacks.databases import ENGINES
from tests.attacks.report import ATTACKERS, Attacker, facts, table
from tests.support import postgresql

ROOT = Path(__file__).parents[2]
LATEST = Path(__file__).with_name("latest")
HOPS = Attacker(
    name="hops",
    engine="sqlite",
    what="things that hop",
    figures="{hops} hops, {landed} landed",
    amount=10,
    small=1,
    least={"hops": 1_000},
    most={"falls": 2},
    equal=(("hops", "landed"),),
)
SWIMS = replace(HOPS, engine="postgresql", figures=HOPS.figures + "; {wet} wet")


def test_a_run_that_did_too_little_or_lost_something_says_so() -> None:
    assert HOPS.lacks({"hops": 1_000, "landed": 1_000}) == []
    assert HOPS.lacks({"hops": 999, "landed": 999}) == ["hops on sqlite: hops is 999, at least 1,000 are required"]
    assert HOPS.lacks({"hops": 1_234, "landed": 1_233}) == ["hops on sqlite: hops is 1,234, landed is 1,233"]
    assert HOPS.lacks({"hops": 1_000, "landed": 1_000, "falls": 3}) == ["hops on sqlite: falls is 3, at most 2 are allowed"]
    assert len(HOPS.lacks({})) == 1


def test_the_table_has_a_row_and_a_command_for_each_attacker_on_each_engine() -> None:
    results = [(HOPS, {"hops": 1_234, "landed": 1_234}), (SWIMS, {"hops": 5, "landed": 5, "wet": 4})]
    hops, swims = [f"`python -m tests.attacks --only hops --engine {each.engine} --seed 7`" for each, _ in results]
    assert table(results, 7) == (
        "| what | engine | figures | command |\n|---|---|---|---|\n"
        f"| things that hop | SQLite | 1,234 hops, 1,234 landed | {hops} |\n"
        f"| things that hop | PostgreSQL | 5 hops, 5 landed; 4 wet | {swims} |"
    )
    assert facts(results) == {"hops": {each.engine: counts for each, counts in results}}


def test_the_required_counts_are_those_that_were_promised() -> None:
    least = {str(attacker): attacker.least for attacker in ATTACKERS}
    counted = {"tenants": "sequences of 50 steps", "crashes": "kills", "generated": "requests"}
    counted |= {"hangups": "cancellations", "retries": "bursts"}
    promised = {
        "sqlite": {"tenants": 1_000, "crashes": 200, "generated": 10_000, "hangups": 2_000, "retries": 100},
        "postgresql": {"tenants": 150, "crashes": 50, "generated": 5_000, "hangups": 500, "retries": 50},
    }
    # each attacker on each engine, once
    assert list(least) == [f"{name} on {engine}" for name in counted for engine in ENGINES]
    for engine, amounts in promised.items():
        assert {name: least[f"{name} on {engine}"][what] for name, what in counted.items()} == amounts
        assert least[f"crashes on {engine}"]["acknowledged"] == 5 * amounts["crashes"]
    assert {str(attacker): attacker.most for attacker in ATTACKERS if attacker.most} == {
        f"crashes on {engine}": {"slowest_start_ms": 2_000, "repeated_starts": 30} for engine in ENGINES
    }
    for attacker in ATTACKERS:
        assert (("acknowledged", "found") in attacker.equal) == (attacker.name in ("crashes", "hangups"))
        assert (Path(__file__).with_name(f"{attacker.name}.py")).is_file()


HOPPING = """print('{"hops": 1000, "landed": 1000}')"""
FALLING = 'raise AssertionError("fell at the third hop")'
RESTING = "import time\ntime.sleep(60)"


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, programs: dict[str, str], budget: float = 1) -> Any:
    """Runs attackers that are small programs."""
    attackers = [replace(HOPS, name=name) for name in programs]

    class Popen(command_line.subprocess.Popen):  # type: ignore[name-defined, misc]  # typed as an attribute of a module
        def __init__(self, arguments: list[str], **settings: Any) -> None:
            super().__init__([sys.executable, "-c", programs[arguments[arguments.index("--only") + 1]]], **settings)

    monkeypatch.setattr(command_line, "subprocess", SimpleNamespace(Popen=Popen, STDOUT=command_line.subprocess.STDOUT))
    return command_line.run_all(attackers, 7, budget, folder, small=False)


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
    assert "python -m tests.attacks --only one --engine sqlite --seed 7" in said
    assert "two on sqlite: green" in said


def test_what_takes_longer_than_the_budget_is_ended_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, {"one": RESTING, "two": HOPPING}, budget=0.005) is None
    assert "the time is over, 0.005 minutes; not done: one on sqlite\n" in capsys.readouterr().out


def test_too_small_counts_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, tmp_path, {"one": HOPPING.replace("1000", "999")}) is None
    assert "one on sqlite: hops is 999, at least 1,000 are required" in capsys.readouterr().out


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """Runs the command line; the attackers that it would have run."""
    asked: list[str] = []

    def run_all(attackers: Sequence[Attacker], *_: Any, **__: Any) -> None:
        asked.extend(map(str, attackers))

    def run_one(attacker: Attacker, *_: Any, **__: Any) -> dict[str, int]:
        asked.append(str(attacker))
        return dict.fromkeys(attacker.least, 10**6)

    monkeypatch.setattr(command_line, "run_all", run_all)
    monkeypatch.setattr(command_line, "run_one", run_one)
    monkeypatch.setattr(sys, "argv", ["attacks", *arguments])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    return asked if end.value.code in (0, 1) else [str(end.value.code)]


def test_both_engines_are_attacked_unless_one_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "server", lambda: "postgresql://there")
    assert main(monkeypatch) == list(map(str, ATTACKERS))
    for engine in ENGINES:
        assert main(monkeypatch, "--engine", engine) == [str(each) for each in ATTACKERS if each.engine == engine]
        assert main(monkeypatch, "--engine", engine, "--only", "hangups") == [f"hangups on {engine}"]
    assert main(monkeypatch, "--only", "hangups") == ["hangups on sqlite", "hangups on postgresql"]


def test_without_postgresql_only_the_embedded_engine_is_attacked_and_only_if_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgresql, "server", lambda: None)
    for arguments in ([], ["--engine", "postgresql"], ["--only", "hangups"]):
        (line,) = main(monkeypatch, *arguments)
        assert line == f"{postgresql.HOW_TO_RUN} --engine sqlite does without."
    assert len(main(monkeypatch, "--engine", "sqlite")) == 5


def test_the_readme_shows_the_table_of_the_last_long_run() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("\n## What has tried to break it\n")[2].partition("\n## ")[0]
    stored = (LATEST / "table.md").read_text(encoding="utf-8").strip()
    shown = section.partition("-->\n")[2].partition("\n<!-- end -->")[0]
    assert shown.strip() == stored
    said = json.loads((LATEST / "figures.json").read_text(encoding="utf-8"))
    assert not said["small"]
    results = [(attacker, said["attackers"][attacker.name][attacker.engine]) for attacker in ATTACKERS]
    assert said["attackers"] == facts(results)
    below = stored.removeprefix(f"{table(results, said['seed'])}\n\n")
    assert re.fullmatch(rf"Seed {said['seed']}, {said['minutes']} minutes, \d{{4}}-\d\d-\d\d\.", below)
    for attacker, counts in results:
        assert attacker.lacks(counts) == []
