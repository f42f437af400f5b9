"""Every small file that is read, damaged in many ways: the outcome is a value or an error in one line."""

import json
import random
import shutil
import unicodedata

import numpy as np
import pytest
from support.mutations import damaged, damaged_csv, damaged_json
from support.small_dataset import build_small
from support.small_media import write_sound
from support.small_separator import save_small
from support.tiny_clap import write_hugging_face, write_tokenizer

from audiosep_jax.checkpoints.convert import FrontEnd, from_torch, to_torch
from audiosep_jax.checkpoints.find import open_checkpoint
from audiosep_jax.checkpoints.model_card import read_results
from audiosep_jax.checkpoints.publish import make_repository
from audiosep_jax.checkpoints.run_folder import load_for_inference
from audiosep_jax.data.embeddings import EmbeddingCache
from audiosep_jax.data.shards import Shards
from audiosep_jax.encoders.clap.encoder import ClapEncoder
from audiosep_jax.encoders.clip.images import read_image_config
from audiosep_jax.encoders.clip.model import read_config
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.encoders.tokenizer import open_tokenizer
from audiosep_jax.encoders.towers import read_settings
from audiosep_jax.errors import AudioSepError
from audiosep_jax.evaluation.journal import Journal
from audiosep_jax.evaluation.protocols import read_benchmark
from audiosep_jax.evaluation.run import _kept
from audiosep_jax.separation.queries import Query
from audiosep_jax.separation.query_files import LearntQuery, QueryScores
from audiosep_jax.training.monitoring.log import TrainingLog
from audiosep_jax.weights.tensor_files import open_tensors, write_tensors
from data_prep.datasets.audioset import read_audioset
from data_prep.datasets.fsd50k import read_fsd50k
from data_prep.datasets.manifest import read_manifest
from data_prep.datasets.music import read_music
from data_prep.datasets.vggsound import read_vggsound
from data_prep.datasets.wavcaps import read_wavcaps
from data_prep.embed import embed_captions
from data_prep.exclusions import read_ids
from data_prep.stats import dataset_stats
from data_prep.verify import verify_dataset

ROUNDS = 12  # mutations of each file; all of them are the same in each run
SCORES = {'name': 'x', 'silent': False, 'scores': {'separated': {'SDR': 1.25}}}


# ---- what reads the files --------------------------------------------------------------------------------------------


def read_dataset(folder):
    """Reads all that a dataset consists of. `verify` reports what is wrong, and the others raise it."""
    found = verify_dataset(folder)
    for problem in found.problems:
        assert_one_line(problem)
    dataset_stats(folder, measure=0)
    EmbeddingCache(Shards(folder), 'words').rows(0)
    return found.num_clips


def read_journal(folder):
    with Journal(folder) as journal:
        found = [_kept(journal.get(f'key {i}')) for i in range(5)]
    assert all(record in (None, SCORES) for record in found)  # no damaged score is believed
    return found


def resume_log(folder):
    with TrainingLog(folder, {'config': {}}, after_step=20, tensorboard=False):
        return (folder / 'log.jsonl').read_bytes()


def read_clip_settings(folder):
    settings = read_settings(folder / 'config.json')
    return settings and read_config(settings, 'config.json'), read_image_config(folder, 32)


def read_original(folder):
    return to_torch(open_checkpoint(folder), folder / 'x.pt')


def read_tokens(folder):
    return open_tokenizer(folder, 'roberta').encode(['a dog'], 9)


