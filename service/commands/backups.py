"""backup and restore: a copy of the database, made while it is served, and put back."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from service.commands import Failed, clear_errors
from service.config import database_option
from service.resources import resource
from service.storage.backups import BackupError, Progress
from service.storage.engines import engine_of
from service.storage.queries import load_queries


def file_argument(**settings: Any) -> Callable[[Any], Any]:
    return click.argument("file", type=click.Path(dir_okay=False, resolve_path=True, path_type=Path, **settings))


@click.command()
@file_argument()
@click.option("--overwrite", is_flag=True, help="Put the copy in the place of a file that is there, when it is whole.")
@database_option
def backup(file: Path, overwrite: bool, database: Path | str) -> None:
    """Copy the database to FILE, while it is served or not."""
    engine = engine_of(database)
    queries = load_queries(resource("sql"), engine.name)
    with (
        clear_errors(),
        _failed(),
        click.progressbar(
            # whoever looks at a log wants the result
            length=1,
            label="Copying",
            file=sys.stderr,
            hidden=not sys.stderr.isatty(),
        ) as bar,
    ):
        contents = engine.back_up(file, resource("migrations"), queries, overwrite=overwrite, progress=_shown_by(bar))
    size = file.stat().st_size / 2**20
    click.echo(f"Copied {contents} from {engine} to {file}: {size:,.1f} MiB, checked.")


@click.command()
@file_argument(exists=True)
@click.option("--replace", is_flag=True, help="Keep the database that is there under another name, and replace it.")
@database_option
def restore(file: Path, replace: bool, database: Path | str) -> None:
    """Make FILE, which `backup` made, the database that is served from now on. Stop the server first."""
    engine = engine_of(database)
    queries = load_queries(resource("sql"), engine.name)
    with clear_errors(), _failed():
        restored = engine.restore(file, resource("migrations"), queries, replace=replace)
    click.echo(f"Restored {restored.contents} from {file} to {engine}.")
    if restored.kept:
        click.echo(f"What was there before is kept as {restored.kept}.")
    if restored.contents.missing:
        click.echo(f"It is of an older version and lacks {', '.join(restored.contents.missing)}, which `migrate` adds.")


@contextmanager
def _failed() -> Iterator[None]:
    try:
        yield
    except BackupError as error:
        raise Failed(str(error)) from None


def _shown_by(bar: Any) -> Progress:
    def progress(done: int, total: int) -> None:
        bar.length = total
        bar.update(done - bar.pos)

    return progress
