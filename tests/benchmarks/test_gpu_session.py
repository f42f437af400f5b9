"""benchmarks/gpu_session.sh without a GPU: each part with a tiny network, and what becomes of parts that fail."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from support.paths import ROOT

from audiosep_jax.models import cost
from audiosep_jax.models.audiosep import ModelConfig

SCRIPT = ROOT / 'benchmarks' / 'gpu_session.sh'
# Python imports this module at its start. Where the project imports what is not listed, it is as if not installed.
ONLY_THESE = """
import os
import sys

ROOT = {root!r}
LISTED = {{'jax', 'flax', 'optax', 'numpy', 'torch', *sys.stdlib_module_names}}
FOLDERS = [os.path.join(ROOT, folder) for folder in ('', 'tests', 'benchmarks')]


class OnlyThese:
    def find_spec(self, name, path=None, target=None):
        top, frame = name.partition('.')[0], sys._getframe(1)
        while frame.f_back and 'importlib' in frame.f_code.co_filename:
            frame = frame.f_back
        ours = [folder for folder in FOLDERS for end in ('', '.py') if os.path.exists(os.path.join(folder, top + end))]
        if frame.f_code.co_filename.startswith(ROOT + os.sep) and top not in LISTED and not ours:
            raise ModuleNotFoundError(f'No module named {{top!r}}', name=top)


sys.meta_path.insert(0, OnlyThese())
"""


@pytest.fixture(scope='module')
def session(benchmarks_on_path):
    import gpu_session

    return gpu_session


@pytest.fixture(scope='module')
def summary(session):
    import gpu_summary

    return gpu_summary


def rehearse(out, *parts, python=sys.executable, path=''):
    """Runs the script; returns its exit code, what it printed, and how each part ended."""
    environment = os.environ | {'PYTHON': str(python), 'PYTHONPATH': str(path), 'OMP_NUM_THREADS': '2', 'XLA_FLAGS': ''}
    command = ['bash', str(SCRIPT), str(out), '--rehearse', *parts]
    done = subprocess.run(command, env=environment, cwd=out.parent, capture_output=True, text=True, timeout=900)
    lines = [json.loads(line) for line in (out / 'results.jsonl').read_text().splitlines()]
    ended = {line['part']: line for line in lines if 'status' in line}
    return done.returncode, done.stdout, ended, lines


@pytest.mark.slow
@pytest.mark.nightly
def test_measuring_needs_no_other_packages(tmp_path):
    site = tmp_path / 'site'
    site.mkdir()
    (site / 'sitecustomize.py').write_text(ONLY_THESE.format(root=str(ROOT)))
    code, printed, ended, lines = rehearse(tmp_path / 'out', path=site)
    with_torch = {'parity', 'eager-2', 'compiled-2'}
    try:
        import torch  # noqa: F401

        expected = {part: 'done' for part in with_torch}
    except ModuleNotFoundError:
        expected = {part: 'skipped' for part in with_torch}
    expected |= {'ours-2': 'done', 'traffic': 'done', 'separation': 'done'}
    expected |= {'recordings': 'skipped', 'quickstart': 'skipped'}
    assert {part: end['status'] for part, end in ended.items()} == expected, printed
    assert ended['recordings']['reason'] == 'it needs the package soundfile'
    assert code == 0
    assert 'SKIPPED   quickstart: it needs the package tyro' in printed
    assert printed.endswith((tmp_path / 'out' / 'summary.txt').read_text())

    if expected['parity'] == 'done':
        outputs = [line for line in lines if 'output' in line]
        assert [line['output'] for line in outputs] == ['a', 'b']
        assert all(0 < line['error'] < 1e-5 and line['equal'] for line in outputs)
        (gradients,) = (line for line in lines if 'gradients' in line)
        assert 0 < gradients['overall_error'] < 5e-4
        assert gradients['equal']
    steps = {line['part']: line['step'] for line in lines if 'step' in line}
    assert all(step['batch_size'] == 2 and len(step['seconds']) == 2 for step in steps.values())
    (traffic,) = (line['traffic'] for line in lines if 'traffic' in line)
    assert traffic['measured_seconds'] == steps['ours-2']['median']
    assert traffic['bytes'] == sum(traffic['bytes_by_kind'].values()) > 1e6
    assert len(traffic['dearest']) == 20
    assert sum(line.get('realtime_factor', 0) > 0 for line in lines) == 3


@pytest.mark.slow
@pytest.mark.parametrize('part', ['recordings', pytest.param('quickstart', marks=pytest.mark.nightly)])
def test_what_a_complete_installation_also_measures(tmp_path, part):
    code, printed, ended, lines = rehearse(tmp_path / 'out', part)
    assert (code, ended[part]['status']) == (0, 'done'), printed
    if part == 'quickstart':
        assert 'separated' in lines[0]['sdri']
        assert 'quickstart  ' in printed
    else:
        assert lines[0]['realtime_factor'] > 0
        assert 'from file to file' in printed


def test_a_part_that_fails_costs_only_itself(tmp_path):
    """With an interpreter that ends as if at the limit of time, by a signal, and without a package."""
    python = tmp_path / 'python'
    python.write_text(f"""#!/bin/bash
case "$1 $3" in
  *gpu_summary.py*) exec {sys.executable} "$@" ;;
  *parity) exit 124 ;;
  *ours-2) exit 139 ;;
  *eager-2)
    echo '{{"part": "eager-2", "status": "skipped", "reason": "it needs the package torch"}}' >> "$2/results.jsonl"
    exit 11 ;;