# The damaged file, what reads its folder, and a kind of damage besides those of bytes.
FILES = [
    ('dataset/splits/train.json', read_dataset, damaged_json),
    ('dataset/splits/train-00000-of-00002.json', read_dataset, damaged_json),
    ('dataset/splits/train-skipped.csv', read_dataset, damaged_csv),
    ('dataset/dataset_info.json', read_dataset, damaged_json),
    ('dataset/embeddings/words/encoder.json', read_dataset, damaged_json),
    ('dataset/embeddings/words/train.json', read_dataset, damaged_json),
    ('dataset/embeddings/words/train-00000-of-00002.npy', read_dataset, None),
    ('dataset/embeddings/words/train-00000-of-00002.offsets.npy', read_dataset, None),
    ('run/checkpoints/7/config/metadata', lambda folder: load_for_inference(folder).record, damaged_json),
    ('hub/config.json', open_checkpoint, damaged_json),
    ('sharded/model.safetensors.index.json', open_tensors, damaged_json),
    ('converted/original/tree.json', read_original, damaged_json),
    ('results/results.json', lambda folder: read_results(folder / 'results.json'), damaged_json),
    ('clap/config.json', ClapEncoder.open, damaged_json),
    ('clap/preprocessor_config.json', ClapEncoder.open, damaged_json),
    ('clip/config.json', read_clip_settings, damaged_json),
    ('clip/preprocessor_config.json', read_clip_settings, damaged_json),
    ('tokens/vocab.json', read_tokens, damaged_json),
    ('tokens/merges.txt', read_tokens, None),
    ('single/tokenizer.json', read_tokens, damaged_json),
    ('scores/scores-00000.jsonl', read_journal, None),
    ('log/log.jsonl', resume_log, None),
    ('query/query.npy', lambda folder: str(Query.vector_file(folder / 'query.npy')) and 1, None),
    ('learnt/bark.query', lambda folder: str(Query.vector_file(folder / 'bark.query')) and 1, damaged_json),
    ('list/list.json', lambda folder: len(read_manifest(folder / 'list.json')), damaged_json),
    ('list/list.csv', lambda folder: len(read_manifest(folder / 'list.csv')), damaged_csv),
    ('list/ids.json', lambda folder: len(read_ids(folder / 'ids.json')), damaged_json),
    ('list/ids.csv', lambda folder: len(read_ids(folder / 'ids.csv')), damaged_csv),
    ('wavcaps/json_files/BBC_Sound_Effects/bbc_final.json', lambda f: len(read_wavcaps(f, **ALL)), damaged_json),
    ('music/MUSIC_solo_videos.json', lambda folder: len(read_music(folder)), damaged_json),
    ('fsd/FSD50K.ground_truth/dev.csv', lambda folder: len(read_fsd50k(folder, titles=True)), damaged_csv),
    ('fsd/FSD50K.metadata/dev_clips_info_FSD50K.json', lambda f: len(read_fsd50k(f, titles=True)), damaged_json),
    ('vgg/vggsound.csv', lambda folder: len(read_vggsound(folder)), damaged_csv),
    ('audioset/eval_segments.csv', lambda folder: len(read_audioset(folder, 'eval')), damaged_csv),
    ('audioset/class_labels_indices.csv', lambda folder: len(read_audioset(folder, 'eval')), damaged_csv),
    ('table/bench.csv', lambda folder: len(read_benchmark(folder).items), damaged_csv),
    ('dcase/lass_synthetic_validation.csv', lambda folder: len(read_benchmark(folder).items), damaged_csv),
]
ALL = {'allow_evaluation_clips': True}
TABLES = {
    'dataset/splits/train-skipped.csv': ['id,reason,message', 'a,missing,lost', 'b,excluded,"x, y"'],
    'list/list.csv': ['wav,caption,labels', '0.wav,rain,a;b', '1.wav,"wind, rain",c'],
    'list/ids.csv': ['# YTID', 'youtube_id,start', 'b0RFKhbpFJA,30', 'c0RFKhbpFJA,40'],
    'fsd/FSD50K.ground_truth/dev.csv': ['fname,labels,mids,split', '1,"Bird,Crow",/m/1,train', '2,Dog,/m/2,train'],
    'vgg/vggsound.csv': ['b0RFKhbpFJA,30,dog barking,train', 'c0RFKhbpFJA,40,"rain, wind",train'],
    'audioset/eval_segments.csv': [
        *('# Segments csv', '# num_ytids=2', '# YTID, start_seconds, end_seconds, positive_labels'),
        *('b0RFKhbpFJA, 30.000, 40.000, "/m/1,/m/2"', 'c0RFKhbpFJA, 0.000, 10.000, "/m/1"'),
    ],
    'audioset/class_labels_indices.csv': ['index,mid,display_name', '0,/m/1,"Dog, bark"', '1,/m/2,Rain'],
    'table/bench.csv': ['mixture,target,query,label', 'a.wav,b.wav,rain,r', 'c.wav,d.wav,"a dog, barking",d'],
    'dcase/lass_synthetic_validation.csv': ['source,noise,snr,caption', 'a,b,3,rain', 'c,d,-1.5,"wind, rain"'],
}


