"""What was measured: figures, the table of them, and the machine they are from."""

import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One line of the table. `bound` is the least that `value` must be, or, with `at_most`, the most, where there is one."""

    name: str
    value: float
    bound: float | None
    unit: str = ""
    at_most: bool = False
    detail: str = ""

    @property
    def reached(self) -> bool:
        if self.bound is None:
            return True
        return self.value <= self.bound if self.at_most else self.value >= self.bound


def table(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table."""
    lines = ["| figure | measured | required | reached | medians |", "|---|---:|---:|---|---|"]
    for figure in figures:
        sign = "≤" if figure.at_most else "≥"
        measured = f"{figure.value:.2f}{figure.unit}"
        required, reached = "", ""
        if figure.bound is not None:
            required, reached = f"{sign} {figure.bound:g}{figure.unit}", "yes" if figure.reached else "NO"
        lines.append(f"| {figure.name} | {measured} | {required} | {reached} | {figure.detail} |")
    return "\n".join(lines)


def machine(folder: Path) -> str:
    """One line about the machine, with what one flush of `folder`'s disk takes."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return (
        f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}, "
        f"one flush of the disk {_flush_ms(folder):.2f} ms"
    )


def _flush_ms(folder: Path) -> float:
    """The median time of an append of 4 KiB and its fdatasync, in milliseconds."""
    file, taken = folder / "flush", []
    with file.open("wb", buffering=0) as stream:
        for _ in range(100):
            stream.write(bytes(4096))
            began = time.perf_counter()
            os.fdatasync(stream.fileno())
            taken.append((time.perf_counter() - began) * 1000)
    file.unlink()
    return statistics.median(taken)
