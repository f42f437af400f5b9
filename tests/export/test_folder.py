"""The exported folder: what is in it, what is left out and why, and the manual's program, which separates with it."""

import ast
import json
import sys

import numpy as np
import onnx
import pytest
import soundfile
from support import tiny_clap
from support.documents import ROOT, blocks
from support.small_separator import CONFIG, save_small

from audiosep_jax.checkpoints.checkpoint import Level
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import CheckpointError, ConfigError, QueryError
from audiosep_jax.export.folder import export
from audiosep_jax.separation.loading import load

ONNX = ['mask.onnx', 'mask_pieces.onnx', 'separate.onnx', 'separate_pieces.onnx']
EXAMPLE = next(block for block in blocks(ROOT / 'docs' / 'export.md') if 'separate_pieces' in block.code)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp('run') / 'quickstart', level=Level(-40.0, -30.0, -20.0, 5))


@pytest.fixture(scope='module')
def exported(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp('out') / 'exported'
    return out, export(checkpoint, out, queries=['a siren', 'rain'], external_weights=True)


def test_the_folder_holds_programs_queries_and_what_a_program_must_know(exported):
    out, result = exported
    names = [*ONNX, 'mask.stablehlo', 'separate.stablehlo', 'metadata.json', 'queries.json', 'weights.bin']
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert [path.name for path in result.paths] == sorted(names)
    assert len(result.notes) == 1
    assert result.notes[0].startswith('text.onnx was left out: the query encoder words has no weights')
    metadata = json.loads((out / 'metadata.json').read_text())
    assert (metadata['sample_rate'], metadata['window_size'], metadata['hop_size']) == ('8000', '128', '64')
    assert json.loads(metadata['encoder']) == load_encoder('words').identity()
    assert json.loads(metadata['level'])['median_db'] == -30
    assert metadata['step'] == '7'
    for name in ONNX:
        stored = {p.key: p.value for p in onnx.load(out / name, load_external_data=False).metadata_props}
        assert stored == {**metadata, 'dtype': 'float32', 'opset': '17'}
    queries = json.loads((out / 'queries.json').read_text())
    np.testing.assert_array_equal(list(queries.values()), load_encoder('words').encode_text(['a siren', 'rain']))


@pytest.mark.parametrize('samples', [64 * (288 - 20) - 1, 20000], ids=['ends with a piece', 'longer'])
def test_the_program_of_the_manual_is_the_separator(exported, checkpoint, tmp_path, monkeypatch, samples):
    tree = ast.parse(EXAMPLE.code)
    imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imports == {'json', 'numpy', 'onnxruntime', 'soundfile'}
    assert len(EXAMPLE.code.splitlines()) <= 40
    (tmp_path / 'exported').symlink_to(exported[0])
    (tmp_path / 'quickstart').mkdir()
    mixture = (0.1 * np.random.default_rng(0).standard_normal((2, samples))).astype(np.float32)
    monkeypatch.chdir(tmp_path)
    soundfile.write('quickstart/mixture.wav', mixture.T, CONFIG.sample_rate, 'FLOAT')
    write = soundfile.write
    monkeypatch.setattr(soundfile, 'write', lambda path, data, rate: write(path, data, rate, 'FLOAT'))
    exec(compile(EXAMPLE.code, 'docs/export.md', 'exec'), {})
    target = soundfile.read('siren.wav', dtype='float32')[0].T
    wanted = load(checkpoint).separate(mixture, 'a siren', sample_rate=CONFIG.sample_rate).targets[0]
    np.testing.assert_allclose(target, wanted, atol=1e-5 * np.abs(wanted).max())


def test_weights_inside_and_half_precision(checkpoint, tmp_path):
    for dtype in ('float32', 'float16'):
        export(checkpoint, tmp_path / dtype, format='onnx', dtype=dtype)
        assert sorted(path.name for path in (tmp_path / dtype).iterdir()) == sorted([*ONNX, 'metadata.json'])
    sizes = [(tmp_path / dtype / 'mask.onnx').stat().st_size for dtype in ('float16', 'float32')]
    assert sizes[0] < sizes[1]


def test_a_text_tower_comes_with_its_tokenizer(checkpoint, tmp_path, monkeypatch):
    encoder = load_encoder(tiny_clap.write_laion(tmp_path))
    monkeypatch.setattr('audiosep_jax.export.folder.load_encoder_of', lambda checkpoint: encoder)
    result = export(checkpoint, tmp_path / 'out', format='onnx')
    assert not result.notes
    assert {'text.onnx', 'tokenizer.json'} <= {path.name for path in result.paths}
    stored = {p.key: p.value for p in onnx.load(tmp_path / 'out' / 'text.onnx').metadata_props}
    assert (stored['max_tokens'], stored['padding_id']) == ('512', '1')


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        ({'format': 'stablehlo', 'dtype': 'float16'}, ConfigError, '--dtype is for ONNX only'),
        ({'format': 'stablehlo', 'external_weights': True}, ConfigError, '--external-weights is for ONNX only'),
        ({'queries': [' ']}, QueryError, 'the query is empty'),
    ],
)
def test_what_cannot_be_is_an_error_and_leaves_no_folder(checkpoint, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        export(checkpoint, tmp_path / 'out', **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_taken_stays_as_it_is(checkpoint, tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(CheckpointError, match='already exists: choose another name'):
        export(checkpoint, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']


def test_stablehlo_does_not_need_the_package(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    for name in ('export_mask', 'export_separation'):
        monkeypatch.setattr(f'audiosep_jax.export.folder.{name}', lambda *_: b'program')
    with pytest.raises(ConfigError, match='--format stablehlo'):
        export(checkpoint, tmp_path / 'out')
    result = export(checkpoint, tmp_path / 'out', format='stablehlo')
    assert [path.name for path in result.paths] == ['mask.stablehlo', 'metadata.json', 'separate.stablehlo']
