"""A tenant into a file, as one state of it.

What a tenant defines and has used is read in one unit of work, and with it the largest ids of a run and of a change. These
are never changed, and a new one has a larger id: so those up to it can be read in batches afterwards, however long that
takes, while a server goes on.
"""

from collections.abc import Callable

from service.storage.copying import batches
from service.storage.portable import COUNTED, TABLES, TransferError, Writer
from service.storage.scope import Database, Scope, Unscoped
from service.storage.units import Row, Unit, ask

# rows of a batch that only defines
_BATCH = 100


async def export_tenant(source: Database, writer: Writer, tenant_id: str, read: Callable[[int], None]) -> None:
    """Writes all lines of the tenant but the header; `read` is told of each batch of runs.

    Raises TransferError where the tenant was deleted meanwhile, OSError where the file can't be written.
    """
    view = Scope(source, tenant_id, None)
    last, total, changes, used = await view.read(_definitions(writer))
    if last:
        async for rows in batches(view, "runs", TABLES["runs"].before):
            rows = [row for row in rows if row["id"] <= last]
            writer.add("runs", rows)
            read(len(rows))
            if not rows or rows[-1]["id"] == last:
                break
    writer.add("usage", used)
    if writer.counts["runs"] != total:
        raise TransferError(f"Runs of the tenant {tenant_id} were deleted meanwhile. Nothing was written.")
    async for rows in batches(view, "audit_log", TABLES["audit_log"].before):
        writer.add("audit_log", [row for row in rows if row["id"] <= changes])
    # ids of what was deleted are not to be given again, and may have been the largest; read last, so that none is missing
    lasts = await Unscoped(source).many("list_last_ids")
    writer.add("last_ids", sorted((each for each in lasts if each["name"] in COUNTED), key=lambda each: each["name"]))
    writer.end()


def _definitions(writer: Writer) -> Unit[tuple[int, int, int, list[Row]]]:
    """Writes what the tenant defines, all on one state; what else is to be as of then.

    That is the largest id of a run, how many runs there are, the largest id of a change, and what was used.
    """
    for name in ("tools", "agent_ids", "agents", "agent_tools"):
        before = TABLES[name].before
        at = before
        while rows := (yield ask(f"read_{name}", **at, limit=_BATCH)):
            writer.add(name, rows)
            at = {column: rows[-1][column] for column in before}
    last = yield ask("last_runs")
    total = yield ask("total_runs", agent_id=0, status=None, model=None)
    changed = yield ask("last_audit_log")
    used: list[Row] = []
    at = TABLES["usage"].before
    while rows := (yield ask("read_usage", **at, limit=_BATCH)):
        used += rows
        at = {column: rows[-1][column] for column in at}
    return (last["id"] if last else 0), total, (changed["id"] if changed else 0), used
