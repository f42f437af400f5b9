"""The blocks of code in README.md and docs/, and what their commands find around them: small stand-ins."""

import configparser
import contextlib
import dataclasses
import functools
import glob
import importlib.util
import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import soundfile
import tyro
from support import tiny_clap
from support.paths import ROOT
from support.small_separator import save_small

import data_prep.__main__ as data_prep
from audiosep_jax.checkpoints.convert import from_torch
from audiosep_jax.cli import terminal
from audiosep_jax.cli.main import main
from audiosep_jax.models.audiosep import ModelConfig, init_variables
from audiosep_jax.models.torch_names import tensors_from_variables
from audiosep_jax.training import experiment
from audiosep_jax.weights.tensor_files import write_tensors

PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
_BLOCK = re.compile(
    r'^(?:<!-- *(?P<mark>[^>]*?) *-->\n+)?```(?P<language>bash|python)\n(?P<code>.*?)^```$', re.M | re.S
)
_FENCE = re.compile(r'^```(\w*)$', re.M)
# Programs of others, which a block may name where it is not run.
_OF_OTHERS = (
    *('pip', 'python3', '.', 'pytest', 'pre-commit', 'hf', 'ffmpeg', 'ffplay', 'sox'),
    *('cd', 'ssh', 'gcloud', 'sbatch', 'tensorboard', 'curl'),
)


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of code.

    Attributes:
        mark: what it needs that a test has not (`needs: …`), or `tests`, which `.ci/run` runs; '': it is run.
    """

    page: str
    line: int
    language: str
    mark: str
    code: str

    @property
    def is_run(self) -> bool:
        return not self.mark

    def commands(self) -> list[list[str]]:
        """Of a shell block, the words of each command."""
        lines = re.sub(r'\\\n|(?<=\|)\n', ' ', self.code).splitlines()
        words = [shlex.split(part, comments=True) for line in lines for part in re.split(r'&&|\|\|?|;', line)]
        return [command for command in words if command]


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order. Raises AssertionError for a fence that is none of them and could be one."""
    text = page.read_text('utf-8')
    found = [
        Block(page.name, text.count('\n', 0, m.start('code')), m['language'], m['mark'] or '', m['code'])
        for m in _BLOCK.finditer(text)
    ]
    fences = [language for language in _FENCE.findall(text) if language]
    assert len(found) == len(fences), f'{page.name}: {fences} of which {len(found)} are understood'
    for block in found:
        assert re.fullmatch(r'|tests|needs: .+', block.mark), f'{page.name}:{block.line}: mark {block.mark!r}'
    return found


# ---- running ---------------------------------------------------------------------------------------------------------


def run(block: Block) -> None:
    """Runs a block in the current folder, in this process."""
    if block.language == 'python':
        exec(compile(block.code, f'{block.page}:{block.line}', 'exec'), {'__name__': '__main__'})
        return
    for command in block.commands():
        command = [name for word in command for name in (sorted(glob.glob(word)) if '*' in word else [word])]
        program, arguments = _program(command)
        assert program is not None, f'{block.page}:{block.line}: {command} is run nowhere: mark it'
        assert program(arguments) == 0, f'{block.page}:{block.line}: {command}'


def dry_run(block: Block) -> None:
    """As far as it goes without what it needs: the syntax, and every flag through the program's own parser."""
    where = f'{block.page}:{block.line}'
    if block.language == 'python':
        compile(block.code, where, 'exec')
        return
    subprocess.run(['bash', '-n', '-c', block.code], check=True)
    for command in block.commands():
        if Path(command[0]).name == 'audiosep-jax':
            _parse_cli(command[1:], where)
        elif command[:3] == ['python', '-m', 'data_prep']:
            _parse_data_prep(command[3:], where)
        elif command[0] == 'python':
            _parse_script(ROOT / command[1], command[2:], where)
        else:
            assert command[0] in _OF_OTHERS, f'{where}: unknown program {command[0]}'
            _check_extras(command, where)


