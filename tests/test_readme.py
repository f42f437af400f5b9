"""Every block of code in README.md and docs/ works.

It is run on small stand-ins, or, where it says what it needs that a test has not, dry-run: its syntax, and its flags
through the programs' own parsers.
"""

import re
import shutil

import pytest
from support.documents import PAGES, ROOT, Block, blocks, dry_run, furnish, run


@pytest.fixture(scope='module')
def furniture(tmp_path_factory):
    folder = tmp_path_factory.mktemp('furniture')
    furnish(folder)
    return folder


@pytest.fixture
def house(furniture, tmp_path, monkeypatch, offline):
    """A folder with the reader's own files in it, and no network."""
    shutil.copytree(furniture, tmp_path / 'house')
    monkeypatch.chdir(tmp_path / 'house')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_work_in_their_order(page, house):
    for block in blocks(page):
        print(f'{block.page}:{block.line} {block.mark or "is run"}')
        (run if block.is_run else dry_run)(block)


def test_most_blocks_are_run():
    everything = [block for page in PAGES for block in blocks(page)]
    assert len([block for block in everything if block.is_run]) >= 12
    assert [block.page for block in everything if block.mark == 'tests'] == ['README.md']


@pytest.mark.parametrize(
    ('code', 'language'),
    [
        ('audiosep-jax separate street.wav --quary rain\n', 'bash'),
        ('audiosep-jax separat street.wav --query rain\n', 'bash'),
        ('python -m data_prep build manifest --sauce x\n', 'bash'),
        ('python experiments/audiosep_clap.py --workdir x --data y --model.hop-sise 3\n', 'bash'),
        ('python experiments/quickstart.py --workdirs x\n', 'bash'),
        ("pip install -e '.[nothing]'\n", 'bash'),
        ('audiosep-jax separate "street.wav\n', 'bash'),
        ('frobnicate\n', 'bash'),
        ('import (\n', 'python'),
    ],
)
def test_a_dry_run_finds_what_is_wrong(code, language):
    with pytest.raises((AssertionError, Exception, SystemExit)):
        dry_run(Block('x.md', 1, language, 'needs: x', code))


def test_a_run_finds_what_is_wrong(house):
    for code in ('audiosep-jax separate none.wav --query rain --checkpoint RUN\n', 'ls\n'):
        with pytest.raises(AssertionError):
            run(Block('x.md', 1, 'bash', '', code))


@pytest.mark.parametrize('text', ['```sh\nls\n```\n', '<!-- whatever -->\n```bash\nls\n```\n'])
def test_a_block_that_is_neither_is_refused(tmp_path, text):
    (tmp_path / 'page.md').write_text(text)
    with pytest.raises(AssertionError):
        blocks(tmp_path / 'page.md')


def test_what_the_pages_point_at_is_there():
    for page in PAGES:
        for target in re.findall(r'\]\(([^)#][^)]*)\)', page.read_text('utf-8')):
            if '://' in target:
                continue
            path, _, heading = target.partition('#')
            file = page.parent / path
            assert file.exists(), f'{page.name}: {target}'
            assert not heading or heading in _headings(file), f'{page.name}: {target}'


def _headings(file) -> set[str]:
    lines = re.findall(r'^#+ (.*)$', file.read_text('utf-8'), re.M)
    return {re.sub(r'[^\w -]', '', line.lower()).replace(' ', '-') for line in lines}


def test_the_readme_stays_readable():
    assert len((ROOT / 'README.md').read_text('utf-8').splitlines()) <= 200
