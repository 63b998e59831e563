"""Score both methods of the corrections against the truth of simulated exposures.

Prints four tables: 1/f striping by `dr05`, `adaptive` and jwst's own `clean_flicker_noise` on the same rate images;
wisp scales by `dr05` and `adaptive`; the same of wisps whose shape varies (components of the package nmfwisp);
snowball flags by snowball_wrapper.py and jwst's own `expand_large_events` on the same ramps. The figures are free
of pixel noise: what was taken out is compared with what was put in. Rates are in 1e-3 DN/s, flux biases in units
of the probe's flux.

Examples
--------
    python tests/accuracy.py
    python tests/accuracy.py --only wisps --seeds 10
"""

import argparse
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np

import simulate
from simulate import AMPS, JUMP_DET, SATURATED, WISP_WINDOWS

sys.path.insert(0, str(Path(__file__).parent.parent))

BLOCK = 32                                       # pixels, side of the blocks of `block_rms`
APERTURE = 5                                     # pixels, radius of the aperture at the probes
WISP_FLOOR = 0.01                                # DN/s of the unit wisp: where a residual counts as in the wisp
JUMP_SIZES = ((0.5, 1), (1, 3), (3, 10), (10, np.inf))  # sigma of a group difference


# --- striping ----------------------------------------------------------------------------------------

def left_over(truth, before, after, good):
    """Pattern that is left in a corrected image: (injected pattern) - (before - after), DN/s.

    Parameters
    ----------
    truth : simulate.Truth
    before, after : ndarray, shape (ny, nx)
        Rate image without and with the correction.
    good : ndarray of bool, shape (ny, nx)
        True = pixel to count.

    Returns
    -------
    ndarray of float64, shape (ny, nx)
        NaN where a pixel is not good, or zero or not finite in either image.
    """
    before, after = np.asarray(before, float), np.asarray(after, float)
    defined = good & np.isfinite(before) & np.isfinite(after) & (after != 0)
    return np.where(defined, truth.pattern - (before - after), np.nan)


def amp_row_rms(left):
    """Rms over all amp-rows of their mean."""
    return rms(np.concatenate([mean(left[:, amp], axis=1) for amp in AMPS]))


def column_rms(left):
    """Rms over the columns of their mean."""
    return rms(mean(left, axis=0))


