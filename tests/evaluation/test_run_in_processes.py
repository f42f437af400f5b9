"""Tests that two processes share an evaluation, and the validation of a training run."""

import json

import pytest
from support.band_separator import BandSeparator, make_music
from support.processes import run_pair

from audiosep_jax.evaluation.protocols import read_benchmark
from audiosep_jax.evaluation.run import Options, evaluate
from audiosep_jax.parallel.hosts import gathered

PROGRAM = """
import json, sys
import jax
address, process, folder = sys.argv[1:]
jax.distributed.initialize(address, 2, int(process))
from support.band_separator import CONFIG, BandSeparator
from audiosep_jax.encoders.words import WordsEncoder
from audiosep_jax.errors import AudioSepError, CheckpointError
from audiosep_jax.evaluation.protocols import read_benchmark
from audiosep_jax.evaluation.run import Options, evaluate, validate
from audiosep_jax.models.audiosep import init_variables
from audiosep_jax.separation.separator import Separator
from audiosep_jax.parallel.mesh import make_mesh, replicated

separator = BandSeparator()
results = evaluate(separator, read_benchmark(folder + '/music'), Options(batch_size=1), journal=folder + '/out')

class Diverged(BandSeparator):
    def separate_batch(self, *arguments, **options):
        if process == '1':
            raise CheckpointError('diverged')
        return super().separate_batch(*arguments, **options)

try:
    validate(Diverged(), folder + '/music')
    said = 'nothing'
except AudioSepError as error:
    said = str(error)
# A training state: one array over the devices of both processes.
variables = jax.jit(lambda: init_variables(CONFIG, jax.random.key(0)), out_shardings=replicated(make_mesh()))()
state = validate(Separator(CONFIG, variables, WordsEncoder(CONFIG.condition_size)), folder + '/music')
found = {'results': results.to_dict(), 'calls': separator.calls, 'said': said, 'state': state.sdri}
with open(f'{folder}/{process}.json', 'w') as file:
    json.dump(found, file)
"""


@pytest.mark.slow
def test_two_processes_share_the_items_and_agree(tmp_path):
    make_music(tmp_path / 'music')
    (tmp_path / 'music' / 'mixture-3.wav').unlink()
    codes, errors = run_pair(PROGRAM, tmp_path)
    assert codes == [0, 0], errors
    found = [json.loads((tmp_path / f'{process}.json').read_text()) for process in range(2)]
    alone = evaluate(BandSeparator(), read_benchmark(tmp_path / 'music'), Options(batch_size=1)).to_dict()
    assert found[0]['results'] == found[1]['results'] == alone
    assert [one['calls'] for one in found] == [2, 1]  # items 0 and 2; item 1, without the one that is missing
    assert [one['said'] for one in found] == ['diverged', 'diverged']  # neither waits for the other
    assert found[0]['state'] == found[1]['state']
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['scores-00000.jsonl', 'scores-00001.jsonl']


def test_a_single_process_gathers_its_own_value():
    value = {'a': float('nan')}
    assert gathered(value) == [value]
