"""The command line. What the commands do stands in service/commands."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import click

from service import __version__
from service.commands.backups import backup, restore
from service.commands.databases import copy, migrate
from service.commands.doctor import doctor
from service.commands.keys import keys
from service.commands.monitoring import monitoring
from service.commands.runs import runs
from service.commands.serving import serve
from service.commands.tenants import tenants
from service.commands.transfer import delete_tenant, export_tenant, import_tenant


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line. A wrong value is one line and exit code 2; what can't be done now, one line and 1."""
    _open_what_is_closed()
    try:
        with _stopped_in_order():
            code = cli.main(arguments, prog_name="agent-platform", standalone_mode=False)
            sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = error.exit_code
    except click.ClickException as error:
        click.echo(f"agent-platform: {' '.join(error.format_message().split())}", err=True)
        code = error.exit_code
    except click.exceptions.Abort:
        code = 130
    except OSError as error:
        # what the commands open, they answer for themselves
        click.echo(f"agent-platform: Standard output can't be written: {error.strerror}.", err=True)
        # nor can what is left of it, at the end of the process
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def _stopped_in_order() -> Iterator[None]:
    """A command that is told to stop takes away what it has not finished; `serve` listens to these signals itself."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    # nohup has it ignored
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _open_what_is_closed() -> None:
    """Gives a process that was started without one of its three streams an empty one.

    Else the next file or socket would get that number, and libuv ends a process that closes it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # as long as the process


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="agent-platform")
def cli() -> None:
    """A multi-tenant backend for AI agents. Each option reads the environment variable that its help names, too."""


for command in (serve, migrate, copy, backup, restore, doctor, tenants, keys, runs, monitoring):
    cli.add_command(command)
for command in (export_tenant, import_tenant, delete_tenant):
    tenants.add_command(command)


if __name__ == "__main__":
    main()
