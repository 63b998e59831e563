"""A CRDS cache for simulated exposures that serves all versions of jwst without a network."""

import hashlib
import math
from itertools import product
from pathlib import Path

import numpy as np

from .detector import FLAT_ERROR, READ_NOISE, SATURATION, bad_pixels, gain, is_long, make_flat, reading_axes, superbias
from .frame import NX, NY, READOUTS, frame_time, reference_pixels, subarray_place

CONTEXT = 'jwst_0001.pmap'
# what a reference file is chosen by, and the last of it where a file name does not tell
DETECTOR_KEY = ('META.INSTRUMENT.DETECTOR',)
KEYS = {'flat': ((*DETECTOR_KEY, 'META.INSTRUMENT.FILTER', 'META.INSTRUMENT.PUPIL'), 'CLEAR'),
        'dark': ((*DETECTOR_KEY, 'META.SUBARRAY.NAME'), 'FULL')}       # the pipeline cuts all but darks
RAMP_TYPES = ('mask', 'saturation', 'superbias', 'linearity', 'dark', 'gain', 'readnoise')
# the pipeline asks for these too, and goes on without
NOT_APPLICABLE = '''
    trapdensity trappars persat ipc sirskernel rscd reset lastframe refpix area photom distortion filteroffset drizpars
    abvegaoffset apcorr amplifier regions specwcs wfssbkg wavelengthrange extract1d bkg tsophot psfmask pictureframe
    emicorr pastasoss fflat sflat dflat pars-detector1pipeline pars-groupscalestep pars-dqinitstep pars-emicorrstep
    pars-saturationstep pars-ipcstep pars-superbiasstep pars-refpixstep pars-rscdstep pars-firstframestep
    pars-lastframestep pars-linearitystep pars-darkcurrentstep pars-resetstep pars-persistencestep
    pars-chargemigrationstep pars-jumpstep pars-pictureframestep pars-cleanflickernoisestep pars-rampfitstep
    pars-gainscalestep pars-darkpipeline pars-image2pipeline pars-flatfieldstep'''.split()
# of the DQ plane of a mask: bit, value, name in the pipeline
FLAGS = ((0, 1, 'DO_NOT_USE'), (3, 8, 'HOT'), (4, 16, 'DEAD'), (5, 32, 'REFERENCE_PIXEL'))


def crds_environment(cache):
    """Environment variables with which jwst and crds use a local cache; set them before importing either."""
    return {'CRDS_PATH': str(cache), 'CRDS_CONTEXT': CONTEXT,
            'CRDS_SERVER_URL': 'https://jwst-serverless.stsci.edu'}


def write_crds_cache(directory, detectors=('NRCA3',), filters=('F200W',), groups=None, pupil='CLEAR',
                     subarray='FULL', readout='MEDIUM8'):
    """Write, or add to, a CRDS cache: what it holds already is kept, and stays in the mappings.

    Parameters
    ----------
    directory : path
    detectors, filters : sequence of str
        A flat is written for every combination.
    groups : int, optional
        Also write what Detector1 needs for exposures of up to so many groups, 0.3 GB a detector.
        None: flats only.
    pupil, subarray, readout : str
        Of the flats; the others of the dark, of which there is one for a subarray: another pattern replaces it.

    Returns
    -------
    pathlib.Path
        The cache, for `crds_environment`.
    """
    from astropy.io import fits

    references = Path(directory) / 'references' / 'jwst' / 'nircam'
    references.mkdir(parents=True, exist_ok=True)
    flats, others = product(['flat'], detectors, filters), product(RAMP_TYPES, detectors)
    for kind, detector, *rest in (*flats, *(others if groups else ())):
        own = {'flat': pupil, 'dark': subarray}.get(kind, 'CLEAR')
        named = [own] if own not in ('CLEAR', 'FULL') else []
        path = references / '_'.join(['jwst_nircam', kind, detector, *rest, *named, '0001.fits']).lower()
        header = fits.getheader(path) if path.exists() else {}
        if not header or (kind == 'dark' and (header['NGROUPS'] < groups or header['READPATT'] != readout)):
            _write_reference(path, kind.upper(), detector, *_reference(kind, detector, groups, readout, *rest, own))
    _write_mappings(Path(directory))
    return Path(directory)


def _reference(kind, detector, groups, pattern, *own):
    """Return the arrays {extension: array} and the extra keywords of a reference file.

    `own` are filter and pupil of a flat, the subarray of a dark.
    """
    good, plane = np.zeros((NY, NX), np.uint32), np.ones((NY, NX), np.float32)
    readout, (nframes, gap) = {'READPATT': pattern}, READOUTS[pattern]
    if kind == 'flat':
        arrays = {'SCI': make_flat(detector, own[0]), 'ERR': FLAT_ERROR * plane, 'DQ': good}
        return arrays, {'FILTER': own[0], 'PUPIL': own[1]}
    if kind == 'mask':
        bad, hot = bad_pixels(detector)
        dead = bad & ~reference_pixels()
        return {'DQ': 1 * dead + 8 * (hot > 0) + 16 * dead + 32 * reference_pixels()}, {}
    if kind == 'saturation':
        return {'SCI': SATURATION * plane, 'DQ': good}, {}
    if kind == 'superbias':
        return {'SCI': superbias(detector), 'ERR': plane, 'DQ': good}, readout
    if kind == 'linearity':
        return {'COEFFS': np.stack([0 * plane, plane, 0 * plane]), 'DQ': good}, {}
    if kind == 'dark':
        tframe, (rows, columns) = frame_time(own[0]), subarray_place(detector, own[0])
        ny, nx = good[rows, columns].shape
        readout |= {'NGROUPS': groups, 'NFRAMES': nframes, 'GROUPGAP': gap, 'NINTS': 1,
                    'TFRAME': tframe, 'TGROUP': (nframes + gap) * tframe, 'SUBARRAY': own[0],
                    'SUBSTRT1': columns.start + 1, 'SUBSTRT2': rows.start + 1, 'SUBSIZE1': nx, 'SUBSIZE2': ny}
        return {'SCI': np.zeros((groups, ny, nx), np.float32), 'DQ': good[rows, columns]}, readout
    if kind == 'gain':
        return {'SCI': gain(detector) * plane}, {}
    return {'SCI': math.sqrt(2) * READ_NOISE[detector] * plane}, readout          # of a pair of frames


