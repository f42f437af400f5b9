"""`clap`: sentences and sounds to one space (LAION-CLAP, arXiv 2211.06687), in Flax, from its own files. No torch.

A text tower (RoBERTa) and an audio tower (HTSAT, without feature fusion), each with a projection. Embeddings have
length 1: so CLAP was trained, and so AudioSep's separator was conditioned. AudioSep's checkpoints hold these weights
too.
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
from audiosep_jax.encoders.clap.sizes import (
    mel_range,
    read_features,
    read_settings,
    sizes_of_settings,
    sizes_of_tensors,
)
from audiosep_jax.encoders.clap.weights import ClapTensors
from audiosep_jax.encoders.tokenizer import Tokenizer
from audiosep_jax.encoders.towers import MAX_BATCH, bucket, fingerprint, in_batches, tokenizer_in
from audiosep_jax.errors import AudioFileError, CheckpointError, QueryError
from audiosep_jax.weights.tensor_files import open_tensors

_LENGTHS = (16, 32, 64, 128, 512)  # L, as compiled; 512 for a short query would cost 25 times as much
_WINDOW_BATCH = 8  # ten seconds each: 0.2 GB of activations at a time
_LOUDEST = 1e9  # its power is still far from float32's end
_TOKENIZER_SOURCE = 'FacebookAI/roberta-base'


# What LAION's files hold beside the towers: fixed matrices and indices, and heads of its training.
_UNUSED = re.compile(
    r'logit_scale(_[at])?|(text|audio)_transform\.sequential\.\d+\.(weight|bias)'
    r'|text_branch\.embeddings\.(position_ids|token_type_ids)'
    r'|audio_branch\.((spectrogram_extractor|tscam_conv|head)\..*|logmel_extractor\.melW|bn0\.num_batches_tracked'
    r'|.*\.(attn\.relative_position_index|attn_mask))'
)


class ClapEncoder:
    """CLAP's towers, each loaded to the device when it is first asked. Use `ClapEncoder.open`.

    Args:
        tensors: the weights of both.
        text: sizes of the text tower.
        audio: sizes of the audio tower.
        folder: where the tokenizer is, or is put when it had to be fetched.
        source: what the identity says of the origin, such as a repository's name.
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
        """The encoder of a folder or file. Reads names and shapes, and computes nothing.

        Args:
            path: a folder (Hugging Face's with `config.json`, or just weights in LAION's naming), or a file of weights,
                `.safetensors` or PyTorch's; the names may stand behind a prefix, and tensors of other things beside
                them. The tokenizer is looked for in that folder, or beside the file.
            source: see the class.

        Raises:
            CheckpointError: nothing there, damaged, a CLAP of another kind, or tensors missing or misshapen.
        """
        path = Path(path)
        where = str(path)
        folder = path if path.is_dir() else path.parent
        tensors = ClapTensors(open_tensors(path), where)
        text, audio = sizes_of_tensors(tensors, where)
        if not tensors.laion:
            config = read_settings(folder, 'config.json')
            if config is not None:
                text, audio = sizes_of_settings(config, f'{folder / "config.json"}')
            lowest, highest = mel_range(read_features(folder), f'{folder}: preprocessor_config.json')
            audio = dataclasses.replace(audio, lowest=lowest, highest=highest)
        tensors.check(_shapes(text, audio))
        return cls(tensors, text, audio, folder, source=source)

    def identity(self) -> dict[str, Any]:
        """What caches and checkpoints record; `weights` is a fingerprint of both towers, the same in either naming."""
        return {
            'name': self.name,
            'version': self.version,
            'embedding_size': self.embedding_size,
            'weights': self._fingerprint,
            'source': self.source,
        }

    @functools.cached_property
    def _fingerprint(self) -> str:
        usual, heard = HtsatConfig(), (self.audio.lowest, self.audio.highest)
        settings = '' if heard == (usual.lowest, usual.highest) else f'mel bands from {heard[0]} to {heard[1]} Hz'
        return fingerprint(self._tensors, _shapes(self.text, self.audio), settings)

    def encode_text(self, texts: list[str]) -> np.ndarray:
        """float32 [Q, E] of Q sentences; beyond 512 tokens a sentence loses its end.

        Raises:
            QueryError: an empty sentence.
            DownloadError: there is no tokenizer beside the weights, and none can be fetched.
        """
        check_texts(texts)
        if not len(texts):
            return np.zeros((0, self.embedding_size), np.float32)
        return self.encode_token_ids(*self.tokenizer.encode(list(texts), self.text.max_length))

    def encode_token_ids(self, ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        """float32 [Q, E] of token ids [Q, L], `<s>` and `</s>` included.

        Padding on the right changes nothing but, beyond the next of 16, 32, 64, 128 and 512 tokens, the time that it
        takes; columns that no text uses are left out first.

        Args:
            ids: integers [Q, L].
            attention_mask: [Q, L], 0 where a token must not be seen; None: all but the padding (id 1) are.

        Raises:
            QueryError: other shapes, more than 512 tokens, none at all, or ids outside the vocabulary.
        """
        try:
            ids = np.asarray(ids)
        except ValueError as error:
            raise QueryError('token ids: rows of different lengths: pad them with 1') from error
        mask = ids != roberta.PADDING_ID if attention_mask is None else np.asarray(attention_mask) != 0
        if ids.ndim != 2 or mask.shape != ids.shape or not np.issubdtype(ids.dtype, np.integer):
            raise QueryError(
                f'token ids and attention mask: expected integers [Q, L], got {ids.dtype} {list(ids.shape)} and '
                f'{list(mask.shape)}'
            )
        if not len(ids):
            return np.zeros((0, self.embedding_size), np.float32)
        if not mask.any(axis=1).all():
            raise QueryError('token ids: a row whose attention mask is 0 everywhere says nothing')
        if ids.min() < 0 or ids.max() >= self.text.vocabulary:
            raise QueryError(f'token ids outside the vocabulary of {self.text.vocabulary}')
        lengths = mask.shape[1] - np.argmax(mask[:, ::-1], axis=1)
        if lengths.max() > self.text.max_length:
            raise QueryError(f'{lengths.max()} tokens: CLAP takes at most {self.text.max_length}')
        sizes = [size for size in _LENGTHS if size < self.text.max_length] + [self.text.max_length]
        embeddings = np.empty((len(ids), self.embedding_size), np.float32)
        # By length, so that one long text does not make all of them long.
        order = np.argsort(lengths, kind='stable')
        for start in range(0, len(order), MAX_BATCH):
            rows = order[start : start + MAX_BATCH]
            size = bucket(lengths[rows].max(), sizes)
            fill = ((0, 0), (0, max(0, size - ids.shape[1])))
            fitted = np.pad(ids[rows, :size], fill, constant_values=roberta.PADDING_ID)
            fitted_mask = np.pad(mask[rows, :size], fill)
            embeddings[rows] = in_batches(self._text_tower, fitted.astype(np.int32), fitted_mask.astype(np.int32))
        return self._checked(embeddings)

    def encode_audio(self, waveforms: np.ndarray | Sequence[np.ndarray], *, sample_rate: int) -> np.ndarray:
        """float32 [Q, E] of Q mono sounds of any length.

        The audio tower hears ten seconds. A shorter sound is repeated a whole number of times, the rest is silence
        (LAION's `repeatpad`). Of a longer one LAION hears ten seconds from a random place; here it is the mean over
        windows of ten seconds side by side, scaled to length 1. The last window ends with the sound, so it overlaps the
        one before, and counts by what it adds: a sound that is a little longer has almost the same embedding.

        Args:
            waveforms: float at full scale 1.0: one [T], or [Q, T], or a list of [T].
            sample_rate: of the waveforms, in Hz; resampled to 48 kHz (`audiosep_jax.audio.resampling.resample`).

        Raises:
            AudioFileError: a waveform without samples, or with NaN, infinite or absurdly large ones.
            QueryError: not mono waveforms of floats.
        """
        sounds = _sounds(waveforms, sample_rate)
        totals = np.zeros((len(sounds), self.embedding_size), np.float64)
        batch: list[tuple[int, float, np.ndarray]] = []

        def flush():
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
        return self._checked(embeddings.astype(np.float32))

    def unknown_tensors(self) -> list[str]:
        """The tensors beside the weights that are not LAION's either, under LAION's names."""
        used = _shapes(self.text, self.audio)
        return [name for name in self._tensors if name not in used and not _UNUSED.fullmatch(name)]

    def _checked(self, embeddings: np.ndarray) -> np.ndarray:
        if not np.isfinite(embeddings).all():
            raise CheckpointError(f'{self._folder}: these CLAP weights give embeddings that are not finite: damaged')
        return embeddings

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """RoBERTa's, from beside the weights, else fetched and put there. Raises as `encode_text`."""
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
    """(weight, float32 [WINDOW_SAMPLES]) of the windows that are heard of a sound [T] at 48 kHz, T ≥ 1."""
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


def _sounds(waveforms: Any, sample_rate: int) -> list[np.ndarray]:
    """Checked waveforms, as a list of float32 [T] at 48 kHz."""
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
            raise AudioFileError(f'{which}: {"too short" if sound.size else "it holds no samples"}')
        if not np.isfinite(sound).all():
            raise AudioFileError(f'{which}: {np.count_nonzero(~np.isfinite(sound))} samples are NaN or infinite')
        if (peak := np.abs(sound).max()) > _LOUDEST:
            raise AudioFileError(f'{which}: samples up to {peak:.3g}, where full scale is 1: divide them first')
        sounds.append(resample(sound, sample_rate, SAMPLE_RATE))
    return sounds


def _shapes(text: RobertaConfig, audio: HtsatConfig) -> Mapping[str, tuple[int, ...]]:
    return roberta.tensor_shapes(text) | htsat.tensor_shapes(audio)
