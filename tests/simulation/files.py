"""Write exposures as the observatory delivers them, what their reduction needs, and their truth."""

import re
from dataclasses import fields
from pathlib import Path

import numpy as np

from .crds_cache import write_crds_cache
from .detector import is_long, reading_axes
from .frame import READOUTS, frames, outputs
from .ramp import Exposure, exposure
from .rate import RATE_GROUPS, mean_scene, rate_scene
from .truth import Truth
from .wisps import WISP_WINDOWS, distributed_template, wisp_shape, write_templates

NAME = 'jw01345001001_10201_00001_{}'           # <dataset>, the detector follows
NUMBERS = r'jw(\d{5})(\d{3})(\d{3})_(\d{2})(\d)(\d{2})_(\d{5})_'
DATE, TIME = '2022-12-21', '10:00:00.000'


def write_exposure(outdir, detector='NRCA3', filter_='F200W', seed=1, groups=5, ints=1, rate_only=False, name=None,
                   **options):
    """Write one exposure and all that its reduction needs.

    Parameters
    ----------
    outdir : path
    detector, filter_, seed, groups, ints, **options
        As for `exposure`; with `rate_only` those of `rate_scene`.
    rate_only : bool
        Write a rate image, of several integrations with the `_rateints` beside it, and a cache of flats only.
    name : str, optional
        Dataset name; default `NAME` with the detector.

    Returns
    -------
    dict
        Paths: 'exposure', 'template' (None where there are no wisps), 'cache' and 'truth'.
    """
    outdir, name = Path(outdir), name or NAME.format(detector.lower())
    if rate_only:
        scenes = [rate_scene(detector, filter_, seed, integration=number, **options) for number in range(ints)]
        told = mean_scene(scenes) if ints > 1 else scenes[0]
        path = write_rate(told, outdir / 'calibrated' / f'{name}_rate.fits', ints)
        if ints > 1:
            write_rateints(scenes, outdir / 'calibrated' / f'{name}_rateints.fits')
    else:
        data, told = exposure(detector, filter_, seed, groups, ints, **options)
        path = write_uncal(data, told, outdir / 'uncals' / f'{name}_uncal.fits')
    template = None
    if options.get('template') is not None or detector in WISP_WINDOWS:
        unit = np.nan_to_num(options['template']) if 'template' in options else wisp_shape(detector, filter_)
        template, = write_templates(
            outdir / 'wisps' / 'wisps_2022_08_26', [detector], [filter_], pupil=told.pupil,
            templates={(detector, filter_): distributed_template(unit.astype(np.float32), detector, filter_)})
    cache = write_crds_cache(outdir / 'crds_cache', [detector], [filter_], None if rate_only else groups, told.pupil,
                             told.subarray, told.readout)
    return {'exposure': path, 'template': template, 'cache': cache,
            'truth': save_truth(told, outdir / 'truth.npz')}


def write_rate(scene, path, ints=1):
    """Write a scene, or the mean of `ints`, as `*_rate.fits`, by the data model: every jwst version can open it."""
    from jwst.datamodels import ImageModel

    with ImageModel() as model:
        model.data, model.err, model.dq = scene.sci, scene.err, scene.dq
        model.var_poisson, model.var_rnoise = scene.var_poisson, scene.var_rnoise
        model.meta.bunit_data = model.meta.bunit_err = 'DN/s'
        return _save(model, scene, RATE_GROUPS, ints, path)


def write_rateints(scenes, path):
    """Write scenes, the integrations of one exposure, as `*_rateints.fits`."""
    from jwst.datamodels import CubeModel

    with CubeModel() as model:
        model.data, model.err, model.dq, model.var_poisson, model.var_rnoise = (
            np.stack([getattr(scene, name) for scene in scenes])
            for name in ('sci', 'err', 'dq', 'var_poisson', 'var_rnoise'))
        model.meta.bunit_data = model.meta.bunit_err = 'DN/s'
        return _save(model, scenes[0], RATE_GROUPS, len(scenes), path)


def write_uncal(data, truth, path):
    """Write a raw exposure, (ints, groups, ny, nx) uint16, as `*_uncal.fits`, through the data model."""
    from jwst.datamodels import Level1bModel

    with Level1bModel(data) as model:
        return _save(model, truth, data.shape[1], data.shape[0], path)


