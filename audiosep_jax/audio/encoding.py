"""Writes M4A, which libsndfile does not: AAC, encoded by PyAV (FFmpeg)."""

import fractions
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from audiosep_jax.errors import AudioFileError, first_line

# FFmpeg's names for WAV's order of 1 to 6 loudspeakers. Its encoder reorders what has more.
_LAYOUTS = ('mono', 'stereo', '3.0', 'quad', '5.0', '5.1')
MAX_CHANNELS = len(_LAYOUTS)
# Bits per second and channel. The format allows 6 bits per sample at most, which low rates would exceed.
_BIT_RATE, _MAX_BITS_PER_SAMPLE = 128_000, 5


def encode_m4a(path: Path, blocks: Iterable[np.ndarray], rate: int, channels: int, bit_rate: int | None = None) -> None:
    """Writes an M4A file.

    The edit list names the encoder's priming samples and, to the sample, the length of the sound, so that players skip
    what the encoder adds in front and behind.

    Args:
        path: the file to write; its suffix does not matter.
        blocks: float32 [n, channels] in ±1.
        rate: one of AAC's sample rates, in Hz.
        channels: from 1 to `MAX_CHANNELS`.
        bit_rate: in bit/s, of all channels together; None: 128 kbit/s for each channel.

    Raises:
        AudioFileError: FFmpeg fails.
        OSError: the file cannot be written.
    """
    import av

    # By default the edit list counts milliseconds. A file object takes names that are not UTF-8.
    options = {'movie_timescale': str(rate)}
    try:
        with path.open('wb') as file, av.open(file, 'w', format='ipod', options=options) as container:
            stream = container.add_stream('aac', rate=rate, layout=_LAYOUTS[channels - 1])
            stream.bit_rate = bit_rate or min(_BIT_RATE, _MAX_BITS_PER_SAMPLE * rate) * channels
            position = 0
            for block in blocks:
                planes = np.ascontiguousarray(block.T, np.float32)
                frame = av.AudioFrame.from_ndarray(planes, format='fltp', layout=_LAYOUTS[channels - 1])
                frame.sample_rate, frame.pts, frame.time_base = rate, position, fractions.Fraction(1, rate)
                container.mux(stream.encode(frame))
                position += len(block)
            container.mux(stream.encode(None))
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise AudioFileError(f'{path}: cannot be written: {first_line(error)}') from error
