"""What all commands share: errors in one line with their exit code, wherever they come from, and a progress line."""

from __future__ import annotations

import errno
import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from runtime.errors import Dinov3SegError, OutputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what any library raises where a disk takes no more
# Messages hold brackets of their own, and a log file is as wide as the tables need.
console = Console(stderr=True, markup=False, highlight=False, width=None if sys.stderr.isatty() else 130)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Prints an error that a user can cause as one line and exits with its code; so for warnings and Ctrl-C.

    A terminated command ends like an interrupted one: what it has not finished is removed on the way out.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    warnings.showwarning = _one_line_warning
    try:
        yield
    except Dinov3SegError as error:
        console.print(f"error: {error}", style="red", soft_wrap=True)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        if error.errno not in FULL:
            raise
        text = f"error: {error.strerror}: nothing unfinished is left; make room, or write to another disk"
        console.print(text, style="red", soft_wrap=True)
        raise typer.Exit(OutputError.exit_code) from None
    except KeyboardInterrupt:
        console.print("interrupted; nothing unfinished is left", style="red")
        raise typer.Exit(130) from None


def show_memory_plans() -> None:
    """Prints what the GPU pipeline is about to allocate, which it logs."""
    log = logging.getLogger("runtime.cuda")
    log.setLevel(logging.INFO)
    if not log.handlers:
        log.addHandler(RichHandler(console=console, show_time=False, show_level=False, show_path=False))


def _one_line_warning(message: Warning | str, *_: object, **__: object) -> None:
    console.print(f"warning: {message}", style="yellow", soft_wrap=True)


@contextmanager
def spinner() -> Iterator[Callable[[str], None]]:
    """A line with what is being done and for how long; plain lines where the output is not a terminal."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=None)

        def announce(text: str) -> None:
            progress.reset(task, description=text)
            if not console.is_terminal:
                console.print(text)

        yield announce
