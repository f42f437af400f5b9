"""The token that requests must carry, if the server asks for one.

It comes as `Authorization: Bearer TOKEN`, or as the password of HTTP's basic authentication, for which browsers ask
their users; the user name does not matter.
"""

import base64
import binascii
import hmac
import os
import re
from pathlib import Path

from audiosep_jax.errors import ConfigError

VARIABLE = 'AUDIOSEP_JAX_TOKEN'
CHALLENGES = ('Basic realm="audiosep-jax", charset="UTF-8"', 'Bearer')  # the first makes browsers ask
_TOKEN = re.compile(r'[!-~]+')  # what fits into a header: ASCII without spaces


class Token:
    """A token, or none.

    Attributes:
        is_launched: whether the server has started. Gradio's own request at the start carries no token.
    """

    def __init__(self, value: str = ''):
        self._value = value.encode()
        self.is_launched = False

    def admits(self, authorization: str | None) -> bool:
        """Returns whether a request with this header, if it has one, may pass. Takes the same time for every guess."""
        return not self._value or hmac.compare_digest(_credential(authorization or ''), self._value)


def read_token(flag: str | None) -> str:
    """Returns the token of `--token`, TOKEN or @FILE, or of the environment; '' if neither is given.

    Raises:
        ConfigError: the file cannot be read, or the token is empty or holds anything but ASCII without spaces. The
            message does not quote it.
    """
    if flag is None:
        source, value = VARIABLE, os.environ.get(VARIABLE)
        if value is None:
            return ''
    elif flag.startswith('@'):
        source = f'--token {flag}'
        try:
            value = Path(flag[1:]).expanduser().read_text('utf-8').strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else 'not UTF-8 text'
            raise ConfigError(f'{source}: cannot be read: {reason}') from None
    else:
        source, value = '--token', flag
    if not _TOKEN.fullmatch(value):
        raise ConfigError(f'{source}: the token must be one or more ASCII characters without spaces')
    return value


def _credential(authorization: str) -> bytes:
    """Returns what the header presents as the token, or nothing."""
    scheme, _, rest = authorization.strip().partition(' ')
    if scheme.lower() == 'bearer':
        return rest.strip().encode('utf-8', 'replace')
    if scheme.lower() == 'basic':
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b':')[2]
        except (binascii.Error, ValueError):
            return b''
    return b''
