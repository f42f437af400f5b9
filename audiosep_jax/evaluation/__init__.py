"""Scores on the benchmarks of language-queried separation, equal to those of the original's evaluators.

benchmark.py   what a benchmark is: items, how they become one number
protocols.py   the layouts on disk, one reader each, and the published numbers
loading.py     items to waveforms, as the original loads them
statistics.py  aggregation and bootstrap intervals
journal.py     scores on disk, item by item: what a killed evaluation continues from
run.py         the evaluation: `evaluate`, `evaluate_arrays`, `validate`
results.py     what it found, as JSON and as a table
report.py      Markdown and pictures
"""
