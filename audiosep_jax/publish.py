"""Publishing: a checkpoint as a repository of the hub (`hub_folder.py`), with a model card and its scores."""

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audiosep_jax.checkpoint import InferenceCheckpoint, load_for_inference
from audiosep_jax.encoders.pretrained import REPOSITORIES, locate, store
from audiosep_jax.errors import CheckpointError, ConfigError, DataError, DownloadError
from audiosep_jax.hub_folder import write_hub_folder
from audiosep_jax.published import find_checkpoint
from audiosep_jax.storage.atomic import new_folder
from audiosep_jax.weights import hub


def push(
    checkpoint: str | Path,
    repository: str,
    *,
    private: bool = False,
    results: Sequence[str | Path] = (),
    license: str | None = None,
    step: int | None = None,
) -> str:
    """Uploads a checkpoint to the hub, from where `load(repository)` gets it; returns the repository's address.

    The repository is made if it is not there. The token is that of `hf auth login`, or `HF_TOKEN`.

    Args:
        checkpoint: see `load`.
        repository: `organisation/name` or `user/name`.
        private: of a repository that is made by this.
        results: files of `audiosep-jax evaluate --json`, for the table of the model card.
        license: for the model card, as the hub abbreviates it (`mit`, `cc-by-nc-4.0`).
        step: which one, by default the newest.

    Raises:
        ConfigError: not the name of a repository.
        CheckpointError: see `load`; or its encoder's files are not here.
        DataError: results that are none, or of another checkpoint.
        DownloadError: no network, no token, no permission.
    """
    name = check_repository(repository)
    with tempfile.TemporaryDirectory(prefix='audiosep-jax-') as folder:
        write_repository(checkpoint, Path(folder), repository, results=results, license=license, step=step)
        return hub.upload(name, Path(folder), private=private)


def check_repository(repository: str) -> hub.Reference:
    """The repository of a name. Raises ConfigError for what is none."""
    reference = hub.parse_repository(repository)
    if reference is None:
        raise ConfigError(f'{repository!r} is not the name of a repository: say organisation/name')
    return reference


def make_repository(checkpoint: str | Path, folder: Path, repository: str, **options: Any) -> list[Path]:
    """As `push`, into a folder that is not there yet, complete or not at all; uploads nothing. Returns its files.

    Args:
        options: those of `push`, `private` excepted.

    Raises:
        CheckpointError: see `push`; or the folder exists or cannot be made.
    """
    check_repository(repository)
    if folder.exists():
        raise CheckpointError(f'{folder} is there already: choose another name')
    try:
        with new_folder(folder) as temporary:
            write_repository(checkpoint, temporary, repository, **options)
    except OSError as error:
        raise CheckpointError(f'{folder}: cannot be made: {error.strerror or error}') from error
    return sorted(path for path in folder.rglob('*') if path.is_file())


def write_repository(
    source: str | Path,
    folder: Path,
    repository: str,
    *,
    results: Sequence[str | Path] = (),
    license: str | None = None,
    step: int | None = None,
) -> None:
    """All files of the repository, into an empty folder. Raises as `push` does."""
    found = [(path, table) for path in results for table in _read_results(Path(path))]
    tables = [table for _, table in found]
    checkpoint = load_for_inference(find_checkpoint(source), step=step)
    for path, table in found:
        scored = (table.get('checkpoint') or {}).get('step')
        if scored not in (None, checkpoint.step):
            raise DataError(f'{path}: scores of step {scored}, but the checkpoint is of step {checkpoint.step}')
    encoder = _with_encoder(checkpoint, folder / 'encoder')
    write_hub_folder(folder, checkpoint, encoder)
    if (checkpoint.root / 'examples').is_dir():
        shutil.copytree(checkpoint.root / 'examples', folder / 'examples')
    (folder / 'README.md').write_text(model_card(checkpoint, repository, tables, license), 'utf-8')


def _with_encoder(checkpoint: InferenceCheckpoint, folder: Path) -> dict | None:
    """The encoder's identity as others can use it: its files are put into the folder unless the hub has them."""
    identity = checkpoint.encoder
    if identity is None or ('source' not in identity and identity['name'] not in REPOSITORIES):
        return identity
    source, stored = str(identity.get('source', identity['name'])), checkpoint.root / 'encoder'
    if stored.is_dir():
        store(stored, folder)
    elif source not in REPOSITORIES and hub.parse_reference(source) is None:
        try:
            store(locate(source), folder)
        except (ConfigError, DownloadError) as error:
            raise CheckpointError(
                f'its query encoder is not here, and nobody else could load it: put it into {stored} ({error})'
            ) from error
    # A path of this machine is nobody else's business.
    return {**identity, 'source': identity['name']} if folder.is_dir() else identity


# ---- the model card --------------------------------------------------------------------------------------------------


