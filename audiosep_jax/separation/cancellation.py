"""Notices channels that cancel in their mean, such as a stereo recording with one channel inverted.

The network hears the mean of the channels, so of such a recording it hears nothing.
"""

import logging
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float

_SECONDS = 10.0  # after which a stream is judged, because a live one may never end
_LIMIT = 0.01  # of the channels' energy: 20 dB below it
_SILENCE = 1e-9  # mean square below which nothing is said, -90 dB of full scale
_log = logging.getLogger(__name__)


class Cancellation:
    """The energies of the channels and of their mean, in what has been heard so far."""

    def __init__(self) -> None:
        self.samples = 0
        self._of_mean = self._of_channels = 0.0
        self._channels = 1

    def push(self, block: Float[np.ndarray, 'channels _']) -> None:
        """Adds a block."""
        self.samples += block.shape[-1]
        self._channels = len(block)
        self._of_mean += float(np.square(block.mean(axis=0, dtype=np.float64)).sum())
        self._of_channels += float(np.square(block, dtype=np.float64).sum()) / len(block)

    def message(self) -> str | None:
        """Returns what to say if the channels cancel; None if they do not."""
        # The mean of C independent channels has 1/C of their energy, which is little for many channels.
        limit = min(_LIMIT, 0.1 / self._channels)
        if self._of_channels <= _SILENCE * self.samples or self._of_mean >= limit * self._of_channels:
            return None
        decibels = min(-10 * np.log10(max(self._of_mean / self._of_channels, 1e-30)), 100)
        return (
            f'the channels cancel in their mean, which the network hears: it is {decibels:.0f} dB quieter than they '
            'are; separate each channel by itself with --per-channel (in Python: per_channel=True)'
        )


def cancels(audio: Float[np.ndarray, 'channels _']) -> bool:
    """Returns whether the channels of a recording cancel."""
    heard = Cancellation()
    heard.push(audio)
    return heard.message() is not None


def warn_of_cancellation(
    blocks: Iterable[Float[np.ndarray, 'channels _']], sample_rate: int
) -> Iterator[Float[np.ndarray, 'channels _']]:
    """Passes the blocks of a recording on, and logs one warning if its channels cancel.

    It judges the first ten seconds, or the whole of a shorter recording.
    """
    heard, is_judged = Cancellation(), False
    for block in blocks:
        if not is_judged:
            heard.push(block)
            if heard.samples >= _SECONDS * sample_rate:
                is_judged = True
                _warn(heard)
        yield block
    if not is_judged:
        _warn(heard)


def _warn(heard: Cancellation) -> None:
    message = heard.message()
    if message is not None:
        _log.warning('%s', message)
