"""Compares token ids with ids by hand and with transformers' tokenizers."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.tiny_clap import write_tokenizer

from audiosep_jax.encoders.tokenizer import has_tokenizer, open_tokenizer
from audiosep_jax.errors import CheckpointError

TEXTS = [
    'a dog barking',
    'A Dog  BARKING!! ',
    ' \t leading and trailing\n',
    'naïve café, déjà vu',
    'e\u0301 decomposed, ﬁ ligature, İstanbul, ſ, ẞ',
    'собака лает, 犬が吠える, كلب ينبح',
    '🐕🔥 woof 👩\u200d👩\u200d👧',
    "don't, we're, it's, they'LL, o'clock",
    'x' * 60,
    '1234 5.6e7',
    'a\u00a0b\u2003c\u3000d\u200be',
    'line\nbreak\r\nand\ttab',
    '\u0000 control \u007f',
    '<s> in the text </s> <pad> <mask>',
    '<|startoftext|> in the text <|endoftext|>',
    'the dog is barking in the rain while a car passes by ' * 30,
]


@pytest.fixture(scope='module', params=['roberta', 'clip'])
def trained(request, tmp_path_factory):
    """The kind and folder of a small tokenizer that was trained on these texts, as vocab.json and merges.txt."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == 'roberta')
    special = {'roberta': ['<s>', '<pad>', '</s>', '<unk>', '<mask>'], 'clip': ['<|startoftext|>', '<|endoftext|>']}
    settings = {}
    tokenizer.pre_tokenizer = byte_level
    if kind == 'clip':
        words = pre_tokenizers.Split(Regex(r'\S+'), 'removed', invert=True)
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
        settings['end_of_word_suffix'] = '</w>'
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=byte_level.alphabet(),
        special_tokens=special[kind],
        show_progress=False,
        **settings,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.model.save(str(folder))
    if kind == 'clip':  # as in CLIP's own, every byte may end a word
        vocabulary = json.loads((folder / 'vocab.json').read_text('utf-8'))
        for byte in sorted(byte_level.alphabet()):
            vocabulary.setdefault(f'{byte}</w>', len(vocabulary))
        (folder / 'vocab.json').write_text(json.dumps(vocabulary), 'utf-8')
    return kind, folder


@pytest.fixture(scope='module')
def reference_tokenizer(trained):
    """The tokenizer of transformers for the same folder."""
    transformers = pytest.importorskip('transformers')
    kind, folder = trained
    name = {'roberta': 'RobertaTokenizerFast', 'clip': 'CLIPTokenizerFast'}[kind]
    return getattr(transformers, name).from_pretrained(str(folder))


@pytest.mark.parametrize('max_length', [512, 77, 9, 2])
def test_same_ids_as_transformers(trained, reference_tokenizer, max_length):
    kind, folder = trained
    ids, mask = open_tokenizer(folder, kind).encode(TEXTS, max_length)
    expected = reference_tokenizer(TEXTS, padding=True, truncation=True, max_length=max_length)
    np.testing.assert_array_equal(ids, expected['input_ids'])
    np.testing.assert_array_equal(mask, expected['attention_mask'])


def test_same_ids_from_one_file(trained, reference_tokenizer, tmp_path):
    """The tokenizer.json that transformers writes gives the same ids, and a fixed length in it is ignored."""
    kind, folder = trained
    reference_tokenizer.save_pretrained(str(tmp_path))
    settings = json.loads((tmp_path / 'tokenizer.json').read_text('utf-8'))
    settings['truncation'] = {'direction': 'Right', 'max_length': 5, 'strategy': 'LongestFirst', 'stride': 0}
    (tmp_path / 'tokenizer.json').write_text(json.dumps(settings), 'utf-8')
    assert not (tmp_path / 'vocab.json').exists()
    ids, mask = open_tokenizer(tmp_path, kind).encode(TEXTS, 100)
    expected, expected_mask = open_tokenizer(folder, kind).encode(TEXTS, 100)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(mask, expected_mask)


@pytest.fixture
def by_hand(tmp_path):
    write_tokenizer(tmp_path)
    return tmp_path


def test_ids_by_hand(by_hand):
    tokenizer = open_tokenizer(by_hand, 'roberta')
    vocabulary = json.loads((by_hand / 'vocab.json').read_text('utf-8'))
    ids, mask = tokenizer.encode(['dog rain', 'cat'], 512)
    begin, end, padding = 0, 2, 1
    spaced = [vocabulary['Ġ'], vocabulary['rain']]  # no merge joins the space with the word
    assert ids.tolist() == [
        [begin, vocabulary['dog'], *spaced, end],
        [begin, vocabulary['cat'], end, padding, padding],
    ]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert ids.dtype == mask.dtype == np.int32
    assert (tokenizer.padding_id, tokenizer.vocabulary_size) == (1, len(vocabulary))


def test_a_long_text_keeps_its_end_token(by_hand):
    ids, mask = open_tokenizer(by_hand, 'roberta').encode(['dog' * 600, 'cat'], 512)
    assert ids.shape == (2, 512)
    assert (ids[0, 0], ids[0, -1]) == (0, 2)
    assert mask.sum(axis=1).tolist() == [512, 3]


def test_no_texts(by_hand):
    ids, mask = open_tokenizer(by_hand, 'roberta').encode([], 512)
    assert ids.shape == mask.shape == (0, 0)


def test_half_a_surrogate_pair_counts_as_a_question_mark(by_hand):
    tokenizer = open_tokenizer(by_hand, 'roberta')
    np.testing.assert_array_equal(tokenizer.encode(['dog \ud83d'], 512)[0], tokenizer.encode(['dog ?'], 512)[0])


def test_clip_lower_cases_and_collapses_spaces(tmp_path):
    tokens = ['d', 'o', 'g</w>', 'do', 'dog</w>', 'a</w>', '<|startoftext|>', '<|endoftext|>']
    (tmp_path / 'vocab.json').write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (tmp_path / 'merges.txt').write_text('#version: 0.2\nd o\ndo g</w>\n')
    ids, mask = open_tokenizer(tmp_path, 'clip').encode(['A\n  DOG', 'a'], 77)
    assert ids.tolist() == [[6, 5, 4, 7], [6, 5, 7, 7]]  # padded with the end token
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_a_folder_without_a_tokenizer(by_hand):
    assert has_tokenizer(by_hand)
    (by_hand / 'merges.txt').unlink()
    assert not has_tokenizer(by_hand)
    with pytest.raises(CheckpointError, match=r'no tokenizer\.json'):
        open_tokenizer(by_hand, 'roberta')


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('tokenizer.json', '{"model": 1}'),
        ('tokenizer.json', 'not JSON'),
        ('vocab.json', '[1]'),
        ('vocab.json', '{"a":'),
        ('merges.txt', 'one\n'),
        ('merges.txt', 'never seen\n'),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(by_hand, name, content):
    (by_hand / name).write_text(content)
    with pytest.raises(CheckpointError, match=name) as caught:
        open_tokenizer(by_hand, 'roberta')
    assert '\n' not in str(caught.value)


def test_bytes_that_are_not_text(by_hand):
    (by_hand / 'merges.txt').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(CheckpointError, match='damaged'):
        open_tokenizer(by_hand, 'roberta')


def test_the_tokenizer_of_another_model(by_hand):
    with pytest.raises(CheckpointError, match=r'not the tokenizer of a clip model, it has no token <\|startoftext\|>'):
        open_tokenizer(Path(by_hand), 'clip')
