"""What processes agree on. Two real processes join each other and ask; a single process has nobody to ask."""

import json

import numpy as np
import pytest
from support.processes import run_pair

from audiosep_jax.parallel.hosts import Votes, check_same, check_shared, gathered, wait_for_all
from audiosep_jax.parallel.mesh import make_mesh

PROGRAM = """
import json, os, pathlib, sys
from audiosep_jax.errors import AudioSepError
from audiosep_jax.parallel.hosts import Votes, check_same, check_shared, gathered, wait_for_all
from audiosep_jax.parallel.launch import LaunchConfig, join
from audiosep_jax.parallel.mesh import make_mesh

address, process, folder = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
found = {'where': join(LaunchConfig(address, 2, process)).where}
wait_for_all('here')
found['gathered'] = gathered({'process': process, 'text': 'x' * (1 + 9 * process)})
votes = Votes(make_mesh())
found['votes'] = [votes.cast(process == 1 and step == 2, process + 1) for step in range(8)]
found['corrupt'] = votes.corrupt_records

def error_of(check, *arguments):
    try:
        check(*arguments)
    except AudioSepError as error:
        return type(error).__name__, str(error)

check_same({'seed': 1})
found['other settings'] = error_of(check_same, {'seed': process})
check_shared(folder / 'shared')
wait_for_all('removed')  # process 0 removes the marker, and no process has to wait for that
found['left behind'] = os.listdir(folder / 'shared')
found['other folders'] = error_of(check_shared, folder / f'folder-{process}')
(folder / f'{process}.json').write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_two_processes_agree(tmp_path):
    codes, errors = run_pair(PROGRAM, tmp_path)
    assert codes == [0, 0], errors
    first, second = (json.loads((tmp_path / f'{process}.json').read_text()) for process in range(2))
    assert first['where'] == 'flags'
    assert first['gathered'] == [{'process': 0, 'text': 'x'}, {'process': 1, 'text': 'x' * 10}]
    # Process 1 asks to stop at step 2; both hear of it two steps later.
    assert first['votes'] == [False] * 4 + [True] + [False] * 3
    assert first['corrupt'] == 3
    kind, text = first['other settings']
    assert (kind, 'process 1 was started with other settings' in text) == ('ConfigError', True)
    assert first['left behind'] == []
    kinds, texts = zip(first['other folders'], second['other folders'], strict=True)
    assert kinds == ('CheckpointError', 'CheckpointError')
    assert all('process 1 does not see what process 0 writes there' in text for text in texts)
    del first['other folders'], second['other folders']  # each names its own
    assert first == second


def test_a_single_process_agrees_with_itself(tmp_path):
    value = {'a': float('nan')}
    assert gathered(value) == [value]
    votes = Votes(make_mesh())
    assert [votes.cast(stop, 3) for stop in (False, True)] == [False, True], 'at once'
    assert votes.corrupt_records == 3
    wait_for_all('anything')
    check_same({'seed': np.pi})
    check_shared(tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