def _program(command: list[str]):
    if command[0] == 'audiosep-jax':
        return main, command[1:]
    if command[:3] == ['python', '-m', 'data_prep']:
        return data_prep.main, command[3:]
    return None, []


class _Understood(BaseException):
    """The flags are fine, and the work would begin."""


def _stopped(function):
    """A function of the same parameters that ends the call instead of working."""

    @functools.wraps(function)
    def stop(*_, **__):
        raise _Understood

    return stop


@contextlib.contextmanager
def _stopped_at(module, *names: str):
    """What the module would call under these names ends the call instead."""
    were = {name: getattr(module, name) for name in names}
    for name, function in were.items():
        setattr(module, name, _stopped(function))
    try:
        yield
    finally:
        for name, function in were.items():
            setattr(module, name, function)


def _parse_cli(arguments: list[str], where: str) -> None:
    with _stopped_at(terminal, 'terminable'):
        try:
            code = main(arguments)
        except _Understood:
            return
    raise AssertionError(f'{where}: audiosep-jax {arguments} ended with {code}')


def _parse_data_prep(arguments: list[str], where: str) -> None:
    with _stopped_at(data_prep, 'build', 'embed', 'verify', 'stats', 'merge', 'inspect', 'stage', 'make_eval'):
        try:
            code = data_prep.main(arguments)
        except _Understood:
            return
    raise AssertionError(f'{where}: data_prep {arguments} ended with {code}')


def _parse_script(script: Path, arguments: list[str], where: str) -> None:
    """An experiment's flags make its configuration, and nothing is trained."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    argv, sys.argv = sys.argv, [str(script), *arguments]
    try:
        if inspect.signature(module.main).parameters:  # they are its flags
            tyro.cli(_stopped(module.main))
        else:
            with _stopped_at(experiment, 'enable_compilation_cache'):
                module.main()
    except _Understood:
        return
    finally:
        sys.argv = argv
    raise AssertionError(f'{where}: {script.name} ended without training')


def _check_extras(command: list[str], where: str) -> None:
    """`pip install '.[x]'`: there is an extra x."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / 'setup.cfg')
    for extra in re.findall(r'\.\[([\w,]+)\]', ' '.join(command)):
        for name in extra.split(','):
            assert name in settings['options.extras_require'], f'{where}: no extra {name}'


# ---- stand-ins -------------------------------------------------------------------------------------------------------


def furnish(folder: Path) -> None:
    """Everything that the pages name as the reader's own, small: sounds, lists, checkpoints."""
    rng = np.random.default_rng(0)
    for name, channels in (('street.wav', 2), ('street.flac', 2), ('talk.mp3', 1), ('bark.wav', 1), ('dog.flac', 1)):
        soundfile.write(folder / name, 0.1 * rng.standard_normal((6000, channels)), 16000)
    np.save(folder / 'dog.npy', rng.standard_normal(512))
    clips = []
    for i in range(3):
        soundfile.write(folder / f'clip{i}.wav', 0.1 * rng.standard_normal(32000), 32000)
        clips.append({'wav': f'clip{i}.wav', 'caption': f'sound {i}'})
    (folder / 'datafile.json').write_text(json.dumps({'data': clips}))
    save_small(folder / 'RUN')
    save_small(folder / 'quickstart')
    soundfile.write(folder / 'quickstart' / 'mixture.wav', 0.1 * rng.standard_normal(8000), 8000)
    _save_converted(folder)


def _save_converted(folder: Path) -> None:
    """`official`: what converting the official checkpoint gives, with the official front end and a few weights."""
    model = ModelConfig(widths=(1,) * 6, condition_size=16)
    state = tensors_from_variables(jax.device_get(init_variables(model, jax.random.key(0))), model)
    tensors = {f'ss_model.{k}': v for k, v in state.items()}
    tensors |= {f'query_encoder.model.{k}': v for k, v in tiny_clap.laion_tensors().items()}
    write_tensors(folder / 'x.safetensors', tensors)
    from_torch(folder / 'x.safetensors', folder / 'official')
    tiny_clap.write_tokenizer(folder / 'official' / 'encoder')
