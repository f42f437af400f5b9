"""Tests which items lend each other their texts as wrong queries."""

from hypothesis import given, settings
from hypothesis import strategies as st

from audiosep_jax.evaluation.benchmark import Item
from audiosep_jax.evaluation.query_texts import query_texts, wrong_queries


def make_item(name, label='', **queries):
    return Item(name, queries, None, None, label)


def test_each_query_type_is_a_row_and_an_item_may_lack_one():
    items = [make_item('a', caption='a dog', label='dog'), make_item('b', caption='rain')]
    assert query_texts(items, ['caption'], None) == {'separated': ['a dog', 'rain']}
    rows = query_texts([make_item('a', 'x', caption='a dog', given='hum')], ['caption', 'given', 'other'], 0)
    assert rows == {'separated, caption': ['a dog'], 'separated, given': ['hum'], 'separated, other': [None]}


def test_items_with_the_same_text_have_no_wrong_query():
    speech = [make_item(name, caption='speech') for name in 'abc']
    assert list(query_texts(speech, ['caption'], 0)) == ['separated']
    rows = query_texts([*speech, make_item('d', caption='rain')], ['caption'], 0)
    assert rows['shuffled query'].count('rain') == 1
    assert rows['shuffled query'].count('speech') == 1


@settings(max_examples=100)
@given(st.lists(st.sampled_from('abcd'), min_size=1, max_size=30), st.integers(0, 3))
def test_wrong_queries_are_wrong_and_as_frequent_as_the_right_ones(labels, seed):
    partner = wrong_queries(labels, seed)
    if len(set(labels)) == 1:
        assert partner is None
        return
    assert all(labels[p] != label for p, label in zip(partner, labels, strict=True))
    assert partner == wrong_queries(labels, seed)
    if 2 * max(map(labels.count, labels)) <= len(labels):
        assert sorted(partner) == list(range(len(labels)))


def test_wrong_queries_of_a_label_come_from_many_others():
    labels = [label for label in 'abcdefgh' for _ in range(20)]
    partner = wrong_queries(labels, 0)
    for label in 'abcdefgh':
        assert len({labels[p] for p, right in zip(partner, labels, strict=True) if right == label}) >= 5
