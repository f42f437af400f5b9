"""How small a lossy encoder makes a sound: its bit rate, or the quality of a variable one.

| | bit rate | quality |
|---|---|---|
| MP3 | constant, one of the format's | 0 to 10, LAME's V9.999 to V0 |
| OGG (Vorbis) | | 0 to 10, as of `oggenc` |
| Opus | variable around it, 6 to 256 kbit/s per channel | |
| M4A (AAC) | variable around it, from 8 kbit/s per channel to 6 bits per sample | |

Bit rates are those of all channels together.
"""

import dataclasses
import re
from collections.abc import Collection
from typing import Any

from audiosep_jax.audio.formats import WRITERS, Writer
from audiosep_jax.errors import ConfigError

# kbit/s, by the lowest sample rate of the version of MPEG that has them: 1, 2 and 2.5.
_MP3_BIT_RATES = {
    32000: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    16000: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    0: (8, 16, 24, 32, 40, 48, 56, 64),
}
_OPUS_PER_CHANNEL = 6_000, 256_000  # bit/s
_AAC_PER_CHANNEL, _AAC_BITS_PER_SAMPLE = 8_000, 6
_MAX_LEVEL = 0.9999  # libsndfile refuses 1 for MP3


@dataclasses.dataclass(frozen=True)
class Compression:
    """What the encoder of a lossy format is to do; without either, what it does by default.

    Attributes:
        bit_rate: in bit/s, of all channels together.
        quality: from 0 to 10, the best.

    Raises:
        ConfigError: both are given, or a value that no format has.
    """

    bit_rate: int | None = None
    quality: float | None = None

    def __post_init__(self) -> None:
        if self.bit_rate is not None and self.quality is not None:
            raise ConfigError('a bit rate and a quality exclude each other: give only one')
        if self.bit_rate is not None and self.bit_rate < 6000:
            raise ConfigError(f'a bit rate of {self.bit_rate} bit/s is too low; in kbit/s it is written 192k')
        if self.quality is not None and not 0 <= self.quality <= 10:
            raise ConfigError(f'a quality of {self.quality:g}: must be from 0 to 10, the best')

    def __bool__(self) -> bool:
        return self.bit_rate is not None or self.quality is not None


DEFAULT_COMPRESSION = Compression()


def parse_bit_rate(text: str) -> int:
    """Reads a bit rate such as `192k`, `192K` or `192000`, in bit/s. Raises ConfigError."""
    found = re.fullmatch(r'([0-9]+(?:\.[0-9]+)?)([kK]?)', text.strip())
    if not found:
        raise ConfigError(f'{text!r} is not a bit rate: write, for example, 192k')
    return round(float(found[1]) * (1000 if found[2] else 1))


def check_compression(
    suffix: str,
    compression: Compression,
    *,
    channels: int | None = None,
    sample_rate: int | None = None,
    named: str | None = None,
) -> None:
    """Checks that the format of a suffix can be compressed in that way.

    Args:
        suffix: of the file, one of `WRITABLE_SUFFIXES`.
        compression: what is asked for.
        channels: of the sound; None: not known yet, so that any number may come.
        sample_rate: of the sound, Hz; None: not known yet.
        named: what the message calls the file; by default its suffix.

    Raises:
        ConfigError: the format takes no bit rate or quality, or not this one; the message says what it takes.
    """
    suffix = suffix.lower()
    writer, name = WRITERS[suffix], named or suffix
    if not compression:
        return
    if not writer.has_bit_rate and not writer.has_quality:
        raise ConfigError(f'{name}: {suffix} is lossless, so it has no bit rate and no quality; omit them')
    if compression.bit_rate is None:
        if not writer.has_quality:
            raise ConfigError(f'{name}: {suffix} takes a bit rate, for example 128k, but no quality')
        return
    if not writer.has_bit_rate:
        raise ConfigError(f'{name}: {suffix} takes a quality from 0 to 10, but no bit rate')
    allowed = _bit_rates(writer, channels, sample_rate)
    if compression.bit_rate not in allowed:
        listed = ', '.join(f'{rate / 1000:g}k' for rate in allowed) if isinstance(allowed, tuple) else ''
        held = listed or f'from {min(allowed) / 1000:g}k to {max(allowed) / 1000:g}k'
        of = ''.join([f' at {sample_rate} Hz' if sample_rate else '', f' with {channels} channels' if channels else ''])
        raise ConfigError(f'{name}: a bit rate of {compression.bit_rate / 1000:g}k is not one of {suffix}{of}: {held}')


def libsndfile_settings(writer: Writer, compression: Compression, *, channels: int, sample_rate: int) -> dict[str, Any]:
    """Returns the arguments of `soundfile.SoundFile` for a checked compression; {} for the default."""
    if compression.quality is not None:
        level = min(1 - compression.quality / 10, _MAX_LEVEL)
        return {'compression_level': level, **({'bitrate_mode': 'VARIABLE'} if writer.name == 'MP3' else {})}
    if compression.bit_rate is None:
        return {}
    # libsndfile takes a place between the highest bit rate, 0, and the lowest, 1.
    if writer.subtype == 'OPUS':
        low, high = (rate * channels for rate in _OPUS_PER_CHANNEL)
        return {'compression_level': (high - compression.bit_rate) / (high - low)}
    rates = [1000 * rate for rate in _mp3_bit_rates(sample_rate)]
    # Whatever rounding makes of it, LAME takes the nearest bit rate that the format has.
    level = (max(rates) - compression.bit_rate) / (max(rates) - min(rates))
    return {'compression_level': min(level, _MAX_LEVEL), 'bitrate_mode': 'CONSTANT'}


def _bit_rates(writer: Writer, channels: int | None, sample_rate: int | None) -> Collection[int]:
    """Returns the bit rates that a file may have, in bit/s, as far as its sound is known."""
    if writer.name == 'MP3':
        tables = _MP3_BIT_RATES.values() if sample_rate is None else [_mp3_bit_rates(sample_rate)]
        return tuple(sorted({1000 * rate for table in tables for rate in table}))
    least, most = channels or 1, channels or writer.max_channels
    if writer.name == 'M4A':
        per_channel = _AAC_PER_CHANNEL, _AAC_BITS_PER_SAMPLE * (sample_rate or max(writer.rates))
    else:
        per_channel = _OPUS_PER_CHANNEL
    return range(per_channel[0] * least, per_channel[1] * most + 1)


def _mp3_bit_rates(sample_rate: int) -> tuple[int, ...]:
    return next(rates for lowest, rates in _MP3_BIT_RATES.items() if sample_rate >= lowest)
