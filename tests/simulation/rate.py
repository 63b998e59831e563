"""Rate images as Detector1 leaves them, without a ramp."""

import math
from dataclasses import dataclass, replace

import numpy as np

from .detector import SATURATION, gain
from .frame import NFRAMES, NX, NY, normal, reference_pixels, stream, uniform
from .truth import Truth

DO_NOT_USE, SATURATED, JUMP_DET, HOT, REFERENCE_PIXEL = 1, 2, 4, 2048, 2**31        # pipeline flags
RATE_GROUPS = 9                                  # the ramp behind the image
RATE_READ_NOISE = 11.                            # e-, of one frame of it


@dataclass
class Scene(Truth):
    """A rate image as Detector1 leaves it, and its truth; arrays (2048, 2048), DN/s and (DN/s)^2."""

    sci: np.ndarray = None
    err: np.ndarray = None
    var_poisson: np.ndarray = None
    var_rnoise: np.ndarray = None
    dq: np.ndarray = None                # uint32 pipeline flags

    @property
    def good(self):
        """True = pixel to keep: neither DO_NOT_USE nor reference pixel, (2048, 2048) bool."""
        return self.dq & (DO_NOT_USE | REFERENCE_PIXEL) == 0


def rate_scene(detector='NRCA3', filter_='F200W', seed=1, undefined='nan', **options):
    """Simulate the rate image of a 9-group MEDIUM8 exposure; returns a `Scene`.

    Parameters
    ----------
    detector, filter_, seed, **options
        As for `Truth.draw`; noise and jumps depend on the seed too.
    undefined : {'nan', 'finite'}
        How unusable pixels look: NaN with ERR = VAR = 0 (jwst 3.0), or finite or 0 (jwst 1.7.2).
    """
    if undefined not in ('nan', 'finite'):
        raise ValueError(f"undefined must be 'nan' or 'finite', not {undefined!r}")
    scene = Scene.draw(detector, filter_, seed, groups=RATE_GROUPS, **options)
    integration = options.get('integration', 0)
    rng = stream('rate', detector, filter_, seed, *([integration] if integration else []))
    rate = scene.light + scene.hot
    groups = np.full((NY, NX), RATE_GROUPS, np.float32)
    jump = uniform(rng) < 0.04
    groups[jump] = rng.integers(4, RATE_GROUPS - 1, np.count_nonzero(jump))
    scene.var_poisson, scene.var_rnoise = _variances(rate, groups, gain(detector), scene.tgroup)
    scene.err = np.sqrt(scene.var_poisson + scene.var_rnoise)
    scene.sci = rate + scene.err * normal(rng) + scene.pattern
    scene.dq = _flags(scene, rate, jump)
    _fill_undefined(scene, undefined, rng)
    return scene.cut()


def mean_scene(scenes):
    """The rate image of several integrations, weighted by their read noise as the pipeline does, and its truth."""
    def mean(values):
        return ((weight * values).sum(axis=0) / np.maximum(weight.sum(axis=0), 1e-30)).astype(np.float32)

    stacks = {name: np.stack([getattr(scene, name) for scene in scenes])
              for name in ('sci', 'var_poisson', 'var_rnoise', 'dq', 'true_stripes', 'row_pattern', 'column_pattern')}
    used = np.isfinite(stacks['sci']) & (stacks['var_rnoise'] > 0)
    weight = np.where(used, 1 / np.where(used, stacks['var_rnoise'], 1).astype(float), 0)
    variances = {}
    for name in ('var_poisson', 'var_rnoise'):
        inverse = np.where(used, 1 / np.where(used, stacks[name], 1), 0).sum(axis=0)
        variances[name] = np.where(inverse > 0, 1 / np.maximum(inverse, 1e-30), 0).astype(np.float32)
    lost = np.bitwise_and.reduce(stacks['dq'] & DO_NOT_USE)
    return replace(
        scenes[0], sci=np.where(used.any(axis=0), mean(np.nan_to_num(stacks['sci'])), scenes[0].sci),
        err=np.sqrt(variances['var_poisson'] + variances['var_rnoise']),
        dq=np.bitwise_or.reduce(stacks['dq'] & ~np.uint32(DO_NOT_USE)) | lost,
        true_stripes=mean(stacks['true_stripes']),
        **{name: stacks[name].mean(axis=0) for name in ('row_pattern', 'column_pattern')}, **variances)


def _variances(rate, groups, gain_, tgroup):
    """Return Poisson and read-noise variance, (DN/s)^2, of slopes through `groups` groups of MEDIUM8."""
    poisson = 1.2 * np.maximum(rate, 0.01) / (gain_ * (groups - 1) * np.float32(tgroup))
    group_noise = RATE_READ_NOISE / gain_ / math.sqrt(NFRAMES)
    rnoise = 12 * group_noise**2 / ((groups**3 - groups) * np.float32(tgroup**2))
    return poisson.astype(np.float32), rnoise.astype(np.float32)


def _flags(scene, rate, jump):
    """Return the DQ plane, uint32 (2048, 2048)."""
    dq = np.zeros((NY, NX), np.uint32)
    dq[jump] |= JUMP_DET
    dq[scene.hot > 0] |= HOT
    dq[rate * (RATE_GROUPS * scene.tgroup) > SATURATION] |= SATURATED
    dq[(rate * scene.tgroup > SATURATION) | scene.bad] |= DO_NOT_USE       # saturated in the first group: no slope
    dq[reference_pixels()] = DO_NOT_USE | REFERENCE_PIXEL
    return dq


def _fill_undefined(scene, undefined, rng):
    """Give the DO_NOT_USE pixels of a scene, in place, the values that the pipeline gives them."""
    flagged = scene.dq & DO_NOT_USE > 0
    errors = scene.err, scene.var_poisson, scene.var_rnoise
    if undefined == 'nan':
        scene.sci[flagged] = np.nan
        for plane in errors:
            plane[flagged] = 0
        return
    reference = reference_pixels()
    scene.sci[reference] = 0.003 * rng.standard_normal(np.count_nonzero(reference), dtype=np.float32)
    scene.err[reference] = 0.003
    scene.var_poisson[reference] = scene.var_rnoise[reference] = 0
    bad = scene.bad & ~reference
    scene.sci[bad] *= rng.exponential(1, np.count_nonzero(bad))
    zero = (bad & (uniform(rng) < 0.15)) | (flagged & ~scene.bad)
    for plane in (scene.sci, *errors):
        plane[zero] = 0