# ---- the files, whole ------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A folder of each kind, with all its files intact."""
    root = tmp_path_factory.mktemp('whole')
    for name in ('sharded', 'clap', 'clip', 'tokens', 'single', 'query'):
        (root / name).mkdir()
    build_small(root / 'dataset', 5)
    _write_checkpoints(root)
    _write_encoders(root)
    _write_lists(root)
    with Journal(root / 'scores') as journal:
        journal.append({f'key {i}': SCORES for i in range(5)})
    (root / 'log').mkdir()
    (root / 'log' / 'log.jsonl').write_text(''.join(f'{{"step": {10 * i}, "loss": 0.5}}\n' for i in range(1, 6)))
    score = {'SDRi': 1.5, 'SDRi_interval': [1.0, 2.0], 'SI-SDR': 2.0, 'n': 3}
    write(root / 'results/results.json', {'benchmark': 'a', 'aggregation': 'mean', 'rows': {'separated': score}})
    np.save(root / 'query' / 'query.npy', np.ones((1, 16), np.float32))
    _write_learnt(root / 'learnt' / 'bark.query')
    return root


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), 'utf-8')


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def _write_checkpoints(root):
    save_small(root / 'run')
    make_repository(root / 'run', root / 'hub', 'me/small')
    to_torch(open_checkpoint(root / 'run'), root / 'small.ckpt')
    from_torch(root / 'small.ckpt', root / 'converted', front_end=FrontEnd(8000, 128, 64))
    for part in 'ab':
        write_tensors(root / 'sharded' / f'{part}.safetensors', {part: np.ones(3, np.float32)})
    index = {'metadata': {}, 'weight_map': {'a': 'a.safetensors', 'b': 'b.safetensors'}}
    write(root / 'sharded' / 'model.safetensors.index.json', index)


def _write_encoders(root):
    write_hugging_face(root / 'clap', features={'sampling_rate': 48000, 'frequency_min': 50, 'frequency_max': 14000})
    vision = {'hidden_size': 96, 'image_size': 32, 'patch_size': 16, 'hidden_act': 'gelu', 'layer_norm_eps': 1e-5}
    write(root / 'clip/config.json', {'model_type': 'clip', 'vision_config': vision, 'text_config': {'vocab_size': 9}})
    images = {'size': {'shortest_edge': 32}, 'crop_size': {'height': 32, 'width': 32}, 'image_mean': [0.5, 0.5, 0.5]}
    write(root / 'clip' / 'preprocessor_config.json', images | {'image_std': [1, 1, 1], 'rescale_factor': 0.1})
    write_tokenizer(root / 'tokens')
    open_tokenizer(root / 'tokens', 'roberta')._backend.save(str(root / 'single' / 'tokenizer.json'))


def _write_learnt(path):
    scores = QueryScores(1.0, 2.0, -3.0)
    values = {'checkpoint': 'runs/a', 'start': 'the query', 'examples': ('a.wav',), 'backgrounds': ()}
    numbers = {'step': 3, 'steps': 40, 'learnt': True, 'held_out_mixtures': 64, 'before': scores, 'after': scores}
    identity = {'encoder': {'name': 'words'}, 'network': '0123'}
    LearntQuery(embedding=np.ones(16, np.float32), **identity, **values, **numbers).save(path)


