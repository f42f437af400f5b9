"""Sound inside MP4, WebM, Matroska and other containers, and in files that libsndfile misreads, decoded by PyAV.

Times are those of a player: zero is where the container's first stream begins; what an edit list or a codec's priming
cuts off is not there; where a sound track begins late or has a gap, there is silence.
"""

import functools
import io
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, overload

import numpy as np

from audiosep_jax.audio.formats import CONTAINER_SUFFIXES
from audiosep_jax.audio.samples import check_rate, speaker_mask, speaker_order
from audiosep_jax.audio.structure.kinds import Kind, kind_of, unreadable, unsupported
from audiosep_jax.audio.structure.parts import Part, structure_of
from audiosep_jax.audio.structure.pieces import Piece, file_bytes, open_pieces
from audiosep_jax.audio.structure.truncation import cut_short_error
from audiosep_jax.errors import AudioFileError

if TYPE_CHECKING:  # importing PyAV takes a while
    from av.audio.codeccontext import AudioCodecContext
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.stream import VideoStream

LONGEST_SILENCE = 600.0  # seconds, of all gaps together; a time stamp farther on is damaged
# Samples of all channels in gaps: as many as 64 MB hold, and more in a large file.
_SILENT_VALUES, _SILENT_VALUES_PER_BYTE = 2**24, 64
_JITTER = 0.005  # seconds; Matroska rounds its time stamps to 1 ms
_OVERLAP = 0.1  # seconds; time stamps that go back farther are those of another recording
_CLOCK_JUMP = 10.0  # seconds; FFmpeg itself takes a longer gap in a broadcast for another clock
_UNDECODABLE_SHARE = 0.1  # of a sound: up to this share may be undecodable, and becomes silence
_WARM_UP = 0.5  # seconds decoded before a part: AAC needs 50 ms of what precedes it, Opus 80 ms, HE-AAC more
_MIN_BYTES_PER_SECOND = 25  # of sound; no codec needs fewer for long
_PLANES = 8  # PyAV looks for the channels of a frame one by one, and beyond these finds no end
# Files come from strangers, so playlists, lists of other files and the network are excluded.
_DEMUXERS = (
    'aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,gsm,iff,loas,matroska,webm,mov,mp3,mpc,mpc8,mpeg,'
    'mpegts,ogg,qcp,rm,shn,tak,truehd,tta,voc,w64,wav,wv'
)
# Containers whose time stamps are right wherever reading begins.
_SEEKABLE = ('mov', 'matroska')
# Formats whose clocks begin anywhere, and anew in what was joined.
_BROADCAST = ('mpegts', 'mpeg')
# Formats that give no length, so that FFmpeg guesses it from the bit rate or from the last time stamp.
_WITHOUT_LENGTH = ('aac', 'ac3', 'amr', 'dts', 'eac3', 'gsm', 'loas', 'mp3', 'mpeg', 'mpegts', 'truehd')
# Formats whose header counts the samples, and how many may be missing: CAF counts whole packets.
_EXACT = {'caf': 8192} | dict.fromkeys(('ape', 'dsf', 'flac', 'mpc8', 'tak', 'tta', 'wv'), 1024)
_SKIP_MANUAL = 1 << 29  # AV_CODEC_FLAG2_SKIP_MANUAL
_ENCRYPTED = ('enca', 'encv', 'drms', 'drmi')  # tags of MP4
_LOSSLESS = ('pcm_', 'alac', 'ape', 'flac', 'mlp', 'shorten', 'tak', 'truehd', 'tta', 'wavpack')


