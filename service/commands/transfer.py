"""tenants export, import and delete: a tenant leaves, and comes in elsewhere."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import click

from service.auth import DEMO_KEYS
from service.commands import Failed, no_such_tenant, run_on, run_unit, tenant_id_of, whole_tenant
from service.config import database_option
from service.storage.engines import engine_of
from service.storage.exporting import export_tenant as write_tenant
from service.storage.importing import Contents, check
from service.storage.importing import import_tenant as make_tenant
from service.storage.portable import TransferError, Writer
from service.storage.removing import remove_tenant
from service.storage.scope import Database, Scope
from service.storage.units import Row, Unit, ask
from service.times import utc_now

tenant_argument = click.argument("tenant_id", metavar="ID", callback=tenant_id_of)


@click.command("export")
@tenant_argument
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@database_option
def export_tenant(tenant_id: str, file: Path, database: Path | str) -> None:
    """Write all that the tenant ID has, but for its keys, to FILE, which must not be there."""
    tenant = run_unit(database, lambda: whole_tenant(tenant_id))
    with _new_file(file) as beside:
        writer = Writer(beside, tenant, utc_now(), engine_of(database).name)

        async def all_of_it(storage: Database) -> None:
            with _bar(await _count_runs(storage, tenant_id), "Exporting runs") as told:
                await write_tenant(storage, writer, tenant_id, told)

        with _clear_failures():
            run_on(database, all_of_it, for_long_queries=True)
    click.echo(f"Exported the tenant {tenant_id} to {_name(file)}: {_said(writer.counts)}.")


@click.command("import")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--as", "tenant_id", metavar="ID", callback=tenant_id_of, help="The tenant's id.  [default: the one in FILE]")
@click.option("--keep-ids", is_flag=True, help="Refuse instead of giving new ids where others have some of them.")
@database_option
@click.pass_context
def import_tenant(context: click.Context, file: Path, tenant_id: str | None, keep_ids: bool, database: Path | str) -> None:
    """Make a tenant with all that FILE has, which `tenants export` has written."""
    with _opened(file) as exported:
        try:
            contents = check(exported)
        except TransferError as error:
            raise Failed(f"{error} Nothing was changed.") from None
        # an id from a file is looked at as one from the command line
        made = tenant_id or cast("str", tenant_id_of(context, context.command.params[0], contents.tenant["id"]))

        async def all_of_it(storage: Database) -> Mapping[str, int]:
            with _bar(sum(contents.counts.values()), "Importing") as told:
                return await make_tenant(storage, exported, contents, made, keep_ids=keep_ids, written=told)

        with _clear_failures():
            shifts = run_on(database, all_of_it, for_long_queries=True)
    click.echo(f"Imported the tenant {made}: {_said(contents.counts)}. It has no keys yet: `agent-platform keys create`.")
    if shifts:
        click.echo(f"Other tenants have some of its ids, so that all of it has new ones: {_moved(shifts, contents)}.")


@click.command("delete")
@tenant_argument
@click.option("--confirm", metavar="ID", help="The tenant's id once more, instead of being asked for it.")
@database_option
def delete_tenant(tenant_id: str, confirm: str | None, database: Path | str) -> None:
    """Delete the tenant ID with all that it has, after its id was typed once more."""
    _tenant(database, tenant_id)

    async def count(storage: Database) -> dict[str, int]:
        view = Scope(storage, tenant_id, None)
        tools, agents = [await view.value(f"count_{kind}", name=None) for kind in ("tools", "agents")]
        keys = await view.value("count_keys")
        return {"api_keys": keys, "tools": tools, "agents": agents, "runs": await _count_runs(storage, tenant_id)}

    counts = run_on(database, count)
    if confirm is None:
        confirm = _asked(f"The tenant {tenant_id} has {_said(counts)}. All of it will be gone. Type its id to delete it")
    if confirm != tenant_id:
        raise Failed(f"That is not the id {tenant_id}. Nothing was deleted.")

    async def all_of_it(storage: Database) -> None:
        with _bar(counts["runs"], "Deleting runs") as told:
            await remove_tenant(storage, tenant_id, told)

    with _clear_failures():
        run_on(database, all_of_it, for_long_queries=True)
    click.echo(f"Deleted the tenant {tenant_id}: {_said(counts)}.")
    if tenant_id in DEMO_KEYS.values():
        click.echo("It is a demo tenant: a server that accepts the demo keys makes it anew, empty, when it starts.")


def _tenant(database: Path | str, tenant_id: str) -> Row:
    def unit() -> Unit[Row]:
        tenant: Row | None = yield ask("get_tenant", id=tenant_id)
        if tenant is None:
            raise no_such_tenant(tenant_id)
        return tenant

    return run_unit(database, unit)


async def _count_runs(storage: Database, tenant_id: str) -> int:
    count: int = await Scope(storage, tenant_id, None).value("total_runs", agent_id=0, status=None, model=None)
    return count


@contextmanager
def _clear_failures() -> Iterator[None]:
    try:
        yield
    except TransferError as error:
        raise Failed(str(error)) from None


@contextmanager
def _new_file(file: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when it is whole; what was begun and did not end well goes."""
    beside = None
    try:
        if file.exists():
            raise Failed(f"{_name(file)} exists already.")
        # it holds prompts: like the database, it is for its owner's eyes
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f"{file.name}.", suffix=".part", delete=False) as opened:
            beside = Path(opened.name)
            yield cast("BinaryIO", opened.file)
            opened.flush()
            os.fsync(opened.fileno())
        # an empty one first, which takes the place of nothing that has come meanwhile
        file.open("xb").close()
        beside.replace(file)
    except OSError as error:
        raise Failed(f"{_name(file)} can't be written: {error.strerror}.") from None
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    try:
        with file.open("rb") as opened:
            if not opened.seekable():
                raise Failed(f"{_name(file)} can't be imported: it is read twice, and has to be a file.")
            yield opened
    except OSError as error:
        raise Failed(f"{_name(file)} can't be read: {error.strerror}.") from None


def _name(file: Path) -> str:
    """A file's name that can be printed, whatever its bytes are."""
    return click.format_filename(file)


@contextmanager
def _bar(length: int, label: str) -> Iterator[Callable[[int], None]]:
    """Shows how far a command is, to somebody who looks."""
    with click.progressbar(length=length, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        yield cast("Any", bar).update


def _asked(question: str) -> str:
    try:
        answer: str = click.prompt(question, err=True, default="", show_default=False)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        # at its end, or there is none
        return ""
    return answer.strip()


def _said(counts: Mapping[str, int]) -> str:
    """What there is, in words."""
    names = {"api_keys": "key", "tools": "tool", "agents": "agent", "runs": "run"}
    told = [f"{counts[name]} {word}{'' if counts[name] == 1 else 's'}" for name, word in names.items() if name in counts]
    return f"{', '.join(told[:-1])} and {told[-1]}"


def _moved(shifts: Mapping[str, int], contents: Contents) -> str:
    names = {"tools": "tools", "agent_ids": "agents", "runs": "runs"}
    moved = [
        f"of {name}, {contents.least[kind]} is {contents.least[kind] + shifts[kind]}"
        for kind, name in names.items()
        if kind in shifts
    ]
    return f"{'; '.join(moved)}, and so on"