def _save(model, truth, groups, ints, path):
    """Fill the metadata that Detector1, the flat-field step and CRDS look at, and write a data model."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    model.meta.filename, model.meta.telescope, model.meta.target.catalog_name = path.name, 'JWST', 'SIMULATED'
    for section, values in (_instrument(truth) | _timing(truth, groups, ints) | _observation(path.name)).items():
        for name, value in values.items():
            model[f'meta.{section}.{name}'] = value
    model.save(str(path))
    return path


def _instrument(truth, ra=214.9, dec=52.9):
    """Metadata of the detector, with a TAN projection in the pixel scale of its channel."""
    long, (rows, columns) = is_long(truth.detector), truth.place
    scale = (0.063 if long else 0.031) / 3600
    return {
        'instrument': {'name': 'NIRCAM', 'detector': truth.detector, 'module': truth.detector[3],
                       'channel': 'LONG' if long else 'SHORT', 'filter': truth.filter_, 'pupil': truth.pupil},
        'subarray': {'name': truth.subarray, 'xstart': columns.start + 1, 'ystart': rows.start + 1,
                     'xsize': columns.stop - columns.start, 'ysize': rows.stop - rows.start,
                     **{key.lower(): axis for key, axis in reading_axes(truth.detector).items()}},
        'wcsinfo': {'wcsaxes': 2, 'crpix1': 1024.5 - columns.start, 'crpix2': 1024.5 - rows.start,
                    'crval1': ra, 'crval2': dec,
                    'ctype1': 'RA---TAN', 'ctype2': 'DEC--TAN', 'cunit1': 'deg', 'cunit2': 'deg',
                    'cdelt1': scale, 'cdelt2': scale, 'pc1_1': -1., 'pc1_2': 0., 'pc2_1': 0., 'pc2_2': 1.,
                    'v2_ref': 0., 'v3_ref': 0., 'vparity': -1, 'v3yangle': 0.,
                    'ra_ref': ra, 'dec_ref': dec, 'roll_ref': 0.}}


def _timing(truth, groups, ints):
    """Metadata of the exposure; times in seconds and MJD."""
    from astropy.time import Time

    (nframes, gap), number = READOUTS[truth.readout], frames(groups, truth.readout)
    exposed, duration = ints * number * truth.tframe, ints * (number + 1) * truth.tframe
    start = float(Time(f'{DATE}T{TIME}', scale='utc').mjd)
    return {'exposure': {
        'type': 'NRC_IMAGE', 'readpatt': truth.readout, 'nints': ints, 'ngroups': groups, 'nframes': nframes,
        'groupgap': gap, 'frame_time': truth.tframe, 'group_time': truth.tgroup,
        'integration_time': exposed / ints,
        'exposure_time': exposed, 'measurement_time': exposed, 'duration': duration,
        'start_time': start, 'mid_time': start + duration / 2 / 86400, 'end_time': start + duration / 86400,
        'integration_start': 1, 'integration_end': ints, 'noutputs': outputs(truth.subarray), 'nresets_at_start': 1,
        'nresets_between_ints': 1, 'zero_frame': False, 'nsamples': 1, 'sample_time': 10.}}


def _observation(filename):
    """Metadata of the observation; the numbers come from a MAST file name."""
    numbers = (re.match(NUMBERS, filename) or re.match(NUMBERS, NAME)).groups()
    names = ('program_number', 'observation_number', 'visit_number', 'visit_group', 'sequence_id', 'activity_id',
             'exposure_number')
    return {'observation': dict(zip(names, numbers, strict=True)) | {
        'visit_id': ''.join(numbers[:3]), 'date': DATE, 'time': TIME}}


def save_truth(truth, path):
    """Write the truth of a scene or an exposure as .npz; of a scene without its rate image."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    kind = Exposure if isinstance(truth, Exposure) else Truth
    np.savez(path, **{item.name: getattr(truth, item.name) for item in fields(kind)})
    return Path(path)


def load_truth(path):
    """Read what `save_truth` wrote: an `Exposure`, or a `Truth` if it was a rate image."""
    with np.load(path) as archive:
        values = {name: archive[name] if archive[name].ndim else archive[name].item() for name in archive}
    return (Exposure if 'snowballs' in values else Truth)(**values)