def block_rms(left, size=BLOCK):
    """Rms of the means over blocks of `size` x `size` pixels; the image is cut to whole blocks."""
    ny, nx = (n - n % size for n in left.shape)
    blocks = left[:ny, :nx].reshape(ny // size, size, nx // size, size)
    return rms(mean(blocks.swapaxes(1, 2).reshape(-1, size * size), axis=1))


def flux_bias(left, probes, radius=APERTURE):
    """Mean over the probes of the change of their aperture sum, in units of their flux."""
    y, x = np.ogrid[:left.shape[0], :left.shape[1]]
    reach, changes = radius + 1, []
    for probe in probes:
        column, row = round(float(probe['x'])), round(float(probe['y']))
        box = np.s_[max(row - reach, 0):row + reach + 1, max(column - reach, 0):column + reach + 1]
        r2 = (x[:, box[1]] - probe['x'])**2 + (y[box[0]] - probe['y'])**2
        changes.append(np.nansum(left[box][r2 <= radius**2]) / probe['flux'])
    return float(np.mean(changes)) if changes else np.nan


def pixels_lost(before, after, good, dq=None):
    """Number of good pixels that are zero, not finite, or newly DO_NOT_USE in the corrected image."""
    lost = ~np.isfinite(after) | (np.asarray(after) == 0)
    if dq is not None:
        lost |= dq & 1 > 0
    return int(np.count_nonzero(lost & good & np.isfinite(before) & (before != 0)))


def score_striping(truth, before, after, good, dq=None):
    """All figures of the striping benchmark, {name: value}.

    Parameters
    ----------
    truth : simulate.Truth
    before, after, good
        See `left_over`.
    dq : ndarray of uint32, shape (ny, nx), optional
        Flags after the correction.
    """
    left = left_over(truth, before, after, good)
    level = float(np.nanmean(left[truth.blank]))
    flat = left - level
    near = truth.probes['host'] >= 0
    return {'level': 1e3 * level, 'amp-row': 1e3 * amp_row_rms(flat), 'column': 1e3 * column_rms(flat),
            'block32': 1e3 * block_rms(flat), 'near': 1e3 * float(np.nanmean(left[truth.near])),
            'flux near': flux_bias(left, truth.probes[near]), 'flux far': flux_bias(left, truth.probes[~near]),
            'lost': pixels_lost(before, after, good, dq)}


def mean(values, axis):
    """Mean without NaN along an axis; NaN where there is nothing else."""
    number = np.isfinite(values).sum(axis)
    return np.where(number > 0, np.nansum(values, axis) / np.maximum(number, 1), np.nan)


def rms(values):
    """Root mean square without NaN."""
    return float(np.sqrt(np.nanmean(values**2)))


# --- wisps and snowballs -----------------------------------------------------------------------------

def wisp_pixels(truth, good):
    """The good pixels in which the unit wisp exceeds `WISP_FLOOR`, bool (ny, nx)."""
    y1, y2, x1, x2 = WISP_WINDOWS[truth.detector]
    inside = np.zeros_like(good)
    inside[y1:y2, x1:x2] = True
    return inside & good & (truth.wisp_unit > WISP_FLOOR)


def score_wisp(truth, removed, good):
    """Rms and mean in the wisp of what was left, {name: value}.

    Parameters
    ----------
    truth : simulate.Truth
    removed : ndarray, shape (ny, nx)
        DN/s that were subtracted from the rate image; 0 for the figures before the correction.
    good : ndarray of bool, shape (ny, nx)
        True = pixel to count.
    """
    inside = wisp_pixels(truth, good)
    left = (truth.wisp_light - removed)[inside & np.isfinite(truth.wisp_light - removed)]
    return {'wisp rms': 1e3 * rms(left), 'wisp mean': 1e3 * float(left.mean())}


def best_single(truth, template, good):
    """One template (ny, nx) at the scale that is best for the wisp when the truth is known, DN/s, flat-fielded."""
    pixels = wisp_pixels(truth, good)
    wisp, shape = (image[pixels].astype(float) for image in (truth.wisp_scale * truth.wisp_unit, template))
    return (wisp @ shape) / (shape @ shape) * template


def score_snowballs(truth, groupdq, reach=1.5):
    """Fraction of pixel-groups flagged near snowballs, by true jump size in sigma of a group difference.

    Parameters
    ----------
    truth : simulate.Exposure
    groupdq : ndarray of uint8, shape (nints, ngroups, ny, nx)
    reach : float
        Radii of the halo that belong to a snowball.

    Returns
    -------
    dict
        {(low, high): fraction} for `JUMP_SIZES`.
    """
    jumps = truth.jumps
    size = np.abs(jumps['dn']) / truth.sigma
    ours = np.zeros(len(jumps), bool)
    for ball in truth.snowballs:
        ours |= ((jumps['integration'] == ball['integration']) & (jumps['group'] == ball['group'])
                 & (np.hypot(jumps['x'] - ball['x'], jumps['y'] - ball['y']) <= reach * ball['halo']))
    flags = groupdq[jumps['integration'], jumps['group'], jumps['y'], jumps['x']]
    flagged = flags & (JUMP_DET | SATURATED) > 0
    return {(low, high): float(flagged[ours & (size >= low) & (size < high)].mean()) for low, high in JUMP_SIZES}


# --- the benchmark -----------------------------------------------------------------------------------

FIELDS = {'ordinary': {}, 'crowded, x 4': {'crowd': 4}, 'big galaxy': {'big': True},
          'long wavelength': {'detector': 'NRCALONG', 'filter_': 'F444W'}}
COLUMNS = ('amp-row', 'column', 'block32', 'near', 'flux near', 'flux far', 'level', 'lost')
WISP_SCALES = (0., 0.2, 0.6, 1., 1.5, 2.)
WISP_FILTERS = ('F150W', 'F200W')
WISP_FIELDS = {'x 0.5': {'crowd': 0.5}, 'x 1': {}, 'x 4': {'crowd': 4}, 'big galaxy': {'big': True}}

COMPONENT_FILTERS = ('F115W', 'F150W', 'F200W')
# wisps of varying shape: what one template leaves at best, and what is to be left at most, 1e-3 DN/s rms
COMPONENT_LEVELS = {'none': (0., 0.), 'faint': (1.2, 0.41), 'middle': (2., 0.36), 'bright': (3.4, 0.59)}


def bench_striping(seeds):
    """Mean scores of each method in each field."""
    say(f"{'striping, mean of ' + str(len(seeds)) + ' scenes':28}{'method':24}" + ''.join(f'{c:>10}' for c in COLUMNS))
    for field, options in FIELDS.items():
        methods = {'before': no_change, 'dr05, threshold 0.8': destripe('dr05', 0.8)}
        if options.get('big'):
            methods['dr05, threshold 0.15'] = destripe('dr05', 0.15)
        methods |= {'adaptive': destripe('adaptive', 0.8), 'clean_flicker_noise': flicker_noise(),
                    '  per amplifier, model': flicker_noise(fit_by_channel=True, background_method='model')}
        scenes = [simulate.rate_scene(seed=seed, **options) for seed in seeds]
        for method, function in methods.items():
            if function is None:
                continue
            scores = [score_striping(scene, scene.sci, *function(scene)) for scene in scenes]
            say(f'{field:28}{method:24}' + ''.join(f'{np.mean([score[c] for score in scores]):10.3f}' for c in COLUMNS))


def no_change(scene):
    """The scene as it is."""
    return scene.sci, scene.good, scene.dq


def destripe(method, thresh):
    """Function from a scene to (corrected image, pixels to count, flags) by a method of remstriping.py."""
    import remstriping

    def correct(scene):
        flat = scene.sci / scene.flat
        found = remstriping.METHODS[method](scene.sci, scene.err, scene.dq, flat, thresh)
        sci, dq = remstriping.subtract_striping(scene.sci, scene.dq, found.horizontal, found.vertical)
        return sci, scene.good, dq

    return correct


def flicker_noise(**parameters):
    """The same by the step clean_flicker_noise of the pipeline; None where it has no such step."""
    from nircam_io import quiet_pipeline
    try:
        with quiet_pipeline():
            from jwst.clean_flicker_noise import CleanFlickerNoiseStep
    except ImportError:
        return None

    def correct(scene):
        with tempfile.TemporaryDirectory() as directory, quiet_pipeline():
            os.environ |= simulate.crds_environment(
                simulate.write_crds_cache(Path(directory), [scene.detector], [scene.filter_]))
            step = CleanFlickerNoiseStep(skip=False, apply_flat_field=True, **parameters)
            step.override_flat = str(next(Path(directory).rglob('*flat*.fits')))
            with step.run(str(simulate.write_rate(scene, Path(directory) / 'scene_rate.fits'))) as result:
                return np.array(result.data), scene.good, scene.dq

    return correct


def bench_wisps(seeds):
    """Error of the fitted scale by injected scale, field, detector and filter; pulls of the error bars."""
    say(f"{'wisps: fitted - injected':28}{'n':>4}{'dr05 mean':>12}{'rms':>8}{'adaptive mean':>16}{'rms':>8}"
        f"{'worst':>8}{'pulls':>8}{'warned':>8}")
    grid = product(WISP_SCALES, WISP_FIELDS, sorted(WISP_WINDOWS))
    cells = [(wisp, field, detector, WISP_FILTERS[(number + seed) % len(WISP_FILTERS)], 1000 * seed + number)
             for number, (wisp, field, detector) in enumerate(grid) for seed in seeds]
    with ProcessPoolExecutor() as pool:
        fits = list(pool.map(fit_wisp, cells))
    table = np.array([(*cell[:4], *fit) for cell, fit in zip(cells, fits, strict=True)],
                     dtype=[('wisp', float), *((name, 'U20') for name in ('field', 'detector', 'filter')),
                            ('old', float), ('new', float), ('error', float), ('warned', bool)])
    for name in ('wisp', 'field', 'detector', 'filter'):
        for value in dict.fromkeys(table[name]):
            wisp_row(f'{name} {value}', table[table[name] == value])
    wisp_row('all', table)


def fit_wisp(cell):
    """Fitted minus injected scale by dr05 and adaptive, error bar of the latter, and whether it warned."""
    import wispsub
    wisp, field, detector, filter_, seed = cell
    scene = simulate.rate_scene(detector, filter_, seed=seed, wisp=wisp, **WISP_FIELDS[field])
    sci = scene.sci / scene.flat
    template = wispsub.defined_template(scene.template, np.isnan(scene.sci))
    old = wispsub.fit_dr05(sci, scene.err, scene.dq, template, WISP_WINDOWS[detector])
    new = wispsub.fit_adaptive(sci, scene.dq, scene.template[None])
    return old.scale - wisp, new.scale - wisp, new.error, bool(new.warning)


def wisp_row(name, part):
    """One row of the table of wisps; pulls of scales above 0, which are not clipped."""
    pulls = (part['new'] / part['error'])[part['wisp'] > 0]
    say(f"{name:28}{len(part):4}{part['old'].mean():12.3f}{rms(part['old']):8.3f}{part['new'].mean():16.3f}"
        f"{rms(part['new']):8.3f}{np.abs(part['new']).max():8.3f}{pulls.std() if pulls.size > 1 else np.nan:8.2f}"
        f"{part['warned'].sum():8}")


def bench_components(seeds):
    """What is left of wisps whose shape varies, made of components measured on flight data."""
    try:
        sets = {filter_: simulate.wisp_components(filter_)[1] for filter_ in COMPONENT_FILTERS}
    except ModuleNotFoundError as error:
        say(f'wisps of varying shape: left out, {error}')
        return
    say(f"{'wisps of varying shape, rms':36}{'n':>4}{'before':>10}{'best single':>14}{'dr05':>8}{'adaptive':>11}"
        f"{'worst':>8}{'aim':>7}")
    for name, (level, aim) in COMPONENT_LEVELS.items():
        rows = [score_components(components, filter_, seed, level)
                for filter_, components in sets.items() for seed in seeds]
        before, best, old, new = np.mean(rows, axis=0)
        say(f'{name:36}{len(rows):4}{before:10.2f}{best:14.2f}{old:8.2f}{new:11.2f}'
            f'{np.max(rows, axis=0)[-1]:8.2f}{aim:7.2f}')


def score_components(components, filter_, seed, level):
    """Score one wisp of varying shape.

    Parameters
    ----------
    components : ndarray, shape (n, ny, nx)
        DN/s.
    filter_, seed
        Of the scene.
    level : float
        1e-3 DN/s rms that the mean template leaves of the wisp at best: this sets its scale. 0 = no wisp.

    Returns
    -------
    before, best, dr05, adaptive : float
        1e-3 DN/s rms in the wisp (without one: of what was subtracted): as it is, with the mean template at its best
        scale, with that template and the scale of dr05, and with the components and the adaptive fit.
    """
    import wispsub
    unit, mean = simulate.varied_wisp(components, seed), components.mean(axis=0)

    def left(scene, light):
        return score_wisp(scene, light * scene.flat, scene.good)['wisp rms']

    scene = simulate.rate_scene('NRCB4', filter_, seed, wisp=1., template=unit)
    best = best_single(scene, mean, scene.good)
    scale = level / left(scene, best)
    scene = simulate.rate_scene('NRCB4', filter_, seed, wisp=scale, template=unit)
    sci = scene.sci / scene.flat
    # dr05 tries scales to 1.19: its template is such that it needs 0.8
    template = wispsub.defined_template(best * np.float32((scale or 1) / 0.8), np.isnan(scene.sci))
    old = wispsub.fit_dr05(sci, scene.err, scene.dq, template, WISP_WINDOWS['NRCB4'])
    new = wispsub.fit_adaptive(sci, scene.dq, components)
    return tuple(left(scene, light)
                 for light in (0 * unit, scale * best, old.scale * template, new.scale * new.template))


def bench_snowballs(_):
    """Flags by size of the true jump, with the jump step's own and ours on the same ramp."""
    from nircam_io import quiet_pipeline

    import snowball_wrapper
    with tempfile.TemporaryDirectory() as directory:
        paths = simulate.write_exposure(Path(directory), groups=9, snowballs=24)
        os.environ |= simulate.crds_environment(paths['cache'])
        truth = simulate.load_truth(paths['truth'])
        with quiet_pipeline():
            alone, own = (jump_flags(str(paths['exposure']), expand) for expand in (False, True))
    flags = {'jump step alone': alone, '  and snowball_wrapper.py': snowball_wrapper.flag_snowballs(alone),
             'jump, expand_large_events': own}
    true = true_jumps(truth, alone.shape)
    say(f"{'snowballs: % flagged, at':28}" + ''.join(f'{low:g}-{high:g} sigma'.rjust(14) for low, high in JUMP_SIZES)
        + f"{'elsewhere':>12}  (pixel-groups whose true jump is under 0.1 sigma)")
    for name, groupdq in flags.items():
        false = np.count_nonzero((groupdq & JUMP_DET > 0) & ~true)
        say(f'{name:28}' + ''.join(f'{100 * part:14.1f}' for part in score_snowballs(truth, groupdq).values())
            + f'{false:12d}')


def jump_flags(path, expand):
    """GROUPDQ after the jump step of Detector1, with its own snowball detection or without."""
    from jwst.pipeline import Detector1Pipeline
    pipeline, kept = Detector1Pipeline(), []
    if expand:
        pipeline.jump.expand_large_events = True
    run = pipeline.jump.run

    def keep(*arguments):
        model = run(*arguments)
        kept.append(model.groupdq.copy())
        return model

    pipeline.jump.run = keep
    pipeline.run(path)
    return kept[0]


def true_jumps(truth, shape):
    """Pixel-groups with a true jump above 0.1 sigma, bool (nints, ngroups, ny, nx)."""
    jumps, mask = truth.jumps, np.zeros(shape, bool)
    mask[jumps['integration'], jumps['group'], jumps['y'], jumps['x']] = True
    return mask


def say(line):
    """Print a line of a table now."""
    sys.stdout.write(f'{line}\n')
    sys.stdout.flush()


BENCHES = {'striping': bench_striping, 'wisps': bench_wisps, 'components': bench_components,
           'snowballs': bench_snowballs}


def main(argv=None):
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=BENCHES, help='one of the tables')
    parser.add_argument('--seeds', type=int, default=2, help='scenes of each kind (%(default)s)')
    options = parser.parse_args(argv)
    for name, bench in BENCHES.items():
        if options.only in (None, name):
            bench(range(1, options.seeds + 1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
