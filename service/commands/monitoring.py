"""monitoring: what Grafana and Prometheus are given to watch a service with."""

from pathlib import Path

import click

_FOLDER = Path(__file__).parents[1] / "monitoring"


@click.group()
def monitoring() -> None:
    """What Grafana and Prometheus are given to watch a service with."""


@monitoring.command()
def dashboard() -> None:
    """Print a dashboard, as JSON that Grafana imports."""
    click.echo((_FOLDER / "dashboard.json").read_text(encoding="utf-8"), nl=False)


@monitoring.command()
def alerts() -> None:
    """Print alert rules, as YAML for Prometheus's rule_files."""
    click.echo((_FOLDER / "alerts.yaml").read_text(encoding="utf-8"), nl=False)
