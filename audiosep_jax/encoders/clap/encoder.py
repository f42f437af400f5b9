"""`clap` embeds sentences and sounds in the same space (LAION-CLAP, arXiv 2211.06687), without PyTorch.

It has a text tower (RoBERTa) and an audio tower (HTSAT without feature fusion), each with a projection. Embeddings have
length 1, as in the training of CLAP and of AudioSep's separator. AudioSep's checkpoints contain these weights, too.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audiosep_jax.audio.resampling import resample
from audiosep_jax.encoders.base import check_texts
from audiosep_jax.encoders.clap import htsat, roberta
from audiosep_jax.encoders.clap.htsat import SAMPLE_RATE, WINDOW_SAMPLES, AudioTower, HtsatConfig
from audiosep_jax.encoders.clap.roberta import RobertaConfig, TextTower
from audiosep_jax.encoders.clap.sizes import mel_range, read_features, sizes_from_settings, sizes_from_tensors
from audiosep_jax.encoders.clap.weights import ClapTensors
from audiosep_jax.encoders.tokenizer import Tokenizer
from audiosep_jax.encoders.towers import (
    MAX_BATCH,
    check_finite,
    check_token_ids,
    fingerprint,
    in_batches,
    padded_length,
    read_settings,
    tokenizer_in,
)
from audiosep_jax.errors import AudioFileError, CheckpointError, QueryError
from audiosep_jax.weights.tensor_files import open_tensors

_LENGTHS = (16, 32, 64, 128, 512)  # compiled values of L; a short query padded to 512 would take 25 times as long
_WINDOW_BATCH = 8  # windows of ten seconds at a time, whose activations take 0.2 GB
_MAX_SAMPLE = 1e9  # the power of larger samples comes close to the limit of float32
_TOKENIZER_SOURCE = 'FacebookAI/roberta-base'

# Further tensors of LAION's files: fixed matrices and indices, and heads that only its training uses.
_UNUSED = re.compile(
    r'logit_scale(_[at])?|(text|audio)_transform\.sequential\.\d+\.(weight|bias)'
    r'|text_branch\.embeddings\.(position_ids|token_type_ids)'
    r'|audio_branch\.((spectrogram_extractor|tscam_conv|head)\..*|logmel_extractor\.melW|bn0\.num_batches_tracked'
    r'|.*\.(attn\.relative_position_index|attn_mask))'
)


class ClapEncoder:
    """CLAP's towers, each loaded to the device on first use. Use `ClapEncoder.open` to create an encoder.

    Args:
        tensors: the weights of both towers.
        text: sizes of the text tower.
        audio: sizes of the audio tower.
        folder: the folder of the tokenizer, into which it is fetched if it is missing.
        source: the origin of the weights, such as a repository's name, for the identity.
    """

    name = 'clap'
    version = 1

    def __init__(
        self, tensors: ClapTensors, text: RobertaConfig, audio: HtsatConfig, folder: Path, *, source: str = ''
    ):
        self.text, self.audio = text, audio
        self.source = source
        self.embedding_size = text.embedding_size
        self._tensors = tensors
        self._folder = folder

    @classmethod
    def open(cls, path: str | Path, *, source: str = '') -> 'ClapEncoder':
        """Opens the encoder of a folder or file. Reads names and shapes, and computes nothing.

        Args:
            path: a folder (Hugging Face's with `config.json`, or just weights in LAION's naming), or a file of weights
                (`.safetensors` or PyTorch's). The names of the tensors may have a prefix, and other tensors are
                ignored. The tokenizer is expected in the same folder.
            source: see the class.

        Raises:
            CheckpointError: the path is missing or damaged, it is a CLAP of another kind, or tensors are missing or
                have the wrong shape.
        """
        path = Path(path)
        where = str(path)
        folder = path if path.is_dir() else path.parent
        tensors = ClapTensors(open_tensors(path), where)
        text, audio = sizes_from_tensors(tensors, where)
        if not tensors.laion:
            config = read_settings(folder / 'config.json')
            if config is not None:
                text, audio = sizes_from_settings(config, f'{folder / "config.json"}')
            lowest, highest = mel_range(read_features(folder), f'{folder}: preprocessor_config.json')
            audio = dataclasses.replace(audio, lowest=lowest, highest=highest)
        tensors.check(_shapes(text, audio))
        return cls(tensors, text, audio, folder, source=source)

    def identity(self) -> dict[str, Any]:
        """Returns the settings that caches and checkpoints record.

        `weights` is a fingerprint of both towers, which does not depend on the naming of the tensors.
        """
        return {
            'name': self.name,
            'version': self.version,
            'embedding_size': self.embedding_size,
            'weights': self._fingerprint,
            'source': self.source,
        }

    @property
    def tensors(self) -> Mapping[str, np.ndarray]:
        """The weights of both towers, by their names in LAION's files."""
        return self._tensors

    @property
    def max_tokens(self) -> int:
        """How many tokens of a sentence are used, at most."""
        return self.text.max_length

    @functools.cached_property
    def _fingerprint(self) -> str:
        usual, bands = HtsatConfig(), (self.audio.lowest, self.audio.highest)
        settings = '' if bands == (usual.lowest, usual.highest) else f'mel bands from {bands[0]} to {bands[1]} Hz'
        return fingerprint(self._tensors, _shapes(self.text, self.audio), settings)

    def encode_text(self, texts: list[str]) -> np.ndarray:
        """Returns the embeddings of sentences, float32 [Q, E]. Sentences are cut after 512 tokens.

        Raises:
            QueryError: a sentence is empty.
            CheckpointError: the tokenizer or the weights are damaged, or do not belong together.
            DownloadError: there is no tokenizer next to the weights, and it cannot be fetched.
        """
        check_texts(texts)
        if not len(texts):
            return np.zeros((0, self.embedding_size), np.float32)
        return self.encode_token_ids(*self.tokenizer.encode(list(texts), self.text.max_length))

    def encode_token_ids(self, ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        """Returns the embeddings of token ids, float32 [Q, E].

        Padding on the right does not change the embeddings. Columns that no text uses are removed, and texts are padded
        to 16, 32, 64, 128 or 512 tokens.

        Args:
            ids: integers [Q, L], including `<s>` and `</s>`.
            attention_mask: [Q, L], 0 for tokens that must not be seen; None: those are the padding (id 1).

        Raises:
            QueryError: the shape is wrong, a text has no token or more than 512, or ids are outside the vocabulary.
            CheckpointError: the weights are damaged.
        """
        try:
            ids = np.asarray(ids)
        except ValueError as error:
            raise QueryError('token ids: rows of different lengths: pad them with 1') from error
        mask = ids != roberta.PADDING_ID if attention_mask is None else np.asarray(attention_mask) != 0
        check_token_ids(ids, mask)
        if not len(ids):
            return np.zeros((0, self.embedding_size), np.float32)
        if not mask.any(axis=1).all():
            raise QueryError('token ids: a row has no token, because its attention mask is 0 everywhere')
        if ids.min() < 0 or ids.max() >= self.text.vocabulary:
            raise QueryError(f'token ids outside the vocabulary of {self.text.vocabulary}')
        lengths = mask.shape[1] - np.argmax(mask[:, ::-1], axis=1)
        if lengths.max() > self.text.max_length:
            raise QueryError(f'{lengths.max()} tokens: CLAP takes at most {self.text.max_length}')
        sizes = [size for size in _LENGTHS if size < self.text.max_length] + [self.text.max_length]
        embeddings = np.empty((len(ids), self.embedding_size), np.float32)
        # Batch by length, so that one long text does not make the others long.
        order = np.argsort(lengths, kind='stable')
        for start in range(0, len(order), MAX_BATCH):
            rows = order[start : start + MAX_BATCH]
            size = padded_length(lengths[rows].max(), sizes)
            fill = ((0, 0), (0, max(0, size - ids.shape[1])))
            fitted = np.pad(ids[rows, :size], fill, constant_values=roberta.PADDING_ID)
            fitted_mask = np.pad(mask[rows, :size], fill)
            embeddings[rows] = in_batches(self._text_tower, fitted.astype(np.int32), fitted_mask.astype(np.int32))
        return check_finite(embeddings, self._folder)

    def encode_audio(self, waveforms: np.ndarray | Sequence[np.ndarray], *, sample_rate: int) -> np.ndarray:
        """Returns the embeddings of mono sounds of any length, float32 [Q, E].

        The audio tower takes ten seconds. A shorter sound is repeated a whole number of times and followed by silence
        (LAION's `repeatpad`). From a longer sound LAION takes ten seconds at a random place. Here the embedding is the
        mean over adjacent windows of ten seconds, scaled to length 1. The last window ends with the sound, so it
        overlaps the one before, and its weight is the share that it adds: slightly longer sounds have almost the same
        embedding.

        Args:
            waveforms: float at full scale 1.0: one sound [T], or [Q, T], or a list of [T].
            sample_rate: rate of the sounds, in Hz; they are resampled to 48 kHz.

        Raises:
            AudioFileError: a sound has no samples, or has NaN, infinite or absurdly large ones.
            QueryError: the waveforms are not mono, not floats, or the rate is not a positive number.
            CheckpointError: the weights are damaged.
        """
        sounds = _check_sounds(waveforms, sample_rate)
        totals = np.zeros((len(sounds), self.embedding_size), np.float64)
        batch: list[tuple[int, float, np.ndarray]] = []

        def flush() -> None:
            windows = np.stack([window for _, _, window in batch])
            outputs = in_batches(self._audio_tower, windows, largest=_WINDOW_BATCH)
            for (i, weight, _), output in zip(batch, outputs, strict=True):
                totals[i] += weight * output
            batch.clear()

        for i, sound in enumerate(sounds):
            for weight, window in windows_of(sound):
                batch.append((i, weight, window))
                if len(batch) == _WINDOW_BATCH:
                    flush()
        if batch:
            flush()
        embeddings = totals / np.maximum(np.linalg.norm(totals, axis=1, keepdims=True), 1e-12)
        return check_finite(embeddings.astype(np.float32), self._folder)

    def unknown_tensors(self) -> list[str]:
        """Returns the names of tensors that neither the towers use nor LAION's files contain, in LAION's naming."""
        used = _shapes(self.text, self.audio)
        return [name for name in self._tensors if name not in used and not _UNUSED.fullmatch(name)]

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """RoBERTa's tokenizer from the folder of the weights, into which it is fetched if it is missing.

        Raises:
            CheckpointError: the tokenizer is damaged, or does not belong to the weights.
            DownloadError: the tokenizer is missing, and it cannot be fetched.
        """
        tokenizer = tokenizer_in(self._folder, 'roberta', _TOKENIZER_SOURCE)
        if tokenizer.vocabulary_size > self.text.vocabulary or tokenizer.padding_id != roberta.PADDING_ID:
            raise CheckpointError(
                f'{self._folder}: the tokenizer ({tokenizer.vocabulary_size} tokens, padding {tokenizer.padding_id}) '
                f'and the weights ({self.text.vocabulary}, padding {roberta.PADDING_ID}) do not belong together'
            )
        return tokenizer

    @functools.cached_property
    def _text_tower(self) -> TextTower:
        return TextTower(self.text, self._tensors)

    @functools.cached_property
    def _audio_tower(self) -> AudioTower:
        return AudioTower(self.audio, self._tensors)


def windows_of(sound: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """Yields the weight and the samples, float32 [WINDOW_SAMPLES], of each window of a sound [T] at 48 kHz, T ≥ 1."""
    length = len(sound)
    if length < WINDOW_SAMPLES:
        window = np.zeros(WINDOW_SAMPLES, np.float32)
        repeated = np.tile(sound, WINDOW_SAMPLES // length)
        window[: len(repeated)] = repeated
        yield 1.0, window
        return
    for start in range(0, length, WINDOW_SAMPLES):
        new = min(WINDOW_SAMPLES, length - start)
        yield new / WINDOW_SAMPLES, sound[start + new - WINDOW_SAMPLES : start + new]


def _check_sounds(waveforms: Any, sample_rate: int) -> list[np.ndarray]:
    """Checks waveforms, and returns them as a list of float32 [T] at 48 kHz."""
    if not isinstance(sample_rate, int | float | np.number) or not np.isfinite(sample_rate) or sample_rate <= 0:
        raise QueryError(f'sample rate {sample_rate!r}: expected a positive number, in Hz')
    if isinstance(waveforms, list | tuple) and not all(np.ndim(waveform) == 1 for waveform in waveforms):
        raise QueryError('audio examples: expected mono waveforms [T], one for each query')
    if not isinstance(waveforms, list | tuple):
        array = np.asarray(waveforms)
        if array.ndim not in (1, 2):
            raise QueryError(f'audio examples: expected [T], [Q, T] or a list of [T], got shape {list(array.shape)}')
        waveforms = [array] if array.ndim == 1 else list(array)
    sounds = []
    for index, waveform in enumerate(waveforms):
        sound = np.asarray(waveform)
        which = f'audio example {index + 1} of {len(waveforms)}' if len(waveforms) > 1 else 'audio example'
        if not np.issubdtype(sound.dtype, np.floating):
            raise QueryError(f'{which}: samples of type {sound.dtype}, expected floats with full scale 1.0')
        if not round(sound.size * SAMPLE_RATE / sample_rate):
            raise AudioFileError(f'{which}: {"too short" if sound.size else "has no samples"}')
        if not np.isfinite(sound).all():
            raise AudioFileError(f'{which}: {np.count_nonzero(~np.isfinite(sound))} samples are NaN or infinite')
        if (peak := np.abs(sound).max()) > _MAX_SAMPLE:
            raise AudioFileError(f'{which}: samples up to {peak:.3g}, where full scale is 1: scale them first')
        sounds.append(resample(sound, sample_rate, SAMPLE_RATE))
    return sounds


def _shapes(text: RobertaConfig, audio: HtsatConfig) -> Mapping[str, tuple[int, ...]]:
    return roberta.tensor_shapes(text) | htsat.tensor_shapes(audio)
