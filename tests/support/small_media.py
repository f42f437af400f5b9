"""Tiny real sound and video files, in any container, for the tests of what reads them."""

import pathlib
import tarfile
import zlib

import numpy as np
import soundfile

# What PyAV's own FFmpeg encodes; suffix: (audio codec, video codec).
CODECS = {
    '.mp4': ('aac', 'libx264'),
    '.m4a': ('aac', None),
    '.mov': ('pcm_s16le', 'mpeg4'),
    '.webm': ('libopus', 'libvpx'),
    '.mkv': ('libopus', 'libx264'),
    '.avi': ('libmp3lame', 'mpeg4'),
    '.ts': ('aac', 'mpeg4'),
    '.flv': ('aac', 'libx264'),
}
FRAME_RATE = 10


def noise(seconds: float, rate: int, seed: int | str = 0, channels: int = 1) -> np.ndarray:
    """float32 [T, channels] (or [T]) within [-0.5, 0.5]."""
    seed = zlib.crc32(seed.encode()) if isinstance(seed, str) else seed
    shape = (round(seconds * rate), channels) if channels > 1 else round(seconds * rate)
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)


def sine(seconds=0.5, rate=16000, channels=1, hz=440.0, level=0.5) -> np.ndarray:
    """float32 [channels, T]: a sine of `hz` in the first channel, of its multiples in the next ones."""
    time = np.arange(int(seconds * rate)) / rate
    return np.stack([level * np.sin(2 * np.pi * hz * (c + 1) * time) for c in range(channels)]).astype(np.float32)


def click(seconds: float, rate: int, at: float) -> np.ndarray:
    """float32 [T]: silence but for a decaying 1500 Hz burst that begins at `at` seconds."""
    sound = np.zeros(round(seconds * rate), np.float32)
    begin = round(at * rate)
    time = np.arange(min(2000, len(sound) - begin)) / rate
    sound[begin : begin + len(time)] = 0.8 * np.exp(-300 * time) * np.sin(2 * np.pi * 1500 * time)
    return sound


def place_of_click(sound: np.ndarray, rate: int) -> float:
    """Seconds: where the first sample of a tenth of the peak is."""
    return float(np.argmax(np.abs(sound) > 0.1 * np.abs(sound).max()) / rate)


def write_sound(path: pathlib.Path, seconds=1.0, rate=16000, *, sound=None, channels=1, subtype=None) -> pathlib.Path:
    """A WAV, FLAC, OGG or MP3 file by its suffix: `sound` (float [T] or [T, channels]), or noise of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = noise(seconds, rate, path.name, channels) if sound is None else sound
    soundfile.write(path, sound, rate, subtype=subtype)
    return path


def write_video(
    path: pathlib.Path,
    seconds=1.0,
    rate=44100,
    *,
    sound: np.ndarray | bool = True,
    pictures=True,
    size=(64, 48),
    gop=12,
    sound_from=0.0,
    title='',
    options: dict[str, str] | None = None,
) -> pathlib.Path:
    """A container by its suffix, stereo. Picture n is grey, 20 n mod 240, and 10 of them last a second.

    Args:
        sound: float [T]; True: noise named after the file; False: no sound track.
        pictures: whether there is a video track.
        gop: pictures from one that can be decoded alone to the next.
        sound_from: when the sound track begins, seconds; the video begins at 0.
        title: a tag of the file and of its sound track.
        options: of the container's writer.
    """
    import av

    audio_codec, video_codec = CODECS[path.suffix.lower()]
    rate = 48000 if audio_codec == 'libopus' else rate
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = noise(seconds, rate, path.name) if sound is True else sound
    with av.open(f'file:{path}', 'w', container_options=options or {}) as container:
        packets = []
        # All tracks before the first packet, in which the header is written.
        video = container.add_stream(video_codec, rate=FRAME_RATE) if pictures and video_codec else None
        audio = None if sound is False else container.add_stream(audio_codec, rate=rate, layout='stereo')
        if title:
            container.metadata['title'] = title
            if audio:
                audio.metadata['title'] = title
        if video:
            if video_codec == 'libvpx':
                video.options = {'deadline': 'realtime', 'cpu-used': '8'}
            video.width, video.height, video.pix_fmt, video.gop_size = *size, 'yuv420p', gop
            packets += _encoded(video, _grey_frames(round(seconds * FRAME_RATE), size))
        if audio:
            packets += _encoded(audio, _audio_frames(audio, sound, rate, sound_from))
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def _encoded(stream, frames) -> list:
    packets = [packet for frame in frames for packet in stream.encode(frame)] + stream.encode(None)
    for packet in packets:
        packet.time_base = packet.time_base or stream.time_base
    return packets


def _grey_frames(count: int, size: tuple[int, int]):
    import av

    for n in range(count):
        grey = np.full((size[1], size[0], 3), 20 * n % 240, np.uint8)
        frame = av.VideoFrame.from_ndarray(grey, format='rgb24')
        frame.pts = n
        yield frame


def _audio_frames(stream, sound: np.ndarray, rate: int, sound_from: float):
    import av

    context = stream.codec_context
    resampler = av.AudioResampler(format=context.format, layout='stereo', rate=rate, frame_size=context.frame_size)
    frame = av.AudioFrame.from_ndarray(np.stack([sound, sound]).astype(np.float32), format='fltp', layout='stereo')
    frame.sample_rate, frame.pts = rate, round(sound_from * rate)
    yield from resampler.resample(frame)
    yield from resampler.resample(None)


def write_tar(path: pathlib.Path, files: dict[str, pathlib.Path]) -> pathlib.Path:
    """An uncompressed archive of the files, by their member names."""
    with tarfile.open(path, 'w') as archive:
        for name, file in files.items():
            archive.add(file, name)
    return path


def cut_short(path: pathlib.Path, share: float = 0.5) -> pathlib.Path:
    """Leaves the first part of a file alone."""
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path
