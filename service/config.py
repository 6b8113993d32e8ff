"""The configuration: one frozen dataclass, and the options that fill it. The only place that reads the environment."""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

_LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Config:
    """What `serve` is told. `demo` None means: where only this machine can reach the service."""

    host: str = "127.0.0.1"
    port: int = 8000
    database: Path = Path("agent-platform.db")
    rate_limit: int = 5
    rate_window: int = 60
    demo: bool | None = None
    log_level: str = "info"

    @property
    def serves_demo(self) -> bool:
        """Are the demo keys accepted?"""
        return is_loopback(self.host) if self.demo is None else self.demo


def is_loopback(host: str) -> bool:
    """Does `host` bind to this machine alone? Names other than localhost may resolve to anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def option(name: str, **settings: Any) -> Callable[[Any], Any]:
    """A click option that reads AGENT_PLATFORM_… too, and says so in its help."""
    long = name.split("/")[0].removeprefix("--")
    variable = "AGENT_PLATFORM_" + long.upper().replace("-", "_")
    return click.option(name, envvar=variable, show_envvar=True, **settings)


def _database(context: click.Context, parameter: click.Parameter, value: str) -> Path:
    if value == ":memory:" or "\0" in value or not value.strip():
        raise click.BadParameter("the database is a file, named by its path.")
    path = Path(value).expanduser().resolve()
    if path.is_dir():
        raise click.BadParameter(f"{path} is a folder, not a file.")
    if not path.parent.is_dir():
        raise click.BadParameter(f"the folder {path.parent} does not exist.")
    return path


database_option = option(
    "--database",
    default=str(Config.database),
    show_default=True,
    metavar="FILE",
    callback=_database,
    help="The SQLite file.",
)


def serve_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of `serve`, which arrive as the fields of Config."""
    options = (
        option("--host", default=Config.host, show_default=True, help="The address to listen on."),
        option(
            "--port",
            type=click.IntRange(0, 65535),
            default=Config.port,
            show_default=True,
            help="0: any free one.",
        ),
        database_option,
        option(
            "--rate-limit",
            type=click.IntRange(1, 1_000_000),
            default=Config.rate_limit,
            show_default=True,
            help="Runs per tenant and window.",
        ),
        option(
            "--rate-window",
            type=click.IntRange(1, 86_400),
            default=Config.rate_window,
            show_default=True,
            help="Seconds.",
        ),
        option(
            "--demo/--no-demo",
            default=None,
            help="Accept key_tenant_a and key_tenant_b.  [default: on the loopback address only]",
        ),
        option(
            "--log-level",
            type=click.Choice(_LOG_LEVELS, case_sensitive=False),
            default=Config.log_level,
            show_default=True,
            help="What is logged to standard error.",
        ),
    )
    for each in reversed(options):
        command = each(command)
    return command
