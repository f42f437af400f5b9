"""The supported datasets, one per file: each module reads its authors' own metadata and lists the clips.

A dataset is a `ClipSource`: it knows the ids of its clips from the start, and reads a clip's audio on demand, in any
process. Most are `Files`: entries that name a file, or a part of one, under a folder. Clips that are listed but not
there, or must not be used for training, are in `left_out` with one of four reasons: missing, unreadable, too short,
excluded.
"""
