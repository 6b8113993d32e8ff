"""doctor: what is well and what is not, with a service so configured, its database and its machine."""

import asyncio
import json
import logging
import resource as limits
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from service.commands import clear_errors
from service.commands.serving import why_not
from service.config import Config, is_loopback, serve_options
from service.errors import Unavailable
from service.limiter import Limit
from service.resources import resource
from service.storage.engines import engine_of
from service.storage.examination import Finding, ok, problem, warning
from service.storage.queries import load_queries

# when this was written: no clock that is right says less
_THIS_YEAR = 2026
# files that a process has open beside its connections: the database's, the log, the loop's own
_FILES = 64


@click.command()
@serve_options
@click.option(
    "--format", "form", type=click.Choice(("text", "json")), default="text", show_default=True, help="JSON: one array."
)
@click.pass_context
def doctor(context: click.Context, /, form: str, **options: Any) -> None:
    """Look for what is wrong with a service of these options, which are those of `serve`. Nothing is changed.

    It works beside a server, and ends with 1 where it finds a problem.
    """
    findings: list[Finding] = []
    with clear_errors():
        for finding in _findings(Config(**options)):
            findings.append(finding)
            if form == "text":
                # as it comes: a large database takes its time
                click.echo(f"{finding.level:<8} {finding.what}{' ' if finding.help else ''}{finding.help}")
    if form == "json":
        click.echo(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    context.exit(int(any(finding.level == "problem" for finding in findings)))


def _findings(config: Config) -> Iterator[Finding]:
    engine = engine_of(config.database)
    yield from engine.examine(resource("migrations"), load_queries(resource("sql"), engine.name), workers=config.workers)
    if (refusal := why_not(config)) is not None:
        yield problem(f"Together these options are not served: {refusal}", "Change one of them.")
    yield _clock(datetime.now(UTC))
    yield _demo(config)
    yield _files(config, limits.getrlimit(limits.RLIMIT_NOFILE)[1])
    if config.limiter != Config.limiter:
        yield asyncio.run(_limiter(config))


def _clock(now: datetime) -> Finding:
    said = f"This machine's clock says {now:%Y-%m-%d %H:%M:%S} UTC."
    return ok(said) if _THIS_YEAR <= now.year < _THIS_YEAR + 50 else problem(said, "Set it, before anything is written.")


def _demo(config: Config) -> Finding:
    if not config.serves_demo:
        return ok("The demo keys are not accepted.")
    if is_loopback(config.host):
        said = "Name a proxy on this machine with --trusted-proxy, or say --no-demo."
        return ok(f"The demo keys are accepted on {config.host} alone. {said}")
    return problem(
        f"On {config.host}, whoever reaches this machine may use the demo keys, which everybody knows.", "Say --no-demo."
    )


def _files(config: Config, most: int) -> Finding:
    # as many requests wait for their bodies at the most as twice those that are worked on
    needed = 3 * config.concurrency + _FILES
    if most == limits.RLIM_INFINITY or most >= needed:
        return ok(f"A process may have the {needed:,} files open that {config.concurrency:,} requests at once may want.")
    return warning(
        f"A process may have {most:,} files open, and {config.concurrency:,} requests at once may want {needed:,}.",
        "Raise the limit (`ulimit -Hn`, LimitNOFILE= of systemd), or lower --concurrency.",
    )


async def _limiter(config: Config) -> Finding:
    from service.shared_limiter import SharedWindow, connections_to  # its driver comes with an extra

    # what it logs is said below
    logging.getLogger("service.shared_limiter").addHandler(logging.NullHandler())
    shared = SharedWindow(connections_to(config.limiter), config.rate_limit, config.rate_window)
    try:
        # of a tenant that nobody has, and nothing is counted
        await shared.look("", Limit(config.rate_limit, config.rate_window))
    except Unavailable as error:
        reason = str(error.__cause__) or "no answer within a second"
        said = f"The shared limiter does not answer ({' '.join(reason.split())}):"
        if config.limiter_fallback == "refuse":
            return problem(f"{said} runs are refused.", "Start it, or see whether the URL of --limiter is right.")
        return warning(
            f"{said} each process counts runs by itself.", "Start it, or see whether the URL of --limiter is right."
        )
    finally:
        await shared.close()
    return ok("The shared limiter answers.")
