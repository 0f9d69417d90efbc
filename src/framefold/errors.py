"""Errors that a user can act on, and how a command ends when one is raised."""

import functools
import logging
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input or settings. The message is one line: what is wrong, where, what to do."""


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate the entry point of a stage: log plain lines, end a UserError as one line on stderr with exit code 1."""

    @functools.wraps(main)
    def run() -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
        try:
            main()
        except UserError as error:
            sys.stdout.flush()
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(1) from None

    return run
