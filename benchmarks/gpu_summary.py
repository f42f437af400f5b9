"""The results of `gpu_session.sh` as a table: printed, and written to summary.txt and summary.json.

    python benchmarks/gpu_summary.py DIR

Exits with 1 if a part failed. Imports nothing but Python's own modules.
"""

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = 'results.jsonl'
PROGRAMS = {'ours': 'audiosep_jax', 'eager': 'PyTorch eager', 'compiled': 'PyTorch compiled'}
PROGRAMS |= {'autotuned': 'PyTorch compiled, max-autotune'}
AIMS = {'eager': 3.0, 'compiled': 1.3, 'of_bound': 0.5}


def latest(lines: list[dict]) -> dict[str, list[dict]]:
    """The lines of each part's latest run; a run ends with its status."""
    runs: dict[str, list[dict]] = {}
    for line in lines:
        run = runs.setdefault(line['part'], [])
        if run and 'status' in run[-1]:
            run.clear()
        run.append(line)
    return runs


def summary(lines: list[dict]) -> dict[str, Any]:
    """What the session found, by subject."""
    runs = latest(lines)
    found = [line for run in runs.values() for line in run]
    steps: dict[str, dict] = {}
    for line in found:
        if 'step' in line:
            steps.setdefault(line['part'].partition('-')[0], {})[line['step']['batch_size']] = line['step']
    best = {name: max(rows.values(), key=lambda row: row['clips_per_second']) for name, rows in steps.items()}
    ours = best.get('ours')
    ratios = {
        name: ours['clips_per_second'] / row['clips_per_second']
        for name, row in best.items()
        if ours and name != 'ours'
    }
    return {
        'device': next((line['device'] for line in found if 'device' in line), None),
        'parity': [line for line in found if 'equal' in line],
        'steps': {name: [rows[size] for size in sorted(rows)] for name, rows in steps.items()},
        'ratios': ratios,
        'of_bound': ours and ours['of_bound'],
        'traffic': [line['traffic'] for line in found if 'traffic' in line],
        'separation': [line for line in found if 'realtime_factor' in line],
        'quickstart': [line for line in found if 'quickstart_seconds' in line],
        'ended': {
            part: run[-1] if 'status' in run[-1] else {'status': 'cut off'} for part, run in latest(lines).items()
        },
    }


def text(found: dict[str, Any]) -> str:
    """The table."""
    rows = [*_device(found['device']), *_parity(found['parity']), *_steps(found['steps'])]
    for name, ratio in found['ratios'].items():
        rows.append(f'  {ratio:.2f} x {PROGRAMS[name]}, each at its best' + _aim(AIMS.get(name)))
    if found['of_bound']:
        rows.append(f'  {found["of_bound"]:.2f} of the roofline bound' + _aim(AIMS['of_bound']))
    rows += [*_traffic(found['traffic']), *_separation(found['separation'])]
    for line in found['quickstart']:
        scores = ', '.join(f'{name} {value:.2f}' for name, value in line['sdri'].items())
        rows.append(f'quickstart  {line["quickstart_seconds"]:.0f} s; SDRi in dB: {scores}')
    for part, end in found['ended'].items():
        if end['status'] != 'done':
            rows.append(f'{end["status"].upper():8}  {part}: {end.get("reason", "the session ended first")}')
    return '\n'.join(rows) + '\n'


def _device(device: dict | None) -> list[str]:
    if not device:
        return ['device      not known: neither parity nor a step of ours ran']
    versions = ', '.join(f'{name} {device[name]}' for name in ('python', 'jax', 'torch'))
    return [f'device      {device["kind"]} ({device["nvidia_smi"]}), {versions}']


def _parity(lines: list[dict]) -> list[str]:
    rows = []
    for line in lines:
        verdict = f'at most {line["most"]:.0e}: {"equal" if line["equal"] else "NOT EQUAL"}'
        if 'gradients' in line:
            rows.append(
                f'parity      gradients: median {line["median_error"]:.1e}, {verdict}; '
                f'all together {line["overall_error"]:.1e}; worst {line["worst_error"]:.1e} in {line["worst"]}'
            )
        else:
            rows.append(f'parity      output: {line["error"]:.1e}, {verdict}')
    return rows


def _steps(steps: dict[str, list[dict]]) -> list[str]:
    header = ('step', 'type', 'clips', 'ms', 'clips/s', 'MFU', 'of bound', 'GB')
    rows = [
        (
            PROGRAMS[name],
            row['dtype'],
            str(row['batch_size']),
            _ms(row['median']),
            f'{row["clips_per_second"]:.1f}',
            _share(row['mfu']),
            _share(row['of_bound']),
            f'{row["peak_bytes"] / 1e9:.1f}',
        )
        for name, cases in steps.items()
        for row in cases
    ]
    return aligned(header, rows)


def _traffic(lines: list[dict]) -> list[str]:
    header = ('traffic', 'GB', 'TB/s', 'of peak', 'predicted ms', 'bound ms', 'measured ms', 'GB needed', 'GB at most')
    rows = [
        (
            f'{line["batch_size"]} clips',
            f'{line["bytes"] / 1e9:.1f}',
            f'{line["bandwidth"] / 1e12:.2f}',
            _share(line['share_of_bandwidth']),
            _ms(line['estimated_seconds']),
            _ms(line['bound_seconds']),
            _ms(line['measured_seconds']),
            f'{line["compiled_memory"] / 1e9:.1f}',
            f'{line["peak_memory"] / 1e9:.1f}',
        )
        for line in lines
    ]
    return aligned(header, rows)


def aligned(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Lines of columns, the first to the left and the others to the right; none without rows."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    table = [header, *rows] if rows else []
    return [
        '  '.join(cell.rjust(n) if i else cell.ljust(n) for i, (cell, n) in enumerate(zip(row, widths, strict=True)))
        for row in table
    ]


def _separation(lines: list[dict]) -> list[str]:
    rows = []
    for line in lines:
        if 'recording' in line:
            what = f'{line["recording"]["seconds"]:g} s, from file to file'
        else:
            what = f'{line["recordings"]} × {line["sound_seconds"]:g} s, on arrays'
        rows.append(f'separation  {what}: {line["realtime_factor"]:.1f} s of sound a second')
    return rows


def _share(value: float | None) -> str:
    return '' if value is None else f'{value:.0%}'


def _ms(seconds: float | None) -> str:
    return '' if seconds is None else f'{1e3 * seconds:.1f}'


def _aim(aim: float | None) -> str:
    return f' (aim {aim:g})' if aim else ''


def main(folder: Path) -> int:
    results = folder / RESULTS
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    found = summary(lines)
    (folder / 'summary.json').write_text(json.dumps(found, indent=2) + '\n')
    (folder / 'summary.txt').write_text(text(found))
    print(text(found), end='')
    unequal = any(not line['equal'] for line in found['parity'])
    return int(unequal or not lines or any(end['status'] == 'failed' for end in found['ended'].values()))


if __name__ == '__main__':
    sys.exit(main(Path(sys.argv[1])))
