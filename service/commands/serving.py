"""serve: the API on a port."""

from typing import Any

import click

from service.commands import clear_errors
from service.config import Config, serve_options
from service.resources import resource
from service.storage.engines import engine_of


@click.command()
@serve_options
def serve(**options: Any) -> None:
    """Serve the API, and migrate the database first."""
    from service.app import make_app  # the other commands need neither aiohttp nor Connexion
    from service.records import log_to_stderr
    from service.server import serve as run

    config = Config(**options)
    log_to_stderr(config.log_level, config.log_format)
    if (refusal := why_not(config)) is not None:
        raise click.UsageError(refusal)
    with clear_errors():
        if config.workers > 1:
            _serve_with_workers(config)
        else:
            run(make_app(config), config, click.echo)


def why_not(config: Config) -> str | None:
    """Why options that are right one by one can't be served together, and what can; None where they can."""
    if config.metrics_port and config.metrics_port == config.port:
        return "--metrics-port wants a port of its own: --port has this one."
    if config.workers == 1:
        return None
    if not engine_of(config.database).is_shared:
        return "more than one worker wants a database that processes can share: --database postgresql://…"
    if config.limiter == Config.limiter:
        return "more than one worker wants a limiter that processes can share: --limiter redis://…"
    if config.metrics_port is not None:
        return (
            "--metrics-port wants one worker: each tells of itself alone, and on one port none could be asked for by itself."
        )
    return None


def _serve_with_workers(config: Config) -> None:
    """Serves with several processes, which share what is outside of them and nothing else."""
    engine = engine_of(config.database)
    try:
        from service.workers import serve as run
    except ModuleNotFoundError as error:
        raise click.UsageError(f"{error.name} is not installed: pip install 'agent-platform[postgresql]'.") from None
    engine.migrate(resource("migrations"))
    run(config, click.echo)
