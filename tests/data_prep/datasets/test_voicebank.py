import os

import numpy as np
import pytest
import soundfile

from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import ConfigError, DataError
from data_prep.__main__ import main
from data_prep.datasets.voicebank import CAPTIONS, read_voicebank

VOICE = np.random.default_rng(0).uniform(-0.5, 0.5, 2400)


def sounds(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        soundfile.write(folder / name, VOICE, 48000)


def texts(folder, *ids):
    folder.mkdir(parents=True, exist_ok=True)
    for clip_id in ids:
        (folder / f'{clip_id}.txt').write_bytes(f'\ufeffPlease call Stella, {clip_id}.\r\n'.encode())


@pytest.fixture
def corpus(tmp_path):
    """The folder with all the archives unpacked, of four training clips and two of test speakers."""
    train, other, test = ('p226_001', 'p226_002'), ('p234_001', 's5_003'), ('p232_001', 'p257_434')
    for part, ids in (('trainset_28spk', train), ('trainset_56spk', other), ('testset', test)):
        for kind in ('clean', 'noisy'):
            sounds(tmp_path / f'{kind}_{part}_wav', *(f'{clip_id}.wav' for clip_id in ids))
        texts(tmp_path / f'{part}_txt', *ids)
        (tmp_path / f'log_{part}.txt').write_bytes(''.join(f'{clip_id} bus 17.5\r\n' for clip_id in ids).encode())
    (tmp_path / 'log_readme.txt').write_text('file name, noise type, SNR\n')
    return tmp_path


def ids(files) -> list[str]:
    return [entry.id for entry in files.entries]


def reasons(files) -> list[tuple[str, str]]:
    return [(clip.id, clip.reason) for clip in files.left_out]


def test_splits_are_the_clean_speech_of_their_speakers(corpus):
    train = read_voicebank(corpus)
    assert [(e.id, e.path) for e in train.entries] == [
        ('p226_001', 'clean_trainset_28spk_wav/p226_001.wav'),
        ('p226_002', 'clean_trainset_28spk_wav/p226_002.wav'),
        ('p234_001', 'clean_trainset_56spk_wav/p234_001.wav'),
        ('s5_003', 'clean_trainset_56spk_wav/s5_003.wav'),
    ]
    assert {entry.captions for entry in train.entries} == {CAPTIONS}
    assert {entry.labels for entry in train.entries} == {('Speech',)}
    test = read_voicebank(corpus, 'test')
    assert [e.path for e in test.entries] == [f'clean_testset_wav/{name}.wav' for name in ('p232_001', 'p257_434')]
    assert train.left_out == test.left_out == []
    assert train.read(0, 48000).audio.shape == (2400,)


def test_a_training_set_is_chosen(corpus):
    assert ids(read_voicebank(corpus, train_set='28spk')) == ['p226_001', 'p226_002']
    assert ids(read_voicebank(corpus, train_set='56spk')) == ['p234_001', 's5_003']
    (corpus / 'clean_trainset_28spk_wav').rename(corpus / 'clean_trainset_wav')  # as in the release of 2016
    assert ids(read_voicebank(corpus, train_set='28spk')) == ['p226_001', 'p226_002']
    with pytest.raises(ConfigError, match='28spk, 56spk, all'):
        read_voicebank(corpus, train_set='84spk')
    with pytest.raises(ConfigError, match='train and test'):
        read_voicebank(corpus, 'validation')


def test_no_test_speaker_is_ever_in_train(corpus):
    """Whatever folder, letters or depth they are found with."""
    sounds(corpus / 'clean_trainset_28spk_wav', 'p232_001.wav', 'P257_002.WAV', 'p2321_001.wav')
    sounds(corpus / 'clean_trainset_56spk_wav' / 'clean_trainset_56spk_wav', 'p257_003.wav', 'p243_001.wav')
    train = read_voicebank(corpus)
    assert ids(train) == ['p226_001', 'p226_002', 'p2321_001', 'p234_001', 'p243_001', 's5_003']
    assert reasons(train) == [('p257_002', 'excluded'), ('p232_001', 'excluded'), ('p257_003', 'excluded')]
    test = read_voicebank(corpus, 'test')
    assert ids(test) == ['p232_001', 'p257_002', 'p257_003', 'p257_434']
    assert test.entries[0].path == 'clean_testset_wav/p232_001.wav'
    assert reasons(test) == [('p232_001', 'excluded')]  # the second file of that id
    assert 'same clip as clean_testset_wav/p232_001.wav' in test.left_out[0].message


def test_strangers_in_a_folder_are_reported(corpus):
    sounds(corpus / 'clean_testset_wav', 'p226_001.wav', 'noise.wav', '._p232_001.wav')
    (corpus / 'clean_testset_wav' / os.fsdecode(b'p232_\xe9.wav')).touch()  # no record holds a name that is not UTF-8
    (corpus / 'loop').symlink_to(corpus / 'loop')
    left_out = [('noise', 'excluded'), ('p226_001', 'excluded'), ('p232_\\udce9', 'unreadable')]
    assert reasons(read_voicebank(corpus, 'test')) == left_out
    assert reasons(read_voicebank(corpus)) == []


def test_what_transcripts_and_logs_name_and_is_not_there_is_missing(corpus):
    for path in ('clean_trainset_28spk_wav/p226_002.wav', 'clean_testset_wav/p257_434.wav'):
        (corpus / path).unlink()
    (corpus / 'testset_txt' / 'p257_434.txt').unlink()  # the log still has it
    (corpus / 'logfiles').mkdir()
    (corpus / 'log_testset.txt').rename(corpus / 'logfiles' / 'log_testset.txt')
    (corpus / 'log_trainset_28spk.txt').unlink()
    assert reasons(read_voicebank(corpus)) == [('p226_002', 'missing')]
    assert reasons(read_voicebank(corpus, 'test')) == [('p257_434', 'missing')]


def test_logs_of_sets_that_were_not_fetched_are_no_loss(corpus):
    for path in (corpus / 'clean_trainset_56spk_wav').iterdir():
        path.unlink()
    (corpus / 'clean_trainset_56spk_wav').rmdir()
    assert read_voicebank(corpus).left_out == []


def test_transcripts_are_captions_on_request(corpus):
    (corpus / 'trainset_28spk_txt' / 'p226_002.txt').write_bytes('Caf\xe9'.encode('latin1'))
    (corpus / 'trainset_56spk_txt' / 'p234_001.txt').write_bytes(b'')
    captions = {e.id: e.captions for e in read_voicebank(corpus, transcripts=True).entries}
    assert captions['p226_001'] == (*CAPTIONS, 'a person saying "Please call Stella, p226_001."')
    assert captions['p226_002'] == captions['p234_001'] == CAPTIONS
    assert len(captions['s5_003']) == len(CAPTIONS) + 1


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match='cannot be listed'):
        read_voicebank(tmp_path / 'none')
    with pytest.raises(DataError, match='holds no folder clean_trainset_28spk_wav'):
        read_voicebank(tmp_path)
    (tmp_path / 'clean_testset_wav').mkdir()
    with pytest.raises(DataError, match='holds no folder clean_trainset_56spk_wav'):
        read_voicebank(tmp_path, train_set='56spk')
    with pytest.raises(DataError, match='no clean speech of the test speakers'):
        read_voicebank(tmp_path, 'test')


def test_build(corpus, tmp_path):
    """With an empty file and a test speaker among the training clips, 24 bits and another rate."""
    (corpus / 'clean_trainset_28spk_wav' / 'p226_001.wav').write_bytes(b'')
    sounds(corpus / 'clean_trainset_28spk_wav', 'p257_001.wav')
    soundfile.write(corpus / 'clean_trainset_56spk_wav' / 's5_003.wav', VOICE, 16000, subtype='PCM_24')
    for split in ('train', 'test'):
        options = ['--source', str(corpus), '--split', split, '--out', str(tmp_path / 'shards'), '--jobs', '1']
        assert main(['build', 'voicebank', *options]) == 0
    train, test = (Shards(tmp_path / 'shards', split) for split in ('train', 'test'))
    assert [train.read(k).id for k in range(len(train))] == ['p226_002', 'p234_001', 's5_003']
    assert [test.read(k).id for k in range(len(test))] == ['p232_001', 'p257_001', 'p257_434']
    assert [train.waveform(k).shape for k in range(3)] == [(1600,), (1600,), (4800,)]
    assert train.read(0).captions == CAPTIONS
