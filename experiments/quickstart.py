"""Trains a small separator from scratch in minutes, without any download or accelerator.

    python experiments/quickstart.py --workdir quickstart

The script synthesizes a captioned corpus of eight sounds at 8 kHz, builds its shards and embeddings, trains, writes
checkpoints, scores mixtures of two unseen clips each, and separates one of them to WAV files and a picture.

It takes 3.5 minutes on two CPU cores. Expect an SDRi of 9 dB; a fixed equalizer per class reaches 4.5 dB, and queries
for a wrong sound give less than 0 dB. The same command resumes an interrupted run.
"""

if __name__ == '__main__':
    import audiosep_jax.program  # noqa: F401  # before what takes long to import

import dataclasses
from pathlib import Path

import jax
import numpy as np
import tyro
from rich.console import Console

from audiosep_jax.audio.writing import write_together
from audiosep_jax.data.batches import DataConfig
from audiosep_jax.data.embeddings import cached_encoders
from audiosep_jax.encoders import wordllama
from audiosep_jax.encoders.base import QueryEncoder
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import reported
from audiosep_jax.evaluation.baselines import SpectralMask
from audiosep_jax.evaluation.results import FIXED_MASK, HALF, Results, Row, write_json
from audiosep_jax.evaluation.run import Options, evaluate_arrays, score_estimates
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.plots import spectrogram_panels
from audiosep_jax.separation.loading import load
from audiosep_jax.separation.separator import Separator
from audiosep_jax.storage.cache import enable_compilation_cache
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.mixing import AbsentQueries, SegmentMixer
from audiosep_jax.training.optim import OptimizerConfig
from audiosep_jax.training.train import train
from data_prep import synthetic
from data_prep.build import build_shards
from data_prep.datasets.synthetic import SyntheticClips
from data_prep.embed import embed_captions

# These overlap in frequency and differ in their structure over time, so an equalizer cannot separate them.
CLASSES = ('siren', 'dog', 'guitar', 'rain', 'clock', 'telephone', 'knocking', 'cat')
CLIP_SECONDS = 1.5
TRAINING_CLIPS = 640
TEST_CLIPS = 240
EXAMPLES = 4