def _write_lists(root):
    entries = [{'wav': f'{i}.wav', 'caption': 'rain', 'labels': ['a']} for i in range(3)]
    write(root / 'list' / 'list.json', {'data': entries})
    write(root / 'list' / 'ids.json', {'AudioSet': ['Yb0RFKhbpFJA'], 'x': [{'id': 3}]})
    for name in ('AudioSet_SL/as_final', 'BBC_Sound_Effects/bbc_final', 'FreeSound/fsd_final', 'SoundBible/sb_final'):
        clips = [{'id': f'{i}', 'caption': 'rain', 'duration': 5.0, 'audio': 'wav_path'} for i in range(3)]
        write(root / 'wavcaps' / 'json_files' / f'{name}.json', {'num_captions_per_audio': 1, 'data': clips})
        touch(root / 'wavcaps' / name.split('/')[0], *(f'{i}.flac' for i in range(3)))
    videos = {'violin': ['b0RFKhbpFJA'], 'flute': ['c0RFKhbpFJA']}
    write(root / 'music' / 'MUSIC_solo_videos.json', {'videos': videos})
    write_sound(root / 'music' / 'b0RFKhbpFJA.wav', seconds=10, rate=8000)
    titles = {'1': {'title': 'crow_1.wav'}, '2': {'title': 'x'}}
    write(root / 'fsd' / 'FSD50K.metadata' / 'dev_clips_info_FSD50K.json', titles)
    touch(root / 'fsd' / 'FSD50K.dev_audio', '1.wav', '2.wav')
    touch(root / 'vgg', 'b0RFKhbpFJA_000030.mp4', 'c0RFKhbpFJA_000040.mp4')
    touch(root / 'audioset', 'b0RFKhbpFJA.mp4', 'c0RFKhbpFJA.mp4')
    for name, lines in TABLES.items():
        write(root / name, ''.join(f'{line}\n' for line in lines))


# ---- damage ----------------------------------------------------------------------------------------------------------


def assert_one_line(message):
    assert message.splitlines() == [message]
    assert not {unicodedata.category(character) for character in message} & {'Cc', 'Cs', 'Zl', 'Zp'}, message


def outcome(read, path):
    """Returns what reading gives, or the message of one of the project's errors."""
    try:
        return read(path)
    except AudioSepError as error:
        message = str(error)
        assert_one_line(message)
        assert len(message) < 2100
        return message


def damage_and_read(whole, folder, number, name, read, damage):
    """Damages a copy of a folder in the way of this number, and returns the outcome of reading it; 0 is no damage."""
    rng = random.Random(f'{name} {number}')
    shutil.copytree(whole / name.split('/')[0], folder / name.split('/')[0])
    if number:
        kind = damage if damage and number % 2 else damaged
        (folder / name).write_bytes(kind((whole / name).read_bytes(), rng))
    try:
        return outcome(read, folder / name.split('/')[0])
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(('name', 'read', 'damage'), FILES, ids=[name for name, *_ in FILES])
def test_a_damaged_file_is_a_value_or_one_line(whole, tmp_path, capfd, name, read, damage):
    for number in range(ROUNDS):
        found = damage_and_read(whole, tmp_path / 'copy', number, name, read, damage)
        assert number or not isinstance(found, str), found
    assert not capfd.readouterr().err


@pytest.mark.parametrize('name', ['train-00001-of-00002.npy', 'train-00001-of-00002.offsets.npy', 'train.json'])
def test_embedding_again_repairs_a_damaged_cache(whole, tmp_path, name):
    dataset = tmp_path / 'dataset'
    shutil.copytree(whole / 'dataset', dataset)
    folder = dataset / 'embeddings' / 'words'
    files = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    words = load_encoder('words')
    for number in range(2 * ROUNDS):
        header = files[folder / name][:128]  # the numbers of rows have no checksum
        changed = damaged(header, random.Random(number)) + files[folder / name][128:]
        (folder / name).write_bytes(changed)
        embed_captions(dataset, words)
        rows = EmbeddingCache(Shards(dataset), 'words').rows(4)
        assert rows.shape == (1, 512)
        assert np.isfinite(rows).all()
        assert {path: path.read_bytes() for path in files} == files
