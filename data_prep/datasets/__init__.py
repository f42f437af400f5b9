"""Where clips come from: one file per dataset, each reads its authors' own metadata and lists the clips.

A dataset is a `ClipSource`: it knows its clips' ids at once and reads a clip's audio when asked, in whichever process.
Most are `Files`: entries that name a file, or a part of one, under a folder. What a dataset lists and does not have, or
must not be trained on, is in `left_out`, with a reason of four: missing, unreadable, too short, excluded.
"""
