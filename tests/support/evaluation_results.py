"""Evaluation results of a checkpoint of step 7, as `audiosep-jax evaluate --json` writes them."""

ROW = {'n': 12, 'SDRi': 8.126, 'SDRi_interval': [7.0, 9.0], 'SI-SDR': 5.5, 'SI-SDR_interval': [4.0, 7.0]}
RESULTS = {
    'benchmark': 'music',
    'rows': {'separated': ROW, 'no separation': {'n': 12, 'SDRi': 0.0, 'SI-SDR': None}},
    'aggregation': 'mean over labels',
    'checkpoint': {'path': '/home/me/runs/base', 'step': 7},
}