def _write_reference(path, kind, detector, arrays, keywords):
    """Write one reference file, plain FITS."""
    from astropy.io import fits

    header = fits.Header()
    header.update({
        'TELESCOP': 'JWST', 'INSTRUME': 'NIRCAM', 'DETECTOR': detector, 'MODULE': detector[3],
        'CHANNEL': 'LONG' if is_long(detector) else 'SHORT', 'REFTYPE': kind, 'PEDIGREE': 'DUMMY',
        'AUTHOR': 'tests/simulation', 'DESCRIP': 'simulated', 'HISTORY': 'simulated',
        'USEAFTER': '2014-01-01T00:00:00', 'EXP_TYPE': 'NRC_IMAGE', 'SUBARRAY': 'FULL',
        'SUBSTRT1': 1, 'SUBSTRT2': 1, 'SUBSIZE1': NX, 'SUBSIZE2': NY} | reading_axes(detector) | keywords)
    hdus = [fits.PrimaryHDU(header=header)]
    for name, array in arrays.items():
        hdus.append(fits.ImageHDU(array.astype(np.uint32 if name == 'DQ' else np.float32), name=name))
    if 'DQ' in arrays:
        bits, values, names = map(np.array, zip(*FLAGS, strict=True))
        hdus.append(fits.BinTableHDU.from_columns([
            fits.Column('BIT', 'J', array=bits),
            fits.Column('VALUE', 'J', bzero=2**31, array=values.astype(np.uint32)),
            fits.Column('NAME', '40A', array=names), fits.Column('DESCRIPTION', '80A', array=names)], name='DQ_DEF'))
    part = path.with_suffix('.part')                     # a file that exists is complete
    fits.HDUList(hdus).writeto(part, overwrite=True)
    part.replace(path)


def _write_mappings(directory):
    """Write the server configuration, and mappings of all the reference files that are in a cache."""
    config, mappings = directory / 'config' / 'jwst', directory / 'mappings' / 'jwst'
    config.mkdir(parents=True, exist_ok=True)
    mappings.mkdir(parents=True, exist_ok=True)
    (config / 'server_config').write_text(repr({
        'observatory': 'jwst', 'operational_context': CONTEXT, 'bad_files_list': [],
        'last_synced': '2024-01-01 00:00:00'}) + '\n')
    kinds = dict.fromkeys([*RAMP_TYPES, 'flat', *NOT_APPLICABLE], 'N/A')
    for kind in (*RAMP_TYPES, 'flat'):
        paths = sorted((directory / 'references/jwst/nircam').glob(f'jwst_nircam_{kind}_*.fits'))
        if paths:
            kinds[kind] = f'jwst_nircam_{kind}_0001.rmap'
            _write_rmap(mappings / kinds[kind], kind, paths)
    selector = ''.join(f'    {kind!r} : {rmap!r},\n' for kind, rmap in kinds.items())
    _write_mapping(mappings / 'jwst_nircam_0001.imap', f'{{\n{selector}}}', mapping='INSTRUMENT',
                   parkey=('REFTYPE',), instrument='NIRCAM')
    _write_mapping(mappings / CONTEXT, "{\n    'NIRCAM' : 'jwst_nircam_0001.imap',\n}", mapping='PIPELINE',
                   parkey=('META.INSTRUMENT.NAME',))


def _write_rmap(path, kind, references):
    """Write the mapping of one reference type; what chooses them is read from their names."""
    key, default = KEYS.get(kind, (DETECTOR_KEY, ''))
    selector = ''
    for reference in references:
        row = (*reference.stem.upper().split('_')[3:-1], default)[:len(key)]
        selector += f"    {row!r} : UseAfter({{\n        '2014-01-01 00:00:00' : {reference.name!r},\n    }}),\n"
    _write_mapping(path, f'Match({{\n{selector}}})', mapping='REFERENCE', instrument='NIRCAM',
                   parkey=(key, ('META.OBSERVATION.DATE', 'META.OBSERVATION.TIME')), filekind=kind.upper(),
                   filetype=kind.upper(), file_ext='.fits', classes=('Match', 'UseAfter'), suffix=kind, text_descr=kind)


def _write_mapping(path, selector, **header):
    """Write a CRDS mapping with its checksum: SHA-1 of the text without the checksum's own line."""
    header |= {'derived_from': 'generated', 'name': path.name, 'observatory': 'JWST'}
    lines = ''.join(f'    {key!r} : {header[key]!r},\n' for key in sorted(header))
    start, end = f'header = {{\n{lines}', f'}}\n\nselector = {selector}\n'
    digest = hashlib.sha1((start + end).encode()).hexdigest()
    path.write_text(f"{start}    'sha1sum' : '{digest}',\n{end}")
