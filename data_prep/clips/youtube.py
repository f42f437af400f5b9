"""Ten seconds of a YouTube video: how those who cut and download them name the files.

AudioSet and VGGSound are distributed as lists of these; the sounds everybody fetches himself, with one of some ten
scripts, each with its own way of writing the times into the name.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from data_prep.clips.listing import first_of

# What yt-dlp calls a video, `Title [ID]`, and what may follow; an id with times.
_TITLED = re.compile(r'.*\[([\w-]{11})\](.*)', re.ASCII | re.DOTALL)
_TIMED = re.compile(r'(Y?[\w-]{11})[_-](\d+(?:\.\d+)?)(?:[_-](\d+(?:\.\d+)?))?', re.ASCII)


def clip_names(youtube_id: str, start: float, end: float) -> Iterator[str]:
    """Names, without suffix, that tell the clip from others of its video, the commonest first.

    The times (seconds) are as in 30, 000030, 30.000, 30.0 or, milliseconds, 30000; the end may be absent; AudioSet's
    embeddings and some scripts put a Y before the id. `by_name` has made _ of a - before a time.
    """
    for first, last in zip(_spellings(start), _spellings(end), strict=True):
        for prefix in ('', 'Y'):
            yield f'{prefix}{youtube_id}_{first}'
            yield f'{prefix}{youtube_id}_{first}_{last}'


def _spellings(time: float) -> Iterator[str]:
    yield f'{time:g}'  # the others are seldom asked for, of two million clips
    yield f'{round(time):06d}'
    yield f'{time:.3f}'
    yield f'{time:.1f}'
    yield f'{time * 1000:.0f}'


def by_name(listed: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Stem to path, the first of several. Where no file is named so, `Title [ID]`, as yt-dlp names videos, is there as
    `ID`, too, and `ID_30-40` as `ID_30_40`."""
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
    """The path of a clip's file among `paths` (as of `by_name`), or of its video's; None where there is none.

    Args:
        whole_video: files are not cut; only the id is in their names.
        only_one: of this video: then the id alone will do for a name.
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