esac
""")
    python.chmod(0o755)
    code, printed, ended, _ = rehearse(tmp_path / 'out', python=python)
    assert code == 1
    assert ended['parity']['reason'] == 'stopped at its limit of 600 s'
    assert ended['ours-2']['reason'] == 'ended with code 139; see session.log'
    assert printed.splitlines()[-3:] == [
        'FAILED    parity: stopped at its limit of 600 s',
        'FAILED    ours-2: ended with code 139; see session.log',
        'SKIPPED   eager-2: it needs the package torch',
    ]
    assert 'quickstart: done' in printed


@pytest.mark.parametrize('part', ['parity', 'ours-8', 'separation'])
def test_without_a_gpu_nothing_is_measured(session, tmp_path, monkeypatch, part):
    monkeypatch.setattr(session, 'put_placeholders', lambda: None)
    assert session.run(session.Session(tmp_path, part)) == session.FAILED
    (line,) = (json.loads(line) for line in (tmp_path / 'results.jsonl').read_text().splitlines())
    assert (line['status'], line['reason']) == ('failed', 'Unavailable: JAX sees no GPU, but cpu')


def test_the_golden_values_are_of_the_whole_network(session):
    from gpu_reference import golden_reference, gradient_errors

    reference = golden_reference()
    count = sum(leaf.size for leaf in jax.tree.leaves(reference.variables['params']))
    assert count == cost.parameter_count(ModelConfig())
    assert reference.arrays['wave_a'].shape == reference.arrays['out_a'].shape == (1, 41600)
    zeros = {name: np.zeros(int(np.max(positions)) + 1) for name, (positions, _) in reference.gradients.items()}
    errors, overall = gradient_errors(zeros, reference.gradients)
    assert len(errors) == 177
    assert [*errors.values(), overall] == pytest.approx([1.0] * 178)


def test_traffic_against_time(session):
    from audiosep_jax.training.planning.compiled import Compiled, Instruction

    rows = [Instruction('a', 'fusion', 'x', 'f32[1]', 48_000_000, 0, None)] * 30
    program = Compiled(1, 2, 3, 4, tuple(rows), None, None)
    case = session.Case(session.train_step.OURS, 4, dtype='bfloat16')
    step = {**session.dataclasses.asdict(case), 'median': 6e-4, 'peak_bytes': 10}
    found = session.expectation(program, step, session.TINY, 'NVIDIA H200')
    assert found['estimated_seconds'] == pytest.approx(30 * 48e6 / 4.8e12)
    assert found['estimated_over_measured'] == pytest.approx(0.5)
    assert found['share_of_bandwidth'] == pytest.approx(0.5)
    assert (found['bytes'], found['compiled_memory']) == (30 * 48_000_000, 10)
    bound = cost.clips_per_second_bound(session.TINY.config(case), session.TINY.num_samples, 'NVIDIA H200')
    assert found['share_of_bound'] == pytest.approx(4 / bound / 6e-4)
    unknown = session.expectation(program, step, session.TINY, 'a new card')
    assert unknown['estimated_seconds'] is unknown['share_of_bound'] is unknown['share_of_bandwidth'] is None


def step_line(part, batch_size, clips_per_second):
    step = {
        'program': part, 'dtype': 'bfloat16', 'batch_size': batch_size, 'median': batch_size / clips_per_second,
        'clips_per_second': clips_per_second, 'mfu': 0.2, 'of_bound': 0.6, 'peak_bytes': 3e9,
    }  # fmt: skip
    return {'part': f'{part}-{batch_size}', 'step': step}


def test_each_program_counts_at_its_best_batch(summary, tmp_path, capsys):
    lines = [step_line('ours', 16, 200), step_line('ours', 32, 300), step_line('eager', 16, 100)]
    lines += [step_line('eager', 32, 50), step_line('compiled', 8, 150)]
    lines += [{'part': line['part'], 'status': 'done'} for line in lines]
    assert summary.summary(lines)['ratios'] == {'eager': 3.0, 'compiled': 2.0}
    (tmp_path / 'results.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    assert summary.main(tmp_path) == 0
    printed = capsys.readouterr().out
    assert '3.00 x PyTorch eager, each at its best (aim 3)' in printed
    assert '0.60 of the roofline bound (aim 0.5)' in printed
    assert json.loads((tmp_path / 'summary.json').read_text())['of_bound'] == 0.6


def test_the_latest_run_of_a_part_counts(summary):
    again = [step_line('ours', 16, 200), {'part': 'ours-16', 'status': 'failed', 'reason': 'x'}]
    again += [step_line('ours', 16, 250), {'part': 'ours-16', 'status': 'done'}, {'part': 'traffic', 'traffic': {}}]
    found = summary.summary(again)
    assert [row['clips_per_second'] for row in found['steps']['ours']] == [250]
    assert {part: end['status'] for part, end in found['ended'].items()} == {'ours-16': 'done', 'traffic': 'cut off'}


def test_unequal_outputs_are_a_failure(summary, tmp_path, capsys):
    line = {'part': 'parity', 'output': 'a', 'error': 2e-5, 'most': 1e-5, 'equal': False}
    (tmp_path / 'results.jsonl').write_text(json.dumps(line) + '\n')
    assert summary.main(tmp_path) == 1
    assert 'output: 2.0e-05, at most 1e-05: NOT EQUAL' in capsys.readouterr().out
