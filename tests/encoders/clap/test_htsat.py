"""Tests CLAP's audio tower, from the mel filters to the parts of the Swin transformer."""

import json

import jax
import numpy as np
import pytest
from support.paths import REFERENCE
from support.tiny_clap import AUDIO

from audiosep_jax.encoders.clap import htsat
from audiosep_jax.encoders.clap.htsat import HtsatConfig
from audiosep_jax.encoders.layers import parameter_shapes


def test_mel_filters_are_librosas():
    """The numbers are from librosa 0.11, `filters.mel(sr=48000, n_fft=1024, n_mels=64, fmin=50, fmax=14000).T`."""
    filters = htsat.mel_filters(50, 14000)
    assert (filters.shape, filters.dtype) == ((513, 64), np.float32)
    np.testing.assert_allclose(filters[[2, 3, 10], [0, 1, 6]], [0.015011813, 0.012572207, 0.0045050373], rtol=1e-6)
    np.testing.assert_allclose(filters.sum(), 1.3644329, rtol=1e-6)
    np.testing.assert_allclose(filters[290:299, 63], np.linspace(0.0007264898, 5.588384e-05, 9), rtol=2e-6, atol=1e-9)
    assert not filters[:1].any()
    assert not filters[299:].any()


def test_mel_filters_begin_where_they_are_told():
    assert htsat.mel_filters(0, 14000)[1].any()
    assert not htsat.mel_filters(50, 14000)[1].any()


def test_log_mel_of_silence_and_of_a_tone():
    silence = np.asarray(htsat.log_mel(np.zeros((1, 4800), np.float32)))
    assert silence.shape == (1, 11, 64)
    assert (silence == -100).all()
    time = np.arange(4800) / htsat.SAMPLE_RATE
    tone = np.asarray(htsat.log_mel(np.sin(2 * np.pi * 5000 * time)[None]))[0, 5]
    peak = htsat.mel_filters(50, 14000)[round(5000 * 1024 / 48000)].argmax()
    assert abs(int(tone.argmax()) - int(peak)) <= 1
    assert tone.max() - np.median(tone) > 60  # dB


@pytest.mark.parametrize(('n', 'length'), [(1001, 1024), (11, 1024), (5, 17)])
def test_bicubic_is_pytorchs(n, length):
    torch = pytest.importorskip('torch')
    x = np.random.default_rng(n).standard_normal((2, n, 3)).astype(np.float32) * 50
    resize = torch.nn.functional.interpolate
    expected = resize(torch.from_numpy(x)[:, None], (length, 3), mode='bicubic', align_corners=True)[:, 0].numpy()
    np.testing.assert_allclose(np.asarray(htsat.bicubic(x, length)), expected, atol=3e-4)  # of 150


def test_bicubic_keeps_the_ends_and_what_is_constant():
    line = np.linspace(-3, 5, 40, dtype=np.float32)[None, :, None]
    resized = np.asarray(htsat.bicubic(line, 101))[0, :, 0]
    np.testing.assert_allclose(resized[[0, -1]], [-3, 5], rtol=1e-6)
    np.testing.assert_allclose(resized, np.linspace(-3, 5, 101), atol=0.03)  # a = -0.75 bends straight lines a little
    np.testing.assert_allclose(np.asarray(htsat.bicubic(np.full((1, 40, 2), 7.0), 101)), 7, rtol=1e-6)


