"""The layout of the tree: small folders and files, and every module tested where one would look for it."""

import ast

import pytest
from support.paths import ROOT, TESTS

PACKAGES = ('audiosep_jax', 'data_prep')
CODE = sorted(path for package in PACKAGES for path in (ROOT / package).rglob('*.py'))
ALL_CODE = [
    *CODE,
    *(path for folder in ('experiments', 'benchmarks', 'tests') for path in sorted((ROOT / folder).rglob('*.py'))),
]
MAX_LINES, MAX_FUNCTION_LINES = 500, 70
MAX_MODULES, MAX_ROOT_MODULES = 14, 10
TESTED_FROM_LINES = 40

# Modules without a test file of their own, and the tests that exercise them.
TESTED_ELSEWHERE = {
    'audiosep_jax/__init__.py': 'tests/test_import.py',
    'audiosep_jax/cli/convert.py': 'tests/checkpoints/test_convert.py',
    'audiosep_jax/cli/inspect.py': 'tests/cli/test_checkpoint.py',
    'audiosep_jax/cli/push.py': 'tests/checkpoints/test_publish.py',
    'audiosep_jax/cli/serve.py': 'tests/web/test_server.py',
    'audiosep_jax/cli/terminal.py': 'tests/cli/test_main.py',
    'audiosep_jax/encoders/layers.py': 'tests/encoders/clap/test_roberta.py',
    'audiosep_jax/evaluation/benchmark.py': 'tests/evaluation/test_protocols.py',
    'audiosep_jax/evaluation/layouts/tables.py': 'tests/evaluation/test_protocols.py',
    'data_prep/datasets/synthetic.py': 'tests/data_prep/test_synthetic.py',
    'data_prep/options.py': 'tests/data_prep/test_main.py',
    'data_prep/workers.py': 'tests/data_prep/test_build_jobs.py',
}
# Procedural sounds are tested by what all of them have in common.
TESTED_ELSEWHERE |= {
    path.relative_to(ROOT).as_posix(): 'tests/data_prep/test_synthetic.py'
    for path in (ROOT / 'data_prep' / 'synthetic').glob('*.py')
}


def relative(path) -> str:
    return path.relative_to(ROOT).as_posix()


def home_of_tests(path) -> str:
    """Returns where the tests of a module are expected, below the repository's root."""
    parts = path.relative_to(ROOT / 'audiosep_jax').parts if path.is_relative_to(ROOT / 'audiosep_jax') else None
    parts = parts or path.relative_to(ROOT).parts
    name = 'main' if parts[-1] == '__main__.py' else parts[-1].removesuffix('.py')
    return '/'.join(['tests', *parts[:-1], f'test_{name}.py'])


def test_every_module_is_tested_where_one_would_look():
    missing = [
        f'{relative(path)}: no {home_of_tests(path)}'
        for path in CODE
        if len(path.read_text('utf-8').splitlines()) > TESTED_FROM_LINES
        and relative(path) not in TESTED_ELSEWHERE
        and not (ROOT / home_of_tests(path)).exists()
    ]
    assert not missing, '\n'.join(missing)


def test_the_table_of_exceptions_is_current():
    for module, tests in TESTED_ELSEWHERE.items():
        path = ROOT / module
        assert path.exists(), module
        assert (ROOT / tests).exists(), tests
        assert not (ROOT / home_of_tests(path)).exists(), f'{module} has tests of its own: remove its entry'


def test_folders_are_small():
    for package in PACKAGES:
        for folder in [ROOT / package, *(ROOT / package).rglob('*/')]:
            limit = MAX_ROOT_MODULES if folder == ROOT / 'audiosep_jax' else MAX_MODULES
            modules = [path.name for path in folder.glob('*.py') if path.name != '__init__.py']
            assert len(modules) <= limit, f'{relative(folder)} holds {len(modules)} modules'


@pytest.mark.parametrize('path', ALL_CODE, ids=relative)
def test_files_and_functions_are_short(path):
    text = path.read_text('utf-8')
    assert len(text.splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f'{node.name} has {lines} lines'


def test_names_say_what_they_hold():
    named = [relative(path) for path in ALL_CODE if {*path.parts, path.stem} & {'utils', 'helpers', 'misc', 'common'}]
    assert not named


def test_test_files_do_not_import_each_other():
    modules = {path.stem for path in TESTS.rglob('test_*.py')}
    for path in TESTS.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text('utf-8'))):
            names = [node.module or ''] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert name.split('.')[0] not in {*modules, 'tests'}, f'{relative(path)}: {name}'
