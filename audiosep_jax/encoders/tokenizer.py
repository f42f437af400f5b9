"""Tokenizers of RoBERTa, CLIP and BERT, read from the files next to their weights by the `tokenizers` package.

A folder holds either `tokenizer.json`, which describes the whole tokenizer, or the older pair `vocab.json` and
`merges.txt`, from which the same tokenizer is built. RoBERTa's is GPT-2's byte-level BPE between `<s>` and `</s>`, with
the padding `<pad>`. CLIP's composes and lower-cases the text, collapses spaces, ends words in `</w>`, and puts the text
between `<|startoftext|>` and `<|endoftext|>`. Both give the same ids as transformers' `RobertaTokenizerFast` and
`CLIPTokenizerFast` of the same folder (`tests/encoders/test_tokenizer.py`). BERT's is read from `tokenizer.json` only.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from audiosep_jax.errors import CheckpointError, first_line
from audiosep_jax.storage.json_files import read_json

if TYPE_CHECKING:
    import tokenizers

Kind = Literal['roberta', 'clip', 'bert']
TOKENIZER_FILES = ('tokenizer.json', 'vocab.json', 'merges.txt')

# CLIP cuts its text into these pieces before BPE. The spaces between them are dropped.
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclasses.dataclass(frozen=True)
class _Conventions:
    """The special tokens of a kind of tokenizer."""

    begin: str
    end: str
    padding: str
    others: tuple[str, ...] = ()


_CONVENTIONS = {
    'roberta': _Conventions('<s>', '</s>', '<pad>', ('<unk>', '<mask>')),
    'clip': _Conventions('<|startoftext|>', '<|endoftext|>', '<|endoftext|>'),
    'bert': _Conventions('[CLS]', '[SEP]', '[PAD]'),
}


class Tokenizer:
    """Converts texts to token ids. Letters: Q texts, L tokens of the longest text, including the two special ones.

    Args:
        backend: the tokenizer, without truncation and padding.
        kind: which special tokens it has.
    """

    def __init__(self, backend: 'tokenizers.Tokenizer', kind: Kind):
        self._backend = backend
        self.kind = kind
        padding_id = backend.token_to_id(_CONVENTIONS[kind].padding)
        if padding_id is None:
            raise ValueError(f'not the tokenizer of a {kind} model: it has no padding token')
        self.padding_id = padding_id

    @property
    def vocabulary_size(self) -> int:
        """The number of token ids, including the special ones."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def to_json(self) -> str:
        """Returns the tokenizer as the contents of a `tokenizer.json`, without truncation and padding."""
        return self._backend.to_str()

    def encode(self, texts: list[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids and attention mask, int32 [Q, L] each, padded on the right to the longest of these texts.

        A text of more than `max_length` tokens is cut at its end, but keeps the closing special token.

        Args:
            texts: Q texts.
            max_length: the largest L, including the special tokens.
        """
        rows = []
        for text in texts:  # one by one: for a batch the package starts threads, and warns in every later fork
            # The package raises TypeError for half a surrogate pair, which may come from JSON or a file name.
            tokens = self._backend.encode(text.encode('utf-8', 'replace').decode()).ids
            rows.append(tokens if len(tokens) <= max_length else [*tokens[: max_length - 1], tokens[-1]])
        longest = max(map(len, rows), default=0)
        ids = np.full((len(rows), longest), self.padding_id, np.int32)
        mask = np.zeros((len(rows), longest), np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return ids, mask


def has_tokenizer(folder: str | Path) -> bool:
    """Returns whether a folder holds the files that `open_tokenizer` needs."""
    folder = Path(folder)
    return (folder / 'tokenizer.json').is_file() or all((folder / name).is_file() for name in TOKENIZER_FILES[1:])


def open_tokenizer(folder: str | Path, kind: Kind) -> Tokenizer:
    """Returns the tokenizer of a folder, from `tokenizer.json` or else from `vocab.json` and `merges.txt`.

    Args:
        folder: the folder of the files.
        kind: the kind of tokenizer that they must be.

    Raises:
        CheckpointError: the files are missing, damaged or of another kind.
    """
    folder = Path(folder)
    single = folder / 'tokenizer.json'
    if not has_tokenizer(folder) or (kind == 'bert' and not single.is_file()):
        raise CheckpointError(f'{folder}: no tokenizer.json in this folder, and no vocab.json with merges.txt')
    backend = read_tokenizer_file(single) if single.is_file() else _build_from_pair(folder, kind)
    conventions = _CONVENTIONS[kind]
    missing = [t for t in (conventions.begin, conventions.end, conventions.padding) if backend.token_to_id(t) is None]
    if missing:
        raise CheckpointError(f'{folder}: not the tokenizer of a {kind} model, it has no token {missing[0]}')
    # Some files set a fixed length, but here the caller chooses it.
    backend.no_truncation()
    backend.no_padding()
    try:
        ids = backend.encode('a dog').ids
    except Exception as error:  # the package raises a bare Exception for parts that do not fit together
        raise CheckpointError(f'{folder}: its tokenizer is damaged: {first_line(error)}') from error
    ends = [backend.token_to_id(token) for token in (conventions.begin, conventions.end)]
    if len(ids) < 3 or [ids[0], ids[-1]] != ends:
        raise CheckpointError(f'{folder}: its tokenizer is damaged: it does not put a text between the special tokens')
    return Tokenizer(backend, kind)


def read_tokenizer_file(path: Path, *, remedy: str = '') -> 'tokenizers.Tokenizer':
    """Returns the tokenizer in a file of the `tokenizers` package.

    Args:
        path: the file.
        remedy: what the user can do about a damaged file; it ends the message.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    from tokenizers import Tokenizer as Backend

    then = f': {remedy}' if remedy else ''

    try:
        return Backend.from_str(path.read_text('utf-8'))
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read: {error.strerror or error}{then}') from error
    except Exception as error:  # the package raises a bare Exception for every kind of damage
        raise CheckpointError(f'{path}: damaged or not a tokenizer: {first_line(error)}{then}') from error


def _build_from_pair(folder: Path, kind: Kind) -> 'tokenizers.Tokenizer':
    from tokenizers import Regex, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    conventions = _CONVENTIONS[kind]
    suffix, unknown = ('</w>', conventions.end) if kind == 'clip' else ('', None)
    try:
        vocabulary = read_json(folder / 'vocab.json', dict[str, int], error=CheckpointError, strict=False)
        lines = (folder / 'merges.txt').read_text('utf-8').split('\n')
        # The first line may be '#version: 0.2'.
        merges = [_split_merge(line) for line in lines if line.strip() and not line.startswith('#version')]
        model = models.BPE(vocabulary, merges, end_of_word_suffix=suffix, unk_token=unknown)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f'{error.filename}: cannot be read: {error.strerror or error}') from error
    except Exception as error:  # the package raises a bare Exception here, too
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
    if begin is not None and end is not None:  # otherwise `open_tokenizer` reports which one is missing
        backend.post_processor = processors.RobertaProcessing(
            (conventions.end, end), (conventions.begin, begin), trim_offsets=False, add_prefix_space=False
        )
    return backend


def _split_merge(line: str) -> tuple[str, str]:
    """Returns the two tokens that a line of `merges.txt` joins."""
    first, second = line.split(' ')
    return first, second
