"""Byte-level BPE tokenizers of RoBERTa and CLIP, from the files beside their weights: the `tokenizers` package alone.

A folder holds either `tokenizer.json`, which says everything, or the older pair `vocab.json` and `merges.txt`, from
which the same tokenizer is built: RoBERTa's (GPT-2's byte-level BPE between `<s>` and `</s>`, padding `<pad>`) or
CLIP's (composed, lower-cased, spaces collapsed, words ending in `</w>`, between `<|startoftext|>` and `<|endoftext|>`).
Equal to transformers' `RobertaTokenizerFast` and `CLIPTokenizerFast` of the same folder (`tests/test_tokenizer.py`).
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from audiosep_jax.errors import CheckpointError, first_line

if TYPE_CHECKING:
    import tokenizers

Kind = Literal['roberta', 'clip']
TOKENIZER_FILES = ('tokenizer.json', 'vocab.json', 'merges.txt')

# The pieces that CLIP's text is cut into before BPE; what is between them (spaces) is dropped.
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclasses.dataclass(frozen=True)
class _Conventions:
    begin: str
    end: str
    padding: str
    others: tuple[str, ...] = ()


_CONVENTIONS = {
    'roberta': _Conventions('<s>', '</s>', '<pad>', ('<unk>', '<mask>')),
    'clip': _Conventions('<|startoftext|>', '<|endoftext|>', '<|endoftext|>'),
}


class Tokenizer:
    """Texts to token ids. Letters: Q texts, L tokens of the longest, the two special ones included."""

    def __init__(self, backend: 'tokenizers.Tokenizer', kind: Kind):
        self._backend = backend
        self.kind = kind
        self.padding_id: int = backend.token_to_id(_CONVENTIONS[kind].padding)

    @property
    def vocabulary_size(self) -> int:
        """How many ids there are, the special ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: list[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """ids and attention mask, int32 [Q, L] each, padded on the right to the longest of these texts and no further.

        A text of more than `max_length` tokens loses those at its end; the closing special token stays.
        """
        rows = []
        for text in texts:  # one by one: in a batch the package starts threads, and warns in every later fork
            # What UTF-8 cannot hold (half a surrogate pair, from JSON or a file name) would end in a TypeError.
            ids = self._backend.encode(text.encode('utf-8', 'replace').decode()).ids
            rows.append(ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]])
        longest = max(map(len, rows), default=0)
        ids = np.full((len(rows), longest), self.padding_id, np.int32)
        mask = np.zeros((len(rows), longest), np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return ids, mask


def has_tokenizer(folder: str | Path) -> bool:
    """Whether `open_tokenizer` finds the files that it needs in a folder."""
    folder = Path(folder)
    return (folder / 'tokenizer.json').is_file() or all((folder / name).is_file() for name in TOKENIZER_FILES[1:])


def open_tokenizer(folder: str | Path, kind: Kind) -> Tokenizer:
    """The tokenizer in a folder: of `tokenizer.json`, else built from `vocab.json` and `merges.txt`.

    Raises:
        CheckpointError: neither is there, or they are damaged or not of this kind.
    """
    folder = Path(folder)
    if not has_tokenizer(folder):
        raise CheckpointError(f'{folder}: no tokenizer.json in this folder, and no vocab.json with merges.txt')
    single = folder / 'tokenizer.json'
    backend = _read(single) if single.is_file() else _build(folder, kind)
    conventions = _CONVENTIONS[kind]
    missing = [t for t in (conventions.begin, conventions.end, conventions.padding) if backend.token_to_id(t) is None]
    if missing:
        raise CheckpointError(f'{folder}: not the tokenizer of a {kind} model, it has no token {missing[0]}')
    # Some files ask for a fixed length; ours is the caller's.
    backend.no_truncation()
    backend.no_padding()
    return Tokenizer(backend, kind)


def _read(path: Path) -> 'tokenizers.Tokenizer':
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_str(path.read_text('utf-8'))
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read: {error.strerror or error}') from error
    except Exception as error:  # the package raises a bare Exception for every kind of damage
        raise CheckpointError(f'{path}: damaged or not a tokenizer: {first_line(error)}') from error


def _build(folder: Path, kind: Kind) -> 'tokenizers.Tokenizer':
    from tokenizers import Regex, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    conventions = _CONVENTIONS[kind]
    suffix, unknown = ('</w>', conventions.end) if kind == 'clip' else ('', None)
    try:
        vocabulary = json.loads((folder / 'vocab.json').read_text('utf-8'))
        lines = (folder / 'merges.txt').read_text('utf-8').split('\n')
        # The first line may be '#version: 0.2'.
        merges = [tuple(line.split(' ')) for line in lines if line.strip() and not line.startswith('#version')]
        model = models.BPE(vocabulary, merges, end_of_word_suffix=suffix, unk_token=unknown)
    except OSError as error:
        raise CheckpointError(f'{error.filename}: cannot be read: {error.strerror or error}') from error
    except Exception as error:  # as above
        raise CheckpointError(f'{folder}: vocab.json or merges.txt is damaged: {first_line(error)}') from error
    backend = Backend(model)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == 'clip':
        backend.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r'\s+'), ' '), normalizers.Lowercase()]
        )
        words = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior='removed', invert=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    else:
        backend.pre_tokenizer = byte_level
    special = (conventions.begin, conventions.end, conventions.padding, *conventions.others)
    backend.add_special_tokens([t for t in dict.fromkeys(special) if t in vocabulary])
    begin, end = (vocabulary.get(t) for t in (conventions.begin, conventions.end))
    if begin is not None and end is not None:  # else the caller says which is missing
        backend.post_processor = processors.RobertaProcessing(
            (conventions.end, end), (conventions.begin, begin), trim_offsets=False, add_prefix_space=False
        )
    return backend
