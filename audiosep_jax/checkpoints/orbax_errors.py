"""What Orbax and tensorstore say about errors: keeps the reason, and keeps hundreds of lines off the terminal."""

import functools
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import absl.logging

from audiosep_jax.errors import first_line

_STATUS = re.compile(r'[A-Z_]+: ')  # with which tensorstore's messages begin: `RESOURCE_EXHAUSTED: `


class BackgroundErrors(logging.Filter):
    """Takes the errors of background saves out of the log, and keeps the first one.

    Nothing else tells of them before somebody waits for the save, and Orbax logs each with its traceback.

    Args:
        directory: the folder of the saves. The threads of an earlier run in this process, whose save has failed, may
            still report errors about another folder.

    Attributes:
        first: the first error since this was made; None if there was none.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._folder = f'{directory}/'
        self.first: BaseException | None = None
        # In front of those of earlier runs in this process whose saves failed, because the first refusal is final.
        absl.logging.get_absl_logger().filters.insert(0, self)

    def remove(self) -> None:
        """Leaves the log as it is from now on."""
        absl.logging.get_absl_logger().removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether a record is logged."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None or f'{os.sep}orbax{os.sep}' not in record.pathname:
            return True
        if self._folder in record.getMessage():
            self.first = self.first or error
        return False


@functools.cache
def silence_abandoned_futures() -> None:
    """Keeps off the terminal what becomes of the other reads and writes when one of them fails, in this process.

    Orbax then closes its event loop and forgets them. Each prints a traceback: asyncio, because nobody wants its
    result, or tensorstore, because there is no loop to give it to.
    """
    previous = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and 'loop is closed' in str(unraisable.exc_value)):
            previous(unraisable)

    def is_logged(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        is_of_tensorstore = isinstance(error, ValueError) and _STATUS.match(str(error))
        return not (is_of_tensorstore and 'never retrieved' in record.getMessage())

    sys.unraisablehook = hook
    logging.getLogger('asyncio').addFilter(is_logged)


def reason_of(error: BaseException) -> str:
    """Returns why reading or writing failed, in the system's words if it was the system that failed."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore's
    return os.strerror(int(number.group(1))) if number else first_line(error, 300)
