"""Samples without a header, as pipes carry them, in the formats that ffmpeg and sox call s16le, f32le and so on."""

from collections.abc import Callable, Iterator
from typing import BinaryIO, Literal, get_args

import numpy as np

from audiosep_jax.errors import AudioFileError

RawFormat = Literal['u8', 's16le', 's24le', 's32le', 'f32le', 'f64le']
RAW_FORMATS: tuple[str, ...] = get_args(RawFormat)
_MAX_READ = 65536  # bytes; a pipe gives what it has
_BITS = {'u8': 8, 's16le': 16, 's24le': 24, 's32le': 32}
_TYPES = {'u8': '<u1', 's16le': '<i2', 's32le': '<i4', 'f32le': '<f4', 'f64le': '<f8'}


def sample_bytes(form: RawFormat) -> int:
    """Returns the size of one sample in bytes."""
    return 3 if form == 's24le' else np.dtype(_TYPES[form]).itemsize


def read_raw(file: BinaryIO, form: RawFormat, channels: int, note: Callable[[str], None]) -> Iterator[np.ndarray]:
    """Reads interleaved samples until the end of the file, and yields them as float32 [channels, n] as they arrive.

    Args:
        file: a buffered file, for example standard input. A pipe is read without waiting for more than it has.
        form: the format of the samples.
        channels: how many are interleaved.
        note: called with a message if the last bytes make no whole frame.

    Raises:
        AudioFileError: there is no whole frame, or reading fails.
    """
    frame, rest, has_frames = sample_bytes(form) * channels, b'', False
    while True:
        try:
            data = file.read1(_MAX_READ)  # type: ignore[attr-defined]  # buffered files have it, BinaryIO does not
        except OSError as error:
            raise AudioFileError(f'standard input cannot be read: {error.strerror}') from error
        if not data:
            break
        rest += data
        whole = len(rest) // frame * frame
        if whole:
            has_frames = True
            yield decoded(rest[:whole], form, channels)
            rest = rest[whole:]
    if not has_frames:
        raise AudioFileError(f'standard input gave no sound: {len(rest)} bytes')
    if rest:
        note(f'the last {len(rest)} bytes of standard input do not make a whole frame of {frame} bytes and are ignored')


def decoded(data: bytes, form: RawFormat, channels: int) -> np.ndarray:
    """Returns whole interleaved frames as float32 [channels, n] at full scale 1."""
    if form == 's24le':
        # Put each sample into the upper three bytes of four.
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        samples = padded.view('<i4')[:, 0] / 2.0**31
    else:
        samples = np.frombuffer(data, _TYPES[form])
        if form == 'u8':
            samples = samples / 128.0 - 1.0
        elif form in _BITS:
            samples = samples / 2.0 ** (_BITS[form] - 1)
    return np.ascontiguousarray(samples.reshape(-1, channels).T, np.float32)


def encoded(block: np.ndarray, form: RawFormat) -> tuple[bytes, int]:
    """Returns float32 [channels, n] as interleaved samples, and how many of them were clipped to full scale."""
    samples = np.ascontiguousarray(block.T, np.float64)
    if form not in _BITS:
        return samples.astype(_TYPES[form]).tobytes(), 0
    full = 2.0 ** (_BITS[form] - 1)
    rounded = np.rint(samples * full)
    # A sample at exactly full scale loses one step in the positive half, which is inaudible and not counted.
    clipped = int(np.count_nonzero(np.abs(rounded) > full))
    integers = np.clip(rounded, -full, full - 1).astype(np.int64)
    if form == 's24le':
        return integers.astype('<i4').view(np.uint8).reshape(-1, 4)[:, :3].tobytes(), clipped
    return (integers + (128 if form == 'u8' else 0)).astype(_TYPES[form]).tobytes(), clipped
