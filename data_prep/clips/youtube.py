"""Finds ten-second clips of YouTube videos by the names that download scripts give them.

AudioSet and VGGSound are distributed as lists of such clips. Everybody downloads the sounds with one of about ten
scripts, each of which writes the times into the names differently.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from data_prep.clips.listing import first_of

# yt-dlp's name of a video, `Title [ID]`, and what may follow; an id with times.
_TITLED = re.compile(r'.*\[([\w-]{11})\](.*)', re.ASCII | re.DOTALL)
_TIMED = re.compile(r'(Y?[\w-]{11})[_-](\d+(?:\.\d+)?)(?:[_-](\d+(?:\.\d+)?))?', re.ASCII)


def clip_names(youtube_id: str, start: float, end: float) -> Iterator[str]:
    """Yields names, without suffix, that distinguish a clip from others of its video, the most common first.

    The times are written as 30, 000030, 30.000 or 30.0 (seconds), or 30000 (milliseconds); the end may be absent.
    AudioSet's embeddings and some scripts put a Y before the id. `by_name` has replaced - before a time by _.

    Args:
        youtube_id: of the video.
        start: of the clip, in seconds.
        end: of the clip, in seconds.
    """
    for first, last in zip(_spellings(start), _spellings(end), strict=True):
        for prefix in ('', 'Y'):
            yield f'{prefix}{youtube_id}_{first}'
            yield f'{prefix}{youtube_id}_{first}_{last}'


def _spellings(time: float) -> Iterator[str]:
    yield f'{time:g}'  # usually the only one needed, which matters with two million clips
    yield f'{round(time):06d}'
    yield f'{time:.3f}'
    yield f'{time:.1f}'
    yield f'{time * 1000:.0f}'


def by_name(listed: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns a mapping from stem to path; of several paths, the first one counts.

    If no file has that stem, `Title [ID]`, yt-dlp's name of a video, is found as `ID`, and `ID_30-40` as `ID_30_40`.

    Args:
        listed: stems and paths, as `list_media` returns them.
    """
    listed = list(listed)
    paths = first_of(listed)
    for stem, path in listed:
        if ']' in stem and (titled := _TITLED.fullmatch(stem)):
            stem = titled[1] + titled[2]
        if '-' in stem[11:] and (timed := _TIMED.fullmatch(stem)):
            stem = '_'.join(filter(None, timed.groups()))
        paths.setdefault(stem, path)
    return paths


def find_clip(
    paths: Mapping[str, str], youtube_id: str, start: float, end: float, *, whole_video: bool, only_one: bool
) -> str | None:
    """Returns the path of a clip's file, or of its video's; None if neither exists.

    Args:
        paths: the mapping that `by_name` returns.
        youtube_id: of the video.
        start: of the clip, in seconds.
        end: of the clip, in seconds.
        whole_video: the files are not cut, and only the id is in their names.
        only_one: this video has no other clip, so the id alone is enough for a name.
    """
    if whole_video or only_one:
        for name in (youtube_id, f'Y{youtube_id}'):
            if name in paths:
                return paths[name]
    if not whole_video:
        for name in clip_names(youtube_id, start, end):
            if name in paths:
                return paths[name]
    return None
