"""What the comparisons with the original separator at its full size share."""

import jax
import numpy as np
from support.paths import REFERENCE

from audiosep_jax.models.audiosep import AudioSep
from audiosep_jax.training.losses import l1_waveform


def relative_error(ours, theirs):
    """The greatest difference, as a share of the reference's greatest value."""
    assert np.shape(ours) == np.shape(theirs)
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def value_and_grad_of(config, reference, *, donate=()):
    def loss_fn(params, batch_stats):
        out, updated = AudioSep(config).apply(
            {'params': params, 'batch_stats': batch_stats},
            reference['train_wave'],
            reference['train_cond'],
            train=True,
            mutable=['batch_stats'],
        )
        return l1_waveform(out, reference['train_target']), (out, updated['batch_stats'])

    return jax.jit(jax.value_and_grad(loss_fn, has_aux=True), donate_argnames=donate)


def gradient_errors(gradients):
    """Of each tensor the norm of the difference over that of the reference, over its sampled entries."""
    with np.load(REFERENCE / 'gradients_float64.npz') as archive:
        errors = {}
        for name, norm in zip(archive['names'], archive['norms'], strict=True):
            if norm < 1e-7:  # zero but for rounding
                continue
            expected = archive[f'grad:{name}'].astype(np.float64)
            found = np.asarray(gradients[str(name)], np.float64).ravel()[archive[f'index:{name}']]
            errors[str(name)] = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert len(errors) == 177
    return errors