def model_card(
    checkpoint: InferenceCheckpoint, repository: str, tables: Sequence[dict], license: str | None = None
) -> str:
    """The README of the repository: what it is, how to use it, its scores."""
    from huggingface_hub import ModelCardData
    from huggingface_hub.repocard_data import EvalResult

    scores = [
        EvalResult(
            task_type='audio-to-audio',
            task_name='language-queried audio source separation',
            dataset_type=str(table['benchmark']),
            dataset_name=str(table['benchmark']),
            metric_type=metric.lower(),
            metric_name=f'{metric} (dB)',
            metric_value=round(_separated(table)[metric], 2),
        )
        for table in tables
        for metric in ('SDRi', 'SI-SDR')
        if metric in _separated(table)
    ]
    data = ModelCardData(
        model_name=repository.partition('/')[2],
        library_name='audiosep_jax',
        pipeline_tag='audio-to-audio',
        tags=['audio-source-separation', 'language-queried-separation', 'jax'],
        license=license,
        eval_results=scores or None,
    )
    model, encoder = checkpoint.model, (checkpoint.encoder or {}).get('name')
    asks = {None: 'embeddings', 'words': 'the words of its training captions', 'clip': 'words or pictures'}
    example = _example(checkpoint)
    query = f'[{example!r}]' if encoder else f'embeddings  # float32 [queries, {model.condition_size}]'
    return f"""---
{data.to_yaml().strip()}
---

# {repository.partition('/')[2]}

Separates from a recording the sound that a query describes: AudioSep's network
([arXiv 2308.05037](https://arxiv.org/abs/2308.05037)) in JAX, by `audiosep_jax`.

| | |
|---|---|
| sample rate | {model.sample_rate} Hz (recordings of any other are resampled there and back) |
| STFT | window {model.window_size}, hop {model.hop_size} |
| channels | {', '.join(map(str, model.widths))} |
| query encoder | {encoder or 'none'}: asked with {asks.get(encoder, 'words or an example of the sound')} |
| training step | {checkpoint.step} |

```python
import audiosep_jax as asj

separator = asj.load('{repository}')
audio, rate = asj.read_audio('street.wav')
out = separator.separate(audio, {query}, sample_rate=rate)
asj.write_audio('target.wav', out.targets[0], rate)
```

```bash
audiosep-jax separate street.wav --query "{example}" --checkpoint {repository} -o target.wav
```

`model.safetensors` has the tensors under the names of the original PyTorch code.
{_evaluation(tables)}"""


def _example(checkpoint: InferenceCheckpoint) -> str:
    """Something to ask it for: a caption of its own examples, since `words` knows no others, if there are any."""
    for path in sorted((checkpoint.root / 'examples').glob('*.txt')):
        with contextlib.suppress(OSError, UnicodeDecodeError):  # other files serve as well
            lines = (line.strip() for line in path.read_text('utf-8').splitlines())
            found = next((line for line in lines if re.fullmatch(r'[\w ,.-]+', line)), None)  # no shell's quotes
            if found:
                return found
    return 'a dog barking'


def _evaluation(tables: Sequence[dict]) -> str:
    if not tables:
        return ''
    lines = ['', '## Evaluation', '', '| benchmark | | SDRi, dB | SI-SDR, dB | n |', '|---|---|---|---|---|']
    for table in tables:
        for name, row in table['rows'].items():
            cells = [str(table['benchmark']), name, *(_score(row, metric) for metric in ('SDRi', 'SI-SDR'))]
            lines.append(f'| {" | ".join(cells)} | {row["n"]} |')
    how = sorted({str(table['aggregation']) for table in tables if table.get('aggregation')})
    return '\n'.join(
        [*lines, '', f'Mean and 95 % interval; {"; ".join(how)}.' if how else 'Mean and 95 % interval.', '']
    )


def _score(row: dict, metric: str) -> str:
    if row.get(metric) is None:
        return ''
    interval = row.get(f'{metric}_interval')
    return f'{row[metric]:.2f}' + (f' ({interval[0]:.2f} … {interval[1]:.2f})' if interval else '')


def _separated(table: dict) -> dict:
    """The row of what the separator gave, which is the first."""
    return next(iter(table['rows'].values()))


def _read_results(path: Path) -> list[dict]:
    """The tables that `audiosep-jax evaluate --json` wrote: one, or with `--benchmark all` one for each benchmark."""
    wrong = DataError(f'{path}: not results of `audiosep-jax evaluate --json`')
    try:
        record = json.loads(path.read_text('utf-8'))
    except OSError as error:
        raise DataError(f'{path}: cannot be read: {error.strerror or error}') from error
    except (ValueError, RecursionError) as error:
        raise wrong from error
    try:
        tables = list(record['benchmarks'].values()) if 'benchmarks' in record else [record]
        usable = tables and all(_is_usable(table) for table in tables)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise wrong from error
    if not usable:
        raise wrong
    return tables


def _is_usable(table: dict) -> bool:
    """Whether the model card can be made of it; what is none at all raises one of many errors."""
    usable = table['benchmark'] and table['rows'] and all(row['n'] > 0 for row in table['rows'].values())
    return bool(usable and _evaluation([table]) and _separated(table)['SDRi'] is not None)
