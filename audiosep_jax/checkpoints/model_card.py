"""The model card of a published separator, and the evaluation results in it."""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audiosep_jax.checkpoints.checkpoint import InferenceCheckpoint
from audiosep_jax.errors import DataError
from audiosep_jax.storage.json_files import read_json

_METRICS = ('SDRi', 'SI-SDR')


def model_card(
    checkpoint: InferenceCheckpoint,
    repository: str,
    tables: Sequence[dict[str, Any]],
    license: str | None = None,
) -> str:
    """Returns the README of the repository, which says what the separator is, how to use it, and how it scores.

    Args:
        checkpoint: the separator.
        repository: `organisation/name`.
        tables: what `read_results` returned.
        license: as the hub abbreviates it.
    """
    name = repository.partition('/')[2]
    model, encoder = checkpoint.model, (checkpoint.encoder or {}).get('name')
    queries = {
        None: 'embeddings',
        'words': 'the words of its training captions',
        'wordllama': 'words',
        'minilm': 'words',
        'clip': 'words or pictures',
    }
    example = _example_query(checkpoint)
    query = f'[{example!r}]' if encoder else f'embeddings  # float32 [queries, {model.condition_size}]'
    return f"""---
{_metadata(name, tables, license)}
---

# {name}

Separates the sound that a query describes from a recording: AudioSep's network
([arXiv 2308.05037](https://arxiv.org/abs/2308.05037)) in JAX, for use with `audiosep_jax`.

| | |
|---|---|
| sample rate | {model.sample_rate} Hz (recordings at any other rate are resampled there and back) |
| STFT | window {model.window_size}, hop {model.hop_size} |
| channels | {', '.join(map(str, model.widths))} |
| query encoder | {encoder or 'none'}; queries are {queries.get(encoder, 'words or an example of the sound')} |
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

`model.safetensors` has the tensors under the names of the original PyTorch code.{_equalizer(checkpoint)}
{_evaluation(tables)}"""


def _equalizer(checkpoint: InferenceCheckpoint) -> str:
    if checkpoint.equalizer is None:
        return ''
    share = checkpoint.equalizer.share
    return (
        f' They are the network alone: `audiosep_jax` mixes in an equalizer (`equalizer.safetensors`), as {share:.0%} '
        'of the result.'
    )


def read_results(path: Path) -> list[dict[str, Any]]:
    """Reads the tables that `audiosep-jax evaluate --json` wrote: one, or one per benchmark for `--benchmark all`.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    wrong = DataError(f'{path}: not results of `audiosep-jax evaluate --json`')
    record = read_json(path, dict, remedy='not results of `audiosep-jax evaluate --json`')
    try:
        tables = list(record['benchmarks'].values()) if 'benchmarks' in record else [record]
        usable = tables and all(_is_usable(table) for table in tables)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError) as error:
        raise wrong from error
    if not usable:
        raise wrong
    return tables


def _is_usable(table: dict[str, Any]) -> bool:
    """Whether the model card can show a table. Raises one of many errors for something that is not a table."""
    usable = table['benchmark'] and table['rows'] and all(row['n'] > 0 for row in table['rows'].values())
    return bool(usable and _evaluation([table]) and _separated_row(table)['SDRi'] is not None)


def _metadata(name: str, tables: Sequence[dict[str, Any]], license: str | None) -> str:
    """Returns the YAML header, which the hub's search and leaderboards read."""
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
            metric_value=round(_separated_row(table)[metric], 2),
        )
        for table in tables
        for metric in _METRICS
        if metric in _separated_row(table)
    ]
    data = ModelCardData(
        model_name=name,
        library_name='audiosep_jax',
        pipeline_tag='audio-to-audio',
        tags=['audio-source-separation', 'language-queried-separation', 'jax'],
        license=license,
        eval_results=scores or None,
    )
    return data.to_yaml().strip()


def _example_query(checkpoint: InferenceCheckpoint) -> str:
    """Returns a caption from the checkpoint's examples if it has any, because `words` knows only training captions."""
    for path in sorted((checkpoint.root / 'examples').glob('*.txt')):
        with contextlib.suppress(OSError, UnicodeDecodeError):  # try the next file
            lines = (line.strip() for line in path.read_text('utf-8').splitlines())
            found = next((line for line in lines if re.fullmatch(r'[\w ,.-]+', line)), None)  # needs no shell quoting
            if found:
                return found
    return 'a dog barking'


def _evaluation(tables: Sequence[dict[str, Any]]) -> str:
    if not tables:
        return ''
    lines = ['', '## Evaluation', '', '| benchmark | | SDRi, dB | SI-SDR, dB | n |', '|---|---|---|---|---|']
    for table in tables:
        for name, row in table['rows'].items():
            cells = [str(table['benchmark']), name, *(_score(row, metric) for metric in _METRICS)]
            lines.append(f'| {" | ".join(cells)} | {row["n"]} |')
    aggregations = sorted({str(table['aggregation']) for table in tables if table.get('aggregation')})
    legend = '; '.join(['Mean and 95 % interval', *aggregations])
    return '\n'.join([*lines, '', f'{legend}.', ''])


def _score(row: dict[str, Any], metric: str) -> str:
    if row.get(metric) is None:
        return ''
    interval = row.get(f'{metric}_interval')
    return f'{row[metric]:.2f}' + (f' ({interval[0]:.2f} … {interval[1]:.2f})' if interval else '')


def _separated_row(table: dict[str, Any]) -> dict[str, Any]:
    """Returns the row of the separator's own scores, which is the first."""
    return next(iter(table['rows'].values()))