class ContainerSound:
    """The sound track of a file, decoded by PyAV.

    Args:
        file: its path, or its bytes.
        name: what messages call it; None: its path.
        kind: its format; None: what its bytes say.
        part: the part of it to read; None: all.
        mono: average the channels, whose number may then change midway.

    Attributes:
        rate: its sample rate in Hz.
        channels: how many channels its blocks have.
        mask: the loudspeakers of its channels as the bits of WAV; 0: not known.
        subtype: libsndfile's name of its sample format; None: it is lossy.

    Raises:
        AudioFileError: not a known format, not supported, damaged, or without sound.
    """

    def __init__(
        self,
        file: pathlib.Path | io.BytesIO,
        name: str | None = None,
        *,
        kind: Kind | None = None,
        part: Part | None = None,
        mono: bool = False,
    ):
        self._file, self._name, self._mono = file, str(file) if name is None else name, mono
        self._kind, self._pieces = kind_of(file) if kind is None else kind, part.pieces if part else None
        self._seconds = part.seconds if part else None
        self._undecodable = 0.0  # samples
        self._open()
        try:
            self.rate = self._stream.rate
            if not self.rate:
                raise unsupported(self._name, 'its sound track, which gives no sample rate,')
            check_rate(self.rate, self._name)
            context = self._stream.codec_context
            speakers = _speakers(context, self._name)
            self.channels = 1 if mono else len(speakers)
            self.mask = 0 if mono else speaker_mask(speakers) or (part.mask if part else 0)
            # The order that its channels get is that of WAV.
            self._order = None if mono else speaker_order(speakers)
            self.subtype = _subtype(context)
        except AudioFileError:
            self.close()
            raise

    def _open(self) -> None:
        self._container = open_container(self._file, self._name, self._kind, self._pieces)
        try:
            self._stream = best_stream(self._container, 'audio', self._name)
            if self._container.format.name == 'caf' and self._stream.codec_context.name == 'alac':
                # The last packet is short already; FFmpeg 8 takes what it lacks off once more.
                self._stream.codec_context.flags2 |= _SKIP_MANUAL
        except AudioFileError:
            self.close()
            raise

    def __enter__(self) -> 'ContainerSound':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    @property
    def seconds(self) -> float | None:
        """The length, or that of the header, which may be wrong; None where all would have to be decoded to know it."""
        if self._seconds is not None:
            return self._seconds
        if self._container.format.name in _WITHOUT_LENGTH:
            return None
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        return self._container.duration / 1e6 if self._container.duration else None

    @functools.cached_property
    def is_cut_short(self) -> bool:
        """Whether the header promises more than the file holds, as far as its format tells."""
        return structure_of(self._file).is_cut_short

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Yields samples `start` to `stop` - 1 as float32 [channels, n], n above 0. Call it only once.

        Args:
            start: the first sample.
            stop: the sample after the last one; None: to the end of the track, which may also come before `stop`.

        Raises:
            AudioFileError: damaged, cut short before `stop`, or with a rate or channels that change midway.
        """
        position = start
        for begin, samples in self._placed_frames(start):
            # One second of silence at a time, because a gap may last ten minutes.
            while position < (begin if stop is None else min(begin, stop)):
                silence = min(self.rate, begin - position, self.rate if stop is None else stop - position)
                yield np.zeros((self.channels, silence), np.float32)
                position += silence
            wanted = samples[:, max(position - begin, 0) : None if stop is None else max(stop - begin, 0)]
            position += wanted.shape[1]
            if wanted.shape[1]:
                yield wanted
            if stop is not None and position >= stop:
                break
        else:
            if self.is_cut_short or self._is_shorter_than_promised(position, start):
                raise cut_short_error(self._name)
        if self._undecodable > _UNDECODABLE_SHARE * max(position - start, 1):
            seconds = self._undecodable / self.rate
            raise AudioFileError(f'{self._name}: damaged, {seconds:.1f} s of the sound cannot be decoded')

    def _is_shorter_than_promised(self, position: int, start: int) -> bool:
        seconds = self.seconds
        if position <= start or self._container.format.name not in _EXACT or seconds is None:
            return False
        return position < seconds * self.rate - _EXACT[self._container.format.name]

    def _placed_frames(self, start: int, *, seek: bool = True) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the sample number at which each frame begins, and its samples [channels, n]; frames do not overlap.

        The first frame begins at or before `start`, unless the track itself begins later. Counts in
        `self._undecodable` the samples of packets that cannot be decoded.

        Where time stamps go back, another recording was joined: its samples follow as if one clock had gone on. So they
        do in a broadcast where they go far ahead.
        """
        name, rate = self._name, self.rate
        origin = self._container.start_time or 0  # microseconds
        warm_up = start - round(_WARM_UP * rate)
        seek = seek and warm_up > 0 and is_seekable(self._container)
        if seek:
            seek_container(self._container, origin + warm_up * 1_000_000 // rate, name)
        end, silence, shift, is_first = warm_up if seek else 0, 0, 0, True
        self._undecodable = 0.0
        longest, longest_silence = max_seconds(self._file) * rate, self._longest_silence()
        longest_gap = _CLOCK_JUMP * rate if self._container.format.name in _BROADCAST else math.inf
        for frame, undecodable in decoded_frames(self._container, self._stream, name):
            if frame is None:
                self._undecodable += undecodable * rate
                continue
            samples = self._checked_samples(frame)
            begin = end
            if frame.pts is not None:
                stamped = round((float(frame.pts * frame.time_base) - origin / 1e6) * rate) + shift
                if is_first or abs(stamped - end) > _JITTER * rate:
                    begin = stamped
                if not is_first and not -_OVERLAP * rate <= begin - end <= longest_gap:
                    shift, begin = shift + end - begin, end
            if seek and is_first and begin > start:
                break
            is_first = False
            samples = samples[:, max(end - begin, 0) :]
            begin = max(begin, end)
            silence += begin - end
            if silence > longest_silence:
                raise AudioFileError(f'{name}: damaged, its time stamps jump; convert it to WAV first')
            end = begin + samples.shape[1]
            if end > longest:
                raise AudioFileError(f'{name}: damaged, the file is too small for that much sound')
            yield begin, samples
        if seek and is_first:
            # Where an index is missing or wrong, seeking may go past the place it was asked for.
            self.close()
            self._open()
            _speakers(self._stream.codec_context, name)
            yield from self._placed_frames(start, seek=False)

    def _longest_silence(self) -> float:
        """Returns how many samples the gaps may have together: a small file must not fill the memory with silence."""
        values = _SILENT_VALUES + _SILENT_VALUES_PER_BYTE * file_bytes(self._file)
        return min(LONGEST_SILENCE * self.rate, values / self.channels)

    def _checked_samples(self, frame: 'AudioFrame') -> np.ndarray:
        samples = frame_samples(frame)
        if frame.sample_rate != self.rate or not (self._mono or len(samples) == self.channels):
            raise AudioFileError(f'{self._name}: its rate or channels change midway; convert it to WAV first')
        if self._mono:
            return samples.mean(axis=0, keepdims=True)
        return samples if self._order is None else samples[self._order]


def _speakers(context: 'AudioCodecContext', name: str) -> list[str]:
    """Opens the decoder, and returns what FFmpeg calls the loudspeaker of each channel.

    PyAV before 19 frees the names of an unusual order twice, which ends the process. Only the header of QuickTime gives
    one, and only decoders of PCM keep it, so there the channels are counted without it.

    Raises:
        AudioFileError: the decoder does not accept what the header says.
    """
    import av

    is_pcm = context.name.startswith('pcm_')
    if is_pcm and int(av.__version__.split('.')[0]) < 19 and context.bit_rate and context.sample_rate:
        bits = int(''.join(filter(str.isdigit, context.name.split('_')[1])) or 8)
        channels = round(context.bit_rate / context.sample_rate / bits)
        if channels > 2:
            context.options = {**context.options, 'ch_layout': f'{channels}C'}
    try:
        context.open(strict=False)
    except (av.FFmpegError, ValueError) as error:
        raise AudioFileError(f'{name}: damaged, its sound cannot be decoded: {ffmpeg_reason(error)}') from error
    return [channel.name for channel in context.layout.channels]


def _subtype(context: 'AudioCodecContext') -> str | None:
    """Returns libsndfile's name for the samples of a lossless codec; None for a lossy one."""
    if not context.name.startswith(_LOSSLESS) or context.format is None:
        return None
    if context.format.name.startswith(('flt', 'dbl')):
        return 'FLOAT'
    bits = 8 * context.format.bytes
    if bits == 32 and (context.name.startswith('pcm_s24') or not context.name.startswith('pcm_')):
        bits = 24  # FFmpeg keeps 20 and 24 bits in 32, and hardly any lossless file has more
    return f'PCM_{max(bits, 16)}'


def frame_samples(frame: 'AudioFrame') -> np.ndarray:
    """Returns the samples of PyAV's audio frame as float32 [channels, n]."""
    channels = frame.layout.nb_channels
    if frame.format.is_planar and channels >= _PLANES:
        import av

        (frame,) = av.AudioResampler(format=frame.format.packed).resample(frame)
    samples: np.ndarray = frame.to_ndarray()
    if frame.format.is_packed:
        samples = samples.reshape(-1, channels).T
    if np.issubdtype(samples.dtype, np.integer):
        full = 2.0 ** (8 * samples.dtype.itemsize - 1)
        samples = samples / full - (1.0 if samples.dtype == np.uint8 else 0.0)
    return samples.astype(np.float32)


@overload
def best_stream(container: 'InputContainer', kind: Literal['audio'], name: str) -> 'AudioStream': ...
@overload
def best_stream(container: 'InputContainer', kind: Literal['video'], name: str) -> 'VideoStream': ...
def best_stream(container: 'InputContainer', kind: Literal['audio', 'video'], name: str) -> Any:
    """Returns the best stream of this kind, and tells the demuxer to skip the others.

    Raises:
        AudioFileError: there is no such stream, or no decoder for it.
    """
    from av.stream import Discard

    stream = container.streams.best(kind)
    if stream is None:
        missing = 'sound track' if kind == 'audio' else 'pictures; build without --frames'
        raise AudioFileError(f'{name}: has no {missing}')
    if stream.codec_context is None:
        raise unsupported(name, f'the codec of its {kind}')
    if _codec_tag(stream) in _ENCRYPTED:
        raise unsupported(name, f'encrypted {kind}')
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    stream.codec_context.thread_count = 1  # one process per core decodes already
    return stream


class _Input:
    """A file as PyAV reads it: an impossible place is told by a number, because PyAV prints exceptions."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.read, self.tell = file.read, file.tell

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, OverflowError, ValueError):
            return -1

    def __del__(self) -> None:
        self._file.close()


def _codec_tag(stream: Any) -> str:
    try:
        return str(stream.codec_context.codec_tag)
    except UnicodeDecodeError:  # it is a number, as in WAV
        return ''


def is_seekable(container: 'InputContainer') -> bool:
    """Returns whether time stamps stay right after seeking."""
    return any(name in container.format.name.split(',') for name in _SEEKABLE)


def seek_container(container: 'InputContainer', microseconds: int, name: str) -> None:
    """Moves to a place at or before a time from which decoding can begin.

    Raises:
        AudioFileError: FFmpeg cannot seek there.
    """
    import av

    try:
        container.seek(microseconds)
    except (av.FFmpegError, OSError) as error:
        raise AudioFileError(f'{name}: damaged, cannot be read from {microseconds / 1e6:.1f} s on') from error


def decoded_frames(
    container: 'InputContainer', stream: 'AudioStream | VideoStream', name: str
) -> Iterator[tuple[Any, float]]:
    """Yields the frames of a stream, each with 0.0; for an undecodable packet, None with its length in seconds.

    Raises:
        AudioFileError: the container is damaged.
    """
    import av

    try:
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                yield None, float((packet.duration or 0) * packet.time_base)
            else:
                for frame in decoded:
                    yield frame, 0.0
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:  # IndexError: streams that appear midway
        raise AudioFileError(f'{name}: damaged: {ffmpeg_reason(error)}') from error


def ffmpeg_reason(error: Exception) -> str:
    """Returns FFmpeg's text of an error, without the path and the number."""
    return getattr(error, 'strerror', None) or ' '.join(str(error).split())


def max_seconds(file: pathlib.Path | io.BytesIO) -> float:
    """Returns a length in seconds that no sound in a file of this size can exceed."""
    return file_bytes(file) / _MIN_BYTES_PER_SECOND + LONGEST_SILENCE


def open_container(
    file: pathlib.Path | io.BytesIO,
    name: str,
    kind: Kind | None = None,
    pieces: Sequence[Piece] | None = None,
) -> 'InputContainer':
    """Opens a file, given by its path or its bytes, with PyAV; messages call it `name`.

    Args:
        file: its path, or its bytes.
        name: what messages call it.
        kind: its format; None: what its bytes say.
        pieces: those of its bytes that make the file to open; None: all.

    Raises:
        AudioFileError: not a known format, not supported, or damaged.
    """
    import av

    kind = kind or kind_of(file)
    is_video = name.lower().endswith(CONTAINER_SUFFIXES)
    if kind.demuxer is None:
        if kind.name:
            raise unsupported(name, kind.name)
        raise unreadable(name, kind, 'its format is not known', is_video=is_video)
    options = {'format_whitelist': _DEMUXERS, 'protocol_whitelist': 'file'}
    if kind.demuxer == 'mpegts':
        options['merge_pmt_versions'] = '1'  # a joined recording may have other numbers for the same tracks
    # Tags that are not UTF-8 must not stop the reading. PyAV 19 lets them through by itself and has no such argument.
    lenient: dict[str, Any] = {'metadata_errors': 'replace'} if int(av.__version__.split('.')[0]) < 19 else {}
    try:
        # FFmpeg gets no name, which it could take for a protocol or for a hint at the format.
        return av.open(_Input(open_pieces(file, pieces)), format=kind.demuxer, container_options=options, **lenient)
    except NotImplementedError as error:  # FFmpeg's "not yet implemented"
        raise unsupported(name, f'this sort of {kind.name}') from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise unreadable(name, kind, ffmpeg_reason(error), is_video=is_video) from error
