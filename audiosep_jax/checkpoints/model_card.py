"""The model card of a published separator."""

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from audiosep_jax.checkpoints.checkpoint import InferenceCheckpoint
from audiosep_jax.errors import DataError


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