def test_a_folded_spectrogram_has_four_stretches_of_time_on_top_of_each_other():
    n = htsat.IMAGE_SIZE * 4
    frame, band = np.meshgrid(np.arange(n), np.arange(64), indexing='ij')
    image = np.asarray(htsat.fold((frame * 100.0 + band)[None].astype(np.float32)))[0]
    assert image.shape == (256, 256)
    for row, column in ((0, 0), (63, 5), (64, 0), (200, 255)):
        expected = (256 * (row // 64) + column) * 100 + row % 64
        np.testing.assert_allclose(image[row, column], expected, rtol=1e-6)


def test_equal_offsets_have_the_same_relative_position():
    index = htsat._relative_positions()
    by_offset = {}
    for i in range(64):
        for j in range(64):
            offset = (i // 8 - j // 8, i % 8 - j % 8)
            assert by_offset.setdefault(offset, index[i, j]) == index[i, j]
    assert sorted(by_offset.values()) == list(range(225))
    assert index[0, 0] == 7 * 15 + 7
    assert index[8, 0] == 8 * 15 + 7  # a row further down


def test_shifted_windows_see_only_true_neighbours():
    """Two patches of a window see each other only if they were neighbors before the cyclic shift."""
    size, shift = 16, 4
    original = (np.arange(size) + shift) % size
    mask = htsat._shift_mask(size, size)
    for window in range(4):
        rows = original[8 * (window // 2) + np.arange(64) // 8]
        columns = original[8 * (window % 2) + np.arange(64) % 8]
        near = (abs(rows[:, None] - rows) < 8) & (abs(columns[:, None] - columns) < 8)
        np.testing.assert_array_equal(mask[window] == 0, near)
    assert set(np.unique(mask)) == {-100.0, 0.0}


def test_merging_puts_four_patches_side_by_side():
    """The order is that of the original: rows change first."""
    x = np.zeros((1, 2, 2, 1), np.float32)
    x[0, :, :, 0] = [[1, 2], [3, 4]]
    merge = htsat.Merge()
    parameters = {
        'norm': {'weight': np.ones(4, np.float32), 'bias': np.zeros(4, np.float32)},
        'reduction': {'weight': np.eye(4, dtype=np.float32)[:2]},
    }
    out = np.asarray(merge.apply({'params': parameters}, x))[0, 0, 0]
    normal = (np.array([1, 3, 2, 4]) - 2.5) / np.sqrt(1.25 + 1e-5)
    np.testing.assert_allclose(out, normal[:2], rtol=1e-5)


def test_tensors_are_those_of_laions_state_dict():
    with np.load(REFERENCE / 'clap_reference.npz') as archive:
        names = [str(name) for name in archive['state_names']]
        shapes = {n: tuple(json.loads(str(s))) for n, s in zip(names, archive['state_shapes'], strict=True)}
    expected = htsat.tensor_shapes(HtsatConfig())
    fused = {name.replace('.query.', '.qkv.'): shape for name, shape in expected.items() if '.query.' in name}
    for name, (rows, *rest) in fused.items():
        assert shapes[name] == (3 * rows, *rest)
    apart = {n: s for n, s in expected.items() if not any(f'.{part}.' in n for part in ('query', 'key', 'value'))}
    assert all(shapes[name] == shape for name, shape in apart.items())
    unused = [n for n in shapes if n.startswith('audio_branch.') and n not in apart and n not in fused]
    buffers = ('stft', 'logmel', 'num_batches_tracked', 'relative_position_index', 'attn_mask')
    classifier = ('tscam_conv', 'audio_branch.head')
    assert [n for n in unused if not any(part in n for part in buffers + classifier)] == []


def test_every_second_block_is_shifted_but_in_the_last_stage():
    blocks = [part for part in htsat._parts(HtsatConfig()) if isinstance(part.module, htsat.Block)]
    assert len(blocks) == 18
    for part in blocks:
        stage, block = (int(number) for number in part.prefix.split('.')[2:5:2])
        assert part.inputs == (bool(block % 2 and stage < 3),)


def test_clips_of_a_batch_are_independent():
    rng = np.random.default_rng(0)
    shapes = htsat.tensor_shapes(AUDIO)
    tensors = {n: np.abs(rng.standard_normal(s)).astype(np.float32) * 0.3 for n, s in shapes.items()}
    tower = htsat.AudioTower(AUDIO, tensors)
    sounds = rng.standard_normal((2, htsat.WINDOW_SAMPLES)).astype(np.float32)
    both = np.asarray(tower(sounds))
    assert both.shape == (2, AUDIO.embedding_size)
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(both[1:], np.asarray(tower(sounds[1:])), atol=1e-6)


def test_equal_layers_share_a_compilation():
    """Modules of the same size are the same key in `jit`'s cache, which shortens the first query."""
    modules = {part.module for part in htsat._parts(HtsatConfig()) if isinstance(part.module, htsat.Block)}
    assert len(modules) == 4
    assert hash(htsat.Merge()) == hash(htsat.Merge())
    names = parameter_shapes(htsat.Merge(), (1, 4, 4, 8))
    assert names == {'norm.weight': (32,), 'norm.bias': (32,), 'reduction.weight': (16, 32)}


def test_the_tower_computes_in_float32():
    block = htsat._parts(AUDIO)[1]
    assert block.prefix == 'audio_branch.layers.0.blocks.0.'
    inputs = jax.ShapeDtypeStruct(block.shape, np.float32), np.bool_(True)
    variables = jax.eval_shape(block.module.init, jax.random.key(0), *inputs)
    text = str(jax.make_jaxpr(block.module.apply)(variables, *inputs))
    dots = text.count('dot_general')
    assert dots >= 6
    assert text.count('Precision.HIGHEST') >= dots
