import pytest

from data_prep.clips.youtube import by_name, find_clip

ID = '-a_b0123456'
# As a video of which the list has one clip, and as one of many.
ONE, MANY = dict(whole_video=False, only_one=True), dict(whole_video=False, only_one=False)


@pytest.mark.parametrize('times', ['30', '30_40', '30-40', '30.000_40.000', '30.0-40.0', '30000_40000', '000030'])
@pytest.mark.parametrize('prefix', ['', 'Y', 'A title [so called] ['])
@pytest.mark.parametrize('mark', ['_', '-'])
def test_times_distinguish_the_clips_of_a_video(prefix, mark, times):
    end = ']' if '[' in prefix else ''
    name = f'{prefix}{ID}{end}{mark}{times}'
    paths = by_name([(name, 'this'), (f'{ID}_50_60', 'other'), (ID, 'whole'), ('[x', 'odd')])
    assert find_clip(paths, ID, 30, 40, **MANY) == 'this'
    assert find_clip(paths, ID, 70, 80, **MANY) is None
    assert find_clip(paths, ID, 70, 80, **ONE) == 'whole'


def test_names_of_the_exact_form_come_first():
    assert by_name([(f'Title [{ID}]', 'titled'), (ID, 'plain')])[ID] == 'plain'
    paths = by_name([(f'Title [{ID}]', 'titled'), (f'Other [{ID}]', 'second')])
    assert find_clip(paths, ID, 0, 10, **ONE) == 'titled'
    assert find_clip(paths, ID, 0, 10, whole_video=True, only_one=False) == 'titled'
    assert find_clip(paths, ID, 0, 10, **MANY) is None
