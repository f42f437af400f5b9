"""Scores models on the benchmarks of language-queried separation, as the original's evaluators do.

benchmark.py    a benchmark: its items, and how their scores become one number
protocols.py    reads the benchmarks' folders; the published scores
loading.py      loads the waveforms of items as the original does
query_texts.py  chooses the texts of the queries, right and wrong ones
run.py          the evaluation: `evaluate`, `evaluate_arrays`, `validate`
scoring.py      separates and scores a batch of items
speech.py       scores of speech: PESQ, STOI, SSNR
composite.py    the composite measures of speech: CSIG, CBAK, COVL
baselines.py    an equalizer per class, and an oracle mask
training_mask.py  the equalizers of a training set
journal.py      scores on disk, with which a killed evaluation resumes
statistics.py   aggregation and bootstrap intervals
results.py      the results, as JSON and as a table
report.py       Markdown and pictures
failures/       a page about where it fails
"""