def get_config(workdir: Path, seed: int, steps: int) -> TrainConfig:
    """Returns a small version of the article's network and recipe: 1.3 M parameters, most of them for the query.

    Three sources and many absent queries teach it to leave out what it is not asked for. AMSGrad would keep the steps
    of so short a run small, because it remembers the large gradients of the start. For recordings, begin with the
    command in docs/train.md, "On a CPU".
    """
    return TrainConfig(
        workdir=str(workdir),
        input=DataConfig(data=(str(workdir / 'dataset'),), segment_seconds=CLIP_SECONDS),
        steps=steps,
        batch_size=max(8, 4 * jax.device_count()),  # at least one group of four to mix per device
        seed=seed,
        model=ModelConfig(sample_rate=8000, window_size=256, hop_size=128, widths=(8, 16, 32, 32, 64, 64)),
        mixing=SegmentMixer(max_mix_num=3, mix_group=4, lower_db=-5, upper_db=5),
        absent=AbsentQueries(share=0.4, start=steps // 3),
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule='cosine', warmup_steps=steps // 20, amsgrad=False),
        ema_decay=0.99,
        log_every=20,
        checkpoint_every=250,
    )


def main(workdir: Path = Path('quickstart'), seed: int = 0, steps: int = 1400, encoder: str = '') -> None:
    """Builds a corpus, trains on it, evaluates, and separates a mixture.

    Args:
        workdir: folder for all results; if it holds a run, that run is resumed.
        seed: seed of the sounds, the weights and the mixtures.
        steps: number of optimizer steps.
        encoder: query encoder; without one, that of the run to resume, or else wordllama where its package is installed
            and words elsewhere.
    """
    enable_compilation_cache()
    queries = load_encoder(encoder or default_encoder(workdir / 'dataset'))
    config = for_encoder(get_config(workdir, seed, steps), queries)
    rate = config.model.sample_rate

    print(f'1/4  corpus: {TRAINING_CLIPS} clips of {", ".join(CLASSES)}', flush=True)
    sounds = SyntheticClips(TRAINING_CLIPS, seed, CLIP_SECONDS, CLASSES)
    build_shards(sounds, workdir / 'dataset', sample_rate=rate, name='quickstart', clips_per_shard=160)
    embed_captions(workdir / 'dataset', queries)

    print(f'2/4  training: {steps} steps of {config.batch_size} clips', flush=True)
    result = train(config)
    if result.stopped:
        print(f'stopped after step {result.step}: the same command resumes')
        return

    print(f'3/4  evaluation: {TEST_CLIPS} mixtures of two unseen clips, equally loud', flush=True)
    separator = load(workdir)
    # The clips after those of the training set have the same classes, but are new to the network.
    test = SyntheticClips(TEST_CLIPS, seed, CLIP_SECONDS, CLASSES, first=TRAINING_CLIPS)
    unseen = [test.read(i, rate) for i in range(TEST_CLIPS)]
    mixtures, targets = mix_pairs(unseen, seed)
    results = evaluate(separator, sounds, unseen, mixtures, targets)
    write_json(workdir / 'results.json', results.to_dict())

    print('4/4  separation of one mixture', flush=True)
    query = unseen[0].captions[0]  # the classes alternate; this is a siren, the easiest to see in a picture
    separated = separator.separate(mixtures[0], query, sample_rate=rate).targets[0, 0]
    panels = {'mixture': mixtures[0], 'target': targets[0], 'separated': separated}
    spectrogram_panels(workdir / 'separation.png', panels, rate, title=f'query: {query}')
    write_together({workdir / f'{name}.wav': sound[None] for name, sound in panels.items()}, rate)
    write_examples(workdir / 'examples', unseen[:EXAMPLES], mixtures, rate)

    for table in results.table():
        Console().print(table)
    print(f'query         {query}')
    print(f'sounds        {", ".join(str(workdir / f"{name}.wav") for name in panels)}')
    print(f'spectrograms  {workdir / "separation.png"}')
    print(f'checkpoint    {results.info["path"]}')
    print(f'all scores    {workdir / "results.json"}')
    print(f'floors        {"; ".join(_scores(row) for row in results.rows if row.name in (HALF, FIXED_MASK))}')
    print(f'SDRi {results.sdri:.2f} dB and SI-SDR {results.si_sdr:.2f} dB on {TEST_CLIPS} mixtures of unseen clips')


def _scores(row: Row) -> str:
    return f'{row.name}: SDRi {row.sdri:.2f} dB, SI-SDR {row.si_sdr:.2f} dB'


def default_encoder(dataset: Path) -> str:
    """Returns the encoder that the dataset has embeddings of, or else the best one that needs no download."""
    if existing := cached_encoders(dataset):
        return existing[0]
    if wordllama.is_installed():
        return 'wordllama'
    print('note: queries may use the words of the captions only; for others, pip install wordllama')
    return 'words'


def for_encoder(config: TrainConfig, encoder: QueryEncoder) -> TrainConfig:
    """Returns the configuration for training with an encoder's embeddings."""
    return dataclasses.replace(
        config,
        input=dataclasses.replace(config.input, encoder=encoder.name),
        model=dataclasses.replace(config.model, condition_size=encoder.embedding_size),
    )


def mix_pairs(clips: list[synthetic.Clip], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mixes each clip with a random one of another class at the same energy.

    Returns:
        (mixtures, targets), both float32 [n, T].
    """
    rng = np.random.default_rng(seed)
    mixtures, targets = [], []
    for clip in clips:
        others = [other for other in clips if other.labels != clip.labels]
        noise = others[rng.integers(len(others))].audio
        mixture = clip.audio + noise * np.sqrt(np.mean(clip.audio**2) / np.mean(noise**2))
        gain = min(1, 0.9 / np.max(np.abs(mixture)))
        mixtures.append(gain * mixture)
        targets.append(gain * clip.audio)
    return np.stack(mixtures), np.stack(targets)


def write_examples(folder: Path, clips: list[synthetic.Clip], mixtures: np.ndarray, rate: int) -> None:
    """Writes mixtures to try on the web page (`audiosep-jax serve`), each with a text file that holds the query."""
    folder.mkdir(exist_ok=True)
    for clip, mixture in zip(clips, mixtures, strict=False):
        write_together({folder / f'{clip.labels[0]}.wav': mixture[None]}, rate)
        (folder / f'{clip.labels[0]}.txt').write_text(clip.captions[0] + '\n', 'utf-8')


def evaluate(
    separator: Separator,
    training: SyntheticClips,
    unseen: list[synthetic.Clip],
    mixtures: np.ndarray,
    targets: np.ndarray,
) -> Results:
    """Returns the usual rows and one of a fixed spectral mask per class, which is fitted on the training clips."""
    labels = [clip.labels[0] for clip in unseen]
    captions = [clip.captions[0] for clip in unseen]
    results = evaluate_arrays(separator, mixtures, targets, captions, labels=labels, options=Options(batch_size=8))
    audio = {name: [] for name in training.classes}
    for i in range(len(training)):
        clip = training.read(i, separator.config.sample_rate)
        audio[clip.labels[0]].append(clip.audio)
    mask = SpectralMask.fit(
        {name: np.stack(sounds) for name, sounds in audio.items()},
        window_size=separator.config.window_size,
        hop_size=separator.config.hop_size,
    )
    row = score_estimates(FIXED_MASK, mask.separate(mixtures, labels), targets, mixtures)
    return dataclasses.replace(results, rows=(*results.rows[:1], row, *results.rows[1:]))


if __name__ == '__main__':
    with reported('quickstart'):
        tyro.cli(main)
