"""serve: the API on a port."""

import logging
from typing import Any

import click

from service.commands import clear_errors
from service.config import Config, serve_options
from service.logs import Formatter
from service.resources import resource
from service.storage.engines import engine_of


@click.command()
@serve_options
def serve(**options: Any) -> None:
    """Serve the API, and migrate the database first."""
    from service.app import make_app  # the other commands need neither aiohttp nor Connexion
    from service.server import serve as run

    config = Config(**options)
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler])
    # libraries speak at their own length: their debug records hold URLs, bodies and SQL
    for library in ("connexion", "aiosqlite", "asyncio", "redis", "yoyo", "openapi_spec_validator"):
        logging.getLogger(library).setLevel(max(logging.WARNING, logging.getLogger().level))
    with clear_errors():
        if config.workers > 1:
            _serve_with_workers(config)
        else:
            run(make_app(config), config, click.echo)


def _serve_with_workers(config: Config) -> None:
    """Serves with several processes, which share what is outside of them and nothing else."""
    engine = engine_of(config.database)
    if not engine.is_shared:
        raise click.UsageError("more than one worker wants a database that processes can share: --database postgresql://…")
    if config.limiter == Config.limiter:
        raise click.UsageError("more than one worker wants a limiter that processes can share: --limiter redis://…")
    try:
        from service.workers import serve as run
    except ModuleNotFoundError as error:
        raise click.UsageError(f"{error.name} is not installed: pip install 'agent-platform[postgresql]'.") from None
    engine.migrate(resource("migrations"))
    run(config, click.echo)
