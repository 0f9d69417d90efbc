"""Errors that a user can act on, and how a command ends when one is raised."""

import errno
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

FULL = (errno.ENOSPC, errno.EDQUOT)
LOST = re.compile(r"Connection (closed|reset) by (remote )?peer|Broken pipe|Timed out waiting")  # as gloo says it
LOST_TYPES = ("DistBackendError", "DistNetworkError", "DistStoreError")  # and torch.distributed
# what libraries say that lose the error number: safetensors names it, numpy counts what it could not write
FULL_TEXT = re.compile("|".join([*map(os.strerror, FULL), r"^\d+ requested and \d+ written$"]))


class UserError(Exception):
    """Bad input or settings. The message is one line: what is wrong, where, what to do."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it hides, came of a full disk or quota. A UserError has its own words."""
    return not isinstance(error, UserError) and any(
        getattr(each, "errno", None) in FULL or FULL_TEXT.search(str(each)) for each in _hidden(error)
    )


def is_process_lost(error: BaseException) -> bool:
    """Whether this is one of several processes and another one can no longer be reached."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not isinstance(error, RuntimeError):
        return False
    return type(error).__name__ in LOST_TYPES or bool(LOST.search(str(error)))


def _hidden(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those under whose handling it was raised: torch.save hides a full disk behind one of its own."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def disk_full(path: object) -> UserError:
    """What to raise when `path` could not be written for want of room."""
    return UserError(f"{path}: {os.strerror(errno.ENOSPC)}; free the disk and run again, what is finished is kept")


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate the entry point of a stage: log plain lines, end a UserError as one line on stderr with exit code 1.

    So do a full disk and the loss of another process, wherever they are met.
    """

    @functools.wraps(main)
    def run() -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
        try:
            main()
        except UserError as error:
            _end(error)
        except Exception as error:
            if is_disk_full(error):
                _end(disk_full(getattr(error, "filename", None) or os.getcwd()))
            if is_process_lost(error):
                _end(UserError(f"process {os.environ.get('RANK')}: another process of this run has ended; run again"))
            raise

    return run


def _end(error: UserError) -> NoReturn:
    sys.stdout.flush()
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(1) from None
