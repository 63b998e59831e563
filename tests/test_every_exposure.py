"""Subarrays, filters in the pupil wheel, several integrations, and the pipeline's own command."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

import remstriping
import run_batch
import simulation
import wispsub
from conftest import DATASET, RATE, ROOT, UNCAL, snowballs, wisps
from hdus import uncal_hdus
from simulation import SUBARRAYS, mean_scene, rate_scene, subarray_place
from stage1 import exposure
from stage1.exposure import AMPLIFIERS, REFERENCE_PIXEL, ExposureError, amplifiers, check_mode, open_exposure

import numpy as np
import pytest
from astropy.io import fits

RATEINTS = RATE.replace('_rate', '_rateints')
# DN/s, rms of stripes that stand out of the noise, which is the greater the shorter a frame
STRIPES = {2048: 0.004, 640: 0.01, 400: 0.03, 320: 0.05, 160: 0.3, 64: 1.}


@cache
def scene_of(subarray, number=0, wisp=0.):
    """A sparse field with strong stripes; `number` counts integrations. Not to be changed."""
    return rate_scene(subarray=subarray, noise=STRIPES[SUBARRAYS[subarray]], integration=number, crowd=0.2, wisp=wisp)


def write_exposure(place, subarray, ints=1, wisp=0.):
    """Write a rate image, of several integrations with these beside it; returns them."""
    scenes = [scene_of(subarray, number, wisp) for number in range(ints)]
    simulation.write_rate(mean_scene(scenes) if ints > 1 else scenes[0], place / 'calibrated' / RATE, ints)
    if ints > 1:
        simulation.write_rateints(scenes, place / 'calibrated' / RATEINTS)
    return scenes


def header_of(subarray, detector='NRCA3'):
    rows, columns = subarray_place(detector, subarray)
    return {'SUBARRAY': subarray, 'SUBSTRT1': columns.start + 1, 'SUBSTRT2': rows.start + 1,
            'SUBSIZE1': columns.stop - columns.start, 'SUBSIZE2': rows.stop - rows.start,
            'NOUTPUTS': 4 if subarray.startswith('FULL') else 1}


def row_rms(image, good):
    """Rms of the row means."""
    return np.nanstd(np.where(good, image, 0).sum(axis=1) / np.maximum(good.sum(axis=1), 1))


@pytest.mark.parametrize(('pupil', 'taken'), [
    *((pupil, True) for pupil in ('CLEAR', 'F162M', 'F164N', 'F323N', 'F405N', 'F466N', 'F470N')),
    *((pupil, False) for pupil in ('WLP8', 'WLM8', 'GDHS0', 'GDHS60', 'GRISMR', 'GRISMC', 'MASKBAR', 'MASKRND'))])
def test_only_images_are_taken(pupil, taken):
    header = {'INSTRUME': 'NIRCAM', 'EXP_TYPE': 'NRC_IMAGE', 'DETECTOR': 'NRCBLONG', 'PUPIL': pupil}
    if taken:
        check_mode(header)
        return
    with pytest.raises(ExposureError, match=f'PUPIL {pupil}: only NIRCam imaging'):
        check_mode(header)


@pytest.mark.parametrize(('detector', 'start'), [
    ('NRCA1', (1409, 1409)), ('NRCA2', (1409, 1)), ('NRCA3', (1, 1409)), ('NRCA4', (1, 1)), ('NRCALONG', (705, 705)),
    ('NRCB1', (1, 1)), ('NRCB2', (1, 1409)), ('NRCB3', (1409, 1)), ('NRCB4', (1409, 1409)), ('NRCBLONG', (693, 701))])
def test_place_and_amplifiers_are_those_of_the_header(detector, start):
    header = header_of('SUB640', detector)
    assert (header['SUBSTRT1'], header['SUBSTRT2']) == start
    rows, columns = exposure.place(header, (640, 640))
    assert (rows, columns) == subarray_place(detector, 'SUB640')
    dq = np.where(simulation.reference_pixels()[rows, columns], REFERENCE_PIXEL, 0)
    first, last = (start[0] == 1) * 4, 640 - (start[0] == 1409) * 4
    assert amplifiers(header, dq) == {'A': slice(first, last)}


def test_four_amplifiers_read_full_and_fullp():
    dq = np.zeros((2048, 2048), np.uint32)
    assert amplifiers(header_of('FULLP'), dq) == amplifiers({'SUBARRAY': 'FULL'}, dq) == AMPLIFIERS
    for header in header_of('FULLP'), {}:
        assert exposure.place(header, dq.shape) == exposure.place({'SUBARRAY': 'FULL'}, dq.shape)


@pytest.mark.parametrize('subarray', SUBARRAYS)
def test_raw_exposures_of_every_subarray_are_taken(subarray, scratch):
    side, path = SUBARRAYS[subarray], scratch / UNCAL
    uncal_hdus((1, 2, side, side), **header_of(subarray)).writeto(path)
    with open_exposure(path, 'uncal') as hdul:
        assert hdul['SCI'].shape[-1] == side


@pytest.mark.parametrize('method', ['dr05', 'adaptive'])
@pytest.mark.parametrize('subarray', [name for name in SUBARRAYS if not name.startswith('FULL')])
def test_stripes_of_every_subarray(subarray, method):
    scene = scene_of(subarray)
    amps = amplifiers(header_of(subarray), scene.dq)
    found = remstriping.METHODS[method](scene.sci, scene.err, scene.dq, scene.sci / scene.flat, 0.8, None, amps)
    sci, _ = remstriping.subtract_striping(scene.sci, scene.dq, found.horizontal, found.vertical)
    left = scene.true_stripes - (scene.sci - sci - found.vertical)
    for columns in amps.values():
        good = np.isfinite(scene.sci[:, columns])
        # 64 x 64 pixels are too few to tell stripes from light: the adaptive method leaves them alone
        limit = 1.01 if (subarray, method) == ('SUB64P', 'adaptive') else 0.6
        assert row_rms(left[:, columns], good) < limit * row_rms(scene.true_stripes[:, columns], good)
    assert {key for key in found.numbers if key.startswith(('STRPFR_', 'STRPSH_'))} == {
        f"{'STRPFR_' if method == 'dr05' else 'STRPSH_'}{name}" for name in amps}


@pytest.mark.parametrize('method', ['dr05', 'adaptive'])
@pytest.mark.parametrize(('subarray', 'said'), [
    ('SUB640', ', scale 0.'), ('SUB640', 'only 23% of the wisp is in this subarray'),
    *((name, 'no wisp in what this image sees') for name in ('SUB400P', 'SUB320', 'SUB160', 'SUB160P', 'SUB64P'))])
def test_wisps_of_every_subarray(place, capsys, monkeypatch, subarray, said, method):
    monkeypatch.setattr(wispsub, 'LEAST_PART', 0.3 if said.startswith('only') else 0.1)
    write_exposure(place, subarray, wisp=0.8)
    before = (place / 'calibrated' / RATE).read_bytes()
    assert wisps('--fit_scaling', '--method', method) == 0
    log = capsys.readouterr().err
    assert said in log and ('WARNING' in log) == said.startswith('only')
    if said.startswith('no wisp'):
        assert (place / 'calibrated' / RATE).read_bytes() == before
    else:
        assert wispsub.ENTRY in str(fits.getheader(place / 'calibrated' / RATE)['HISTORY'])


def test_a_wisp_has_the_same_scale_in_a_subarray_as_in_the_full_frame():
    found = {}
    for subarray in 'FULL', 'SUB640':
        scene = scene_of(subarray, wisp=0.8)
        amps = amplifiers(header_of(subarray), scene.dq)
        window, part = wispsub.visible_window('NRCA3', scene.template[None], scene.place)
        assert part == (1 if subarray == 'FULL' else pytest.approx(340 * 638 / (946 * 1000)))
        data = scene.sci / scene.flat, scene.err, scene.dq, scene.template[None], np.isnan(scene.sci), window, amps
        found[subarray] = [wispsub.METHODS[method](*data) for method in ('dr05', 'adaptive')]
    for old, new in found.values():
        assert old.scale == pytest.approx(0.8, abs=0.1) and abs(new.scale - 0.8) < 4 * new.error
    one, two = (fits_[1] for fits_ in found.values())
    assert abs(one.scale - two.scale) < 4 * np.hypot(one.error, two.error)
    planes = np.stack([scene.template, 1e-3 * np.random.default_rng(1).standard_normal(scene.template.shape)])
    alike = wispsub.fit_adaptive(*data[:3], planes, *data[4:])          # the second is not seen in the subarray
    assert alike.scale == pytest.approx(two.scale) and alike.details.scales[1] == 0


def test_a_filter_in_the_pupil_wheel_has_its_own_template_and_flat(place):
    scene = rate_scene(filter_='F150W2', pupil='F162M', subarray='SUB640', wisp=0.8, crowd=0.2)
    path = simulation.write_rate(scene, place / 'calibrated' / RATE)
    assert wisps('--fit_scaling', '--method', 'adaptive') == 0
    header = fits.getheader(path)
    assert header['WISPTMPL'] == 'WISP_NRCA3_F150W2_F162M.fits'
    assert abs(header['WISPSCAL'] - 0.8) < 4 * header['WISPERR']


def test_a_missing_template_is_a_warning_that_names_what_was_looked_for(place, capsys):
    write_exposure(place, 'SUB64P')
    for key, value in ('FILTER', 'F150W2'), ('PUPIL', 'F162M'):
        fits.setval(place / 'calibrated' / RATE, key, value=value)
    assert wisps('--fit_scaling', '--method', 'adaptive', '--wisp_dir', '.') == 0
    line, = capsys.readouterr().err.splitlines()
    assert 'WARNING' in line and 'WISP_NRCA3_F150W2_F162M.fits, wisps_nrca3_F150W2.fits' in line
    fits.setval(place / 'calibrated' / RATE, 'PUPIL', value='F164N')      # no release has one
    assert wisps('--fit_scaling', '--method', 'adaptive', '--wisp_dir', '.') == 0
    assert 'WARNING' not in capsys.readouterr().err
    fits.setval(place / 'calibrated' / RATE, 'FILTER', value=fits.card.UNDEFINED)
    assert wisps('--fit_scaling') == 1 and 'has no FILTER in its header' in capsys.readouterr().err
    assert not list(place.glob('calibrated/*prewisp*'))


def test_every_integration_loses_its_own_stripes(place, capsys):
    scenes = write_exposure(place, 'SUB160', ints=3)
    with fits.open(place / 'calibrated' / RATEINTS, mode='update') as hdul:
        hdul['DQ'].data[0, 70], hdul['DQ'].data[0, 90] = 4, 5   # the patterns of these rows are not measured
        hdul['SCI'].data[1:, 70, 20] = np.nan           # and nothing is left of this pixel
        hdul['VAR_RNOISE'].data[1, 80] = np.nan         # these have no weight
    before = {name: (place / 'calibrated' / name).read_bytes() for name in (RATE, RATEINTS)}
    assert remstriping.main([RATEINTS, '--save_patterns']) == 0
    assert ' pixels of single integrations lost' in capsys.readouterr().err
    rate, ints = (fits.open(place / 'calibrated' / name) for name in (RATE, RATEINTS))
    for scene, sci in zip(scenes, ints['SCI'].data, strict=True):
        good = np.isfinite(sci) & (sci != 0) & (scene.dq == 0)
        assert row_rms(scene.true_stripes - (scene.sci - sci), good) < 0.5 * row_rms(scene.true_stripes, good)
    # as the pipeline averages
    assert (ints['DQ'].data[0, 70, 8:152] & 1).all()
    assert list(rate['DQ'].data[70, 20:22] & 1) == [1, 0] and (rate['DQ'].data[80] & 1).sum() < 20
    weight = np.where(ints['SCI'].data**2 > 0, np.nan_to_num(1 / np.maximum(ints['VAR_RNOISE'].data, 1e-12)), 0)
    mean = (weight * np.nan_to_num(ints['SCI'].data)).sum(axis=0) / np.maximum(weight.sum(axis=0), 1e-12)
    good = np.isfinite(rate['SCI'].data)
    good[80] = False                                    # whose mean was of all three
    np.testing.assert_allclose(rate['SCI'].data[good], mean[good], atol=2e-6, rtol=2e-6)
    for name, hdul in (RATE, rate), (RATEINTS, ints):
        assert remstriping.ENTRY in str(hdul[0].header['HISTORY'])
        copy = place / 'calibrated' / name.replace('.fits', '_pre1f.fits')
        assert copy.read_bytes() == before[name]
    assert fits.getdata(place / 'calibrated' / f'{DATASET}_rate_horiz.fits').shape == (3, 160, 160)
    # again, and after a kill between the two files
    sci = {name: fits.getdata(place / 'calibrated' / name).tobytes() for name in before}
    (place / 'calibrated' / RATE).write_bytes(before[RATE])
    for options in [], ['--redo']:
        assert remstriping.main([RATEINTS, *options]) == 0
        assert {name: fits.getdata(place / 'calibrated' / name).tobytes() for name in before} == sci
    capsys.readouterr()
    assert remstriping.main([RATEINTS]) == 0 and 'left alone' in capsys.readouterr().err
    os.truncate(place / 'calibrated' / RATEINTS, 100_000)
    assert remstriping.main([RATEINTS]) == 1 and f'{RATEINTS} is truncated' in capsys.readouterr().err
    line = run_batch.read_line(f'python remstriping.py {RATEINTS}', 0)          # nor is it done in a batch
    assert run_batch.look_up(DATASET, [line], False).commands == [('remstriping.py', ('--redo', RATEINTS))]


def test_a_warning_names_its_integrations(place, monkeypatch, capsys):
    write_exposure(place, 'SUB64P', ints=5)
    said = iter(({}, *({'STRPWARN': text} for text in 'abcd'), {}, {}, {}))
    monkeypatch.setattr(remstriping, 'warn_of_harm', lambda one, *_: replace(one, numbers=one.numbers | next(said)))
    assert remstriping.main([RATEINTS]) == 0
    assert fits.getval(place / 'calibrated' / RATE, 'STRPWARN') == (
        'integration 2: a; integration 3: b; integration 4: c; 4 of 5 integrations in all')
    with fits.open(place / 'calibrated' / RATEINTS.replace('.fits', '_pre1f.fits'), mode='update') as hdul:
        hdul['DQ'].data[3] = 4
    assert remstriping.main([RATEINTS, '--redo']) == 1
    assert 'integration 4: every pixel is masked' in capsys.readouterr().err


def test_the_mean_alone_points_to_its_integrations(place, capsys):
    write_exposure(place, 'SUB64P', ints=2)
    assert remstriping.main([RATE]) == 0
    assert f'is the mean of 2 integrations; give {RATEINTS} to correct each of them' in capsys.readouterr().err
    assert remstriping.main([RATEINTS]) == 0            # which does not pass for done
    line, = capsys.readouterr().err.splitlines()
    assert 'WARNING' in line and f'without {RATEINTS}' in line and '--redo' in line
    assert remstriping.main([RATEINTS, '--redo']) == 0
    assert remstriping.ENTRY in str(fits.getheader(place / 'calibrated' / RATEINTS)['HISTORY'])
    ints = place / 'calibrated' / RATEINTS
    fits.setval(ints, 'HISTORY', value=f'{remstriping.ENTRY}; remstriping.py 2026-01-01 00:00:00')
    assert remstriping.main([RATEINTS]) == 0 and f'corrected apart from {RATEINTS}' in capsys.readouterr().err
    fits.setval(place / 'calibrated' / RATE.replace('.fits', '_pre1f.fits'), 'INTEND', value=3)
    assert remstriping.main([RATEINTS, '--redo']) == 1 and 'does not belong to' in capsys.readouterr().err
    fits.delval(ints, 'SUBSTRT1')
    for detector, words in ('NRCA3', 'taken for the corner'), ('NRCA1', 'no wisp correction for NRCA1 F200W CLEAR'):
        fits.setval(ints, 'DETECTOR', value=detector)           # and goes by its own header
        assert wispsub.main([RATEINTS, '--scale', '0.5', '--wisp_dir', 'wisps']) == 0
        assert words in capsys.readouterr().err


def test_a_wisp_subtracted_from_the_mean_alone_is_said_when_stripes_are_removed(place, capsys):
    write_exposure(place, 'SUB640', ints=2, wisp=0.8)
    assert wisps('--scale', 0.8) == remstriping.main([RATEINTS]) == 0
    line, = (line for line in capsys.readouterr().err.splitlines() if 'WARNING' in line)
    assert f'{RATEINTS}: wispsub.py was run on {RATE} alone' in line
    assert wispsub.main([RATEINTS, '--scale', '0.8', '--wisp_dir', 'wisps', '--redo']) == 0
    capsys.readouterr()
    assert remstriping.main([RATEINTS]) == 0 and 'WARNING' not in capsys.readouterr().err
    assert wisps('--scale', 0.3, '--redo') == 0 and f'{RATEINTS} stays as it was' in capsys.readouterr().err
    assert wispsub.main([RATEINTS, '--scale', '0.3', '--wisp_dir', 'wisps']) == remstriping.main([RATEINTS]) == 0
    said = capsys.readouterr().err
    for words in f'with scale 0.8, not 0.3 as asked for in {RATEINTS}', f'wispsub.py was run on {RATE} alone':
        assert words in said


def test_integrations_share_one_wisp(place):
    scenes = write_exposure(place, 'SUB640', ints=2, wisp=0.8)
    assert wispsub.main([RATEINTS, '--fit_scaling', '--wisp_dir', 'wisps']) == 0
    with fits.open(place / 'calibrated' / RATE) as rate, fits.open(place / 'calibrated' / RATEINTS) as ints:
        assert ints[0].header['WISPSCAL'] == rate[0].header['WISPSCAL'] == pytest.approx(0.8, abs=0.15)
        lights = [scene.sci - sci for scene, sci in zip(scenes, ints['SCI'].data, strict=True)]
        good = np.isfinite(lights).all(axis=0)
        np.testing.assert_allclose(lights[0][good], lights[1][good], atol=1e-6)
        np.testing.assert_allclose(rate['SCI'].data[good], mean_scene(scenes).sci[good] - lights[0][good], atol=1e-5)


def test_the_hook_grows_the_flags_as_the_script_does(place, capsys):
    simulation.write_uncal(*simulation.exposure(groups=3, ints=2, snowballs=2, subarray='SUB64P'),
                           place / 'uncals' / UNCAL)
    assert snowballs() == 0
    said = capsys.readouterr().err
    assert 'snowballs' in said and ' 0 snowballs' not in said
    (place / 'strun').mkdir()
    what = ['calwebb_detector1', '--steps.jump.post_hooks=stage1.strun_hook.GrowSnowballs,']
    if version('jwst') == '1.7.2':                       # whose strun takes no lists
        what = ['hook.cfg']
        (place / 'hook.cfg').write_text('class = "jwst.pipeline.Detector1Pipeline"\n[steps]\n[[jump]]\n'
                                       'post_hooks = stage1.strun_hook.GrowSnowballs,\n')
    strun = [sys.executable, Path(sys.executable).with_name('strun'), what[0], f'uncals/{UNCAL}', *what[1:]]
    subprocess.run([*strun, '--output_dir=strun', '--output_ext=.fits', '--save_calibrated_ramp=true'], cwd=place,
                   check=True, env=os.environ | {'PYTHONPATH': str(ROOT)}, capture_output=True)
    for product, extensions in ('ramp', ['GROUPDQ']), ('rate', ['SCI', 'DQ', 'ERR']):
        ours, theirs = (fits.open(place / how / f'{DATASET}_{product}.fits') for how in ('reduced', 'strun'))
        for extension in extensions:
            np.testing.assert_array_equal(ours[extension].data, theirs[extension].data)
    assert ours['SCI'].data.shape == (64, 64) and fits.getdata(place / 'reduced' / RATEINTS).shape == (2, 64, 64)
    # and on with the other scripts
    here = [RATEINTS, '--input_dir', 'reduced', '--output_dir', 'reduced']
    assert wispsub.main([*here, '--scale', '0.5', '--wisp_dir', 'wisps']) == remstriping.main(here) == 0
