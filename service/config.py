"""The configuration: one frozen dataclass, and the options that fill it. The only place that reads the environment."""

import ipaddress
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from service.addresses import Network, proxy_network
from service.storage.engines import is_url
from service.times import duration

_FALLBACKS = ("refuse", "local")
_LOG_FORMATS = ("auto", "text", "json")
_LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Config:
    """What `serve` is told. `demo` None means: where only this machine can reach the service, as far as it can tell."""

    host: str = "127.0.0.1"
    port: int = 8000
    database: Path | str = Path("agent-platform.db")
    workers: int = 1
    rate_limit: int = 5
    rate_window: int = 60
    limiter: str = "local"
    limiter_fallback: str = "refuse"
    wrong_key_limit: int = 100
    concurrency: int = 512
    request_timeout: float = 10
    trusted_proxy: tuple[Network, ...] = ()
    # None: for good
    keep_runs: timedelta | None = None
    demo: bool | None = None
    metrics_port: int | None = None
    log_level: str = "info"
    log_format: str = "auto"

    @property
    def serves_demo(self) -> bool:
        """Are the demo keys accepted? Behind a proxy, others than this machine reach the loopback address."""
        return is_loopback(self.host) and not self.trusted_proxy if self.demo is None else self.demo


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


class Whole(click.IntRange):
    """A whole number in plain digits: int() would also take signs of other scripts, underscores and spaces."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and not re.fullmatch(r"-?[0-9]{1,16}", value, re.ASCII):
            self.fail(f"{value!a} is no whole number.", param, ctx)
        return super().convert(value, param, ctx)


def _limiter(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if value == Config.limiter:
        return value
    try:
        from service.shared_limiter import connections_to  # its driver comes with an extra
    except ImportError:
        raise click.BadParameter("this needs the driver: pip install 'agent-platform[redis]'.") from None
    try:
        connections_to(value)
    except ValueError:
        # the value, which is not repeated, may hold a password
        raise click.BadParameter("it is neither local nor redis://HOST:PORT/NUMBER, rediss:// or valkey://.") from None
    return value


def duration_of(context: click.Context, parameter: click.Parameter, value: str | None) -> timedelta | None:
    try:
        return None if value is None else duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _host(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        if not value:
            raise ValueError
        socket.getaddrinfo(value, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        raise click.BadParameter(f"{value!a} is no address to listen on.") from None
    return value


def _database(context: click.Context, parameter: click.Parameter, value: str) -> Path | str:
    try:
        if is_url(value):
            return value
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if value == ":memory:" or not value.strip():
        raise click.BadParameter("the database is a file, named by its path.")
    try:
        path = Path(value).expanduser().resolve()
        if path.exists() and not path.is_file():
            raise click.BadParameter(f"{str(path)!a} is no file.")
        if not path.parent.is_dir():
            raise click.BadParameter(f"the folder {str(path.parent)!a} does not exist.")
    except (OSError, RuntimeError, ValueError):
        raise click.BadParameter(f"{value!a} is no path that can be used.") from None
    return path


def _trusted_proxy(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[Network, ...]:
    found: list[Network] = []
    for value in values:
        parts = [part.strip() for part in value.split(",") if part.strip()]
        try:
            if not parts:
                raise ValueError
            found += map(proxy_network, parts)
        except ValueError:
            raise click.BadParameter(
                f"{value!a} holds something else than addresses and networks of proxies, such as 10.0.0.7 or 10.0.0.0/8."
            ) from None
    return tuple(found)


database_option = option(
    "--database",
    default=str(Config.database),
    show_default=True,
    metavar="FILE|URL",
    callback=_database,
    help="The SQLite file, or the postgresql:// URL of a PostgreSQL database.",
)


def location_option(name: str, argument: str, **settings: Any) -> Callable[[Any], Any]:
    """An option that names a database, and no environment variable does."""
    return click.option(name, argument, required=True, metavar="FILE|URL", callback=_database, **settings)


def serve_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of `serve`, which arrive as the fields of Config."""
    options = (
        option("--host", default=Config.host, show_default=True, callback=_host, help="The address to listen on."),
        option(
            "--port",
            type=Whole(0, 65535),
            default=Config.port,
            show_default=True,
            help="0: any free one.",
        ),
        database_option,
        option(
            "--workers",
            type=Whole(1, 1_000),
            default=Config.workers,
            show_default=True,
            help="Processes on one port; more than one want PostgreSQL and a shared limiter.",
        ),
        option(
            "--rate-limit",
            type=Whole(1, 1_000_000),
            default=Config.rate_limit,
            show_default=True,
            help="Runs per tenant and window.",
        ),
        option(
            "--rate-window",
            type=Whole(1, 86_400),
            default=Config.rate_window,
            show_default=True,
            help="Seconds.",
        ),
        option(
            "--limiter",
            metavar="local|URL",
            default=Config.limiter,
            show_default=True,
            callback=_limiter,
            help="Where runs are counted: in this process, or in redis://HOST for all that are told so.",
        ),
        option(
            "--limiter-fallback",
            type=click.Choice(_FALLBACKS),
            default=Config.limiter_fallback,
            show_default=True,
            help="What becomes of runs while the URL does not answer.",
        ),
        option(
            "--wrong-key-limit",
            type=Whole(1, 1_000_000),
            default=Config.wrong_key_limit,
            show_default=True,
            help="Wrong keys per address and minute.",
        ),
        option(
            "--concurrency",
            type=Whole(1, 100_000),
            default=Config.concurrency,
            show_default=True,
            help="Requests at once; more get 503.",
        ),
        option(
            "--request-timeout",
            type=Whole(1, 3_600),
            default=Config.request_timeout,
            show_default=True,
            help="Seconds for the headers of a request, and for its body.",
        ),
        option(
            "--trusted-proxy",
            metavar="ADDRESS|NETWORK",
            multiple=True,
            callback=_trusted_proxy,
            help="A proxy whose X-Forwarded-For is believed; several, with commas or one option each.",
        ),
        option(
            "--keep-runs",
            metavar="TIME",
            callback=duration_of,
            help="Delete runs that are older, as in 90d: a number and one of s, m, h, d and w.  [default: keep all]",
        ),
        option(
            "--demo/--no-demo",
            default=None,
            help="Accept key_tenant_a and key_tenant_b.  [default: on the loopback address without --trusted-proxy only]",
        ),
        option(
            "--metrics-port",
            type=Whole(0, 65535),
            help="A port of its own for /metrics, on the same host; 0: any free one.  [default: where the API is]",
        ),
        option(
            "--log-level",
            type=click.Choice(_LOG_LEVELS, case_sensitive=False),
            default=Config.log_level,
            show_default=True,
            help="What is logged to standard error.",
        ),
        option(
            "--log-format",
            type=click.Choice(_LOG_FORMATS, case_sensitive=False),
            default=Config.log_format,
            show_default=True,
            help="Lines to read, or of JSON; auto: to read on a terminal.",
        ),
    )
    for each in reversed(options):
        command = each(command)
    return command
