"""The rules that keep images safe, held against nircam_io.py and the scripts that use it."""

import errno
import logging
import multiprocessing
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import nircam_io
import numpy as np
import pytest
from astropy.io import fits
from nircam_io import ExposureError, find_input, open_exposure, publish, workspace

import remstriping
import snowball_wrapper
import wispsub
from conftest import DATASET, ROOT

RATE = f'{DATASET}_rate.fits'
CARDS = {'TELESCOP': 'JWST', 'INSTRUME': 'NIRCAM', 'EXP_TYPE': 'NRC_IMAGE', 'DETECTOR': 'NRCA3', 'FILTER': 'F200W',
         'PUPIL': 'CLEAR', 'SUBARRAY': 'FULL', 'DATE-OBS': '2022-12-21', 'TIME-OBS': '10:00:00'}


# --- what the tests work on ---------------------------------------------------------------------------

def rate_hdus(shape=(2048, 2048), **cards):
    """The extensions of a rate image, of noise; `cards` go to its primary header."""
    sci = np.random.default_rng(1).normal(0.2, 0.01, shape).astype(np.float32)
    dq = np.zeros(shape, np.uint32)
    dq[:4] = 1
    arrays = {'SCI': sci, 'ERR': np.full(shape, 0.01, np.float32), 'DQ': dq,
              'VAR_POISSON': np.full(shape, 1e-4, np.float32), 'VAR_RNOISE': np.full(shape, 1e-4, np.float32)}
    return fits.HDUList([fits.PrimaryHDU(header=fits.Header(CARDS | cards)),
                         *(fits.ImageHDU(array, name=name) for name, array in arrays.items())])


def uncal_hdus(shape=(1, 3, 2048, 2048), **cards):
    """The extensions of a raw exposure."""
    counts = np.arange(np.prod(shape), dtype=np.uint32).astype(np.uint16).reshape(shape)
    return fits.HDUList([fits.PrimaryHDU(header=fits.Header(CARDS | cards)), fits.ImageHDU(counts, name='SCI')])


def quick_mask(sci, _):
    """Not the sources; but as their mask does, it depends on the image."""
    return np.nan_to_num(sci) > np.float32(0.22)


def quick_median(image, mask, axis):
    """Neither clipped nor a median, but a pattern of the image."""
    return np.ma.mean(np.ma.array(image, mask=mask), axis=axis, dtype=float).filled(np.nan)


@pytest.fixture
def image(scratch, field, monkeypatch):
    """A fresh copy of the simulated rate image, in the working directory; the flat field is quick and is 1."""
    (scratch / 'calibrated').mkdir()
    shutil.copy(field / 'calibrated' / RATE, scratch / 'calibrated')
    (scratch / 'wisps').symlink_to(field / 'wisps')
    monkeypatch.chdir(scratch)

    def flat_field(path, _flagged=False):
        with fits.open(path) as hdul:
            return (*(hdul[name].data.astype(np.float32) for name in ('SCI', 'ERR')), hdul['DQ'].data, 'flat.fits',
                    'jwst.pmap')

    monkeypatch.setattr(nircam_io, 'flat_field', flat_field)
    monkeypatch.setattr(remstriping, 'source_mask', quick_mask)
    monkeypatch.setattr(remstriping, 'clipped_median', quick_median)
    return scratch / 'calibrated' / RATE


def wisps(*options):
    return wispsub.main([RATE, '--wisp_dir', 'wisps', *map(str, options)])


def stripes(*options):
    return remstriping.main([RATE, *options])


def sci(path):
    return fits.getdata(path, 'SCI')


def same(one, other):
    return np.array_equal(one, other, equal_nan=True)


def content(directory):
    """Bytes, mode and time of every file."""
    return {path.relative_to(directory): (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns)
            for path in directory.rglob('*') if path.is_file()}


def beside(path, ending):
    return path.with_name(f'{DATASET}{ending}')


# --- finding and checking -----------------------------------------------------------------------------

def test_find_input_takes_an_existing_path_before_the_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / 'a b é.fits').write_text('x')
    assert find_input('a b é.fits', 'in').parent.name == 'in'
    (tmp_path / 'a b é.fits').write_text('x')
    assert str(find_input('a b é.fits', 'in')) == 'a b é.fits'


def test_find_input_says_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'broken').symlink_to('nowhere')
    for name, message in ('pipe', 'no regular file'), ('.', 'directory'), ('broken', 'no such file'), ('no', 'no such'):
        with pytest.raises(ExposureError, match=message):
            find_input(name, tmp_path)


def broken(change, **cards):
    """A rate image to which `change(hdul)` was done."""
    def write(path):
        hdul = rate_hdus(**cards)
        (change(hdul) or hdul).writeto(path)
    return write


def of_kind(hdus, *args, **cards):
    return lambda path: hdus(*args, **cards).writeto(path)


def without(name):
    return broken(lambda hdul: hdul.pop([hdu.name for hdu in hdul].index(name)) and None)


def with_data(name, array):
    """A rate image with another array in one extension: a constant, or a function of the old array."""
    def change(hdul):
        old = hdul[name].data
        hdul[name].data = array(old) if callable(array) else np.full_like(old, array)
    return broken(change)


def cut(length):
    """A rate image with its last bytes missing (or `length` zeros more)."""
    def write(path):
        rate_hdus().writeto(path)
        os.truncate(path, path.stat().st_size + length)
    return write


def card_in_place(keyword, text):
    """A rate image whose first card of that name in the extensions is overwritten."""
    def write(path):
        rate_hdus().writeto(path)
        data = bytearray(path.read_bytes()[:80000])
        place = data.index(keyword.ljust(8).encode() + b'=', 2880)
        with open(path, 'r+b') as file:
            file.seek(place)
            file.write(f'{keyword:8}= {text:>20}'.ljust(80).encode())
    return write


BAD_RATES = {
    'empty': (lambda path: path.touch(), 'empty'),
    'text': (lambda path: path.write_text('no image\n' * 1000), 'no FITS file'),
    'compressed': (lambda path: os.system(f'echo SIMPLE | gzip > {path}'), 'no FITS file'),
    'only a start': (lambda path: path.write_bytes(b'SIMPLE  ='), 'FITS|damaged|SCI|truncated'),
    'primary only': (lambda path: fits.PrimaryHDU(header=fits.Header(CARDS)).writeto(path), 'no SCI'),
    'no SCI': (without('SCI'), 'no SCI'),
    'no DQ': (without('DQ'), 'no DQ'),
    'no ERR': (without('ERR'), 'no ERR'),
    'tail cut': (cut(-1000), 'truncated'),
    'half': (cut(-42_000_000), 'truncated'),
    'tail added': (cut(2880), 'damaged'),
    'another instrument': (of_kind(rate_hdus, (8, 8), INSTRUME='NIRISS'), 'NIRISS'),
    'no instrument': (of_kind(rate_hdus, (8, 8), INSTRUME=''), 'INSTRUME'),
    'subarray': (of_kind(rate_hdus, (64, 64), SUBARRAY='SUB64P'), 'subarray.*SUB64P.*full frame'),
    'small': (of_kind(rate_hdus, (64, 64)), 'SCI is 64 x 64'),
    'grism': (of_kind(rate_hdus, (8, 8), EXP_TYPE='NRC_WFSS', PUPIL='GRISMR'), 'GRISMR.*supported'),
    'grism pupil': (of_kind(rate_hdus, (8, 8), PUPIL='GRISMC'), 'GRISMC.*supported'),
    'coronagraphic': (of_kind(rate_hdus, (8, 8), EXP_TYPE='NRC_CORON', PUPIL='MASKRND'), 'MASKRND.*supported'),
    'time series': (of_kind(rate_hdus, (8, 8), EXP_TYPE='NRC_TSIMAGE'), 'NRC_TSIMAGE.*supported'),
    'guider': (of_kind(rate_hdus, (8, 8), DETECTOR='GUIDER1'), 'GUIDER1'),
    'uncal': (of_kind(uncal_hdus, (1, 2, 8, 8)), 'is a uncal product.*not a rate'),
    'rateints': (of_kind(rate_hdus, (2, 8, 8)), 'is a rateints product.*not a rate'),
    'cal': (of_kind(rate_hdus, (8, 8), S_PHOTOM='COMPLETE'), 'is a cal product.*not a rate'),
    'NaN': (with_data('SCI', np.nan), 'NaN everywhere'),
    'masked': (with_data('DQ', 1), 'flagged'),
    'masked by other flags': (with_data('DQ', 4), 'flagged'),
    'constant': (with_data('SCI', 0.25), '0.25 everywhere'),
    'integers': (with_data('SCI', lambda sci: (1000 * sci).astype(np.int32)), 'int32'),
    'float flags': (with_data('DQ', lambda dq: dq.astype(np.float32)), 'float32'),
    'another shape': (with_data('ERR', lambda err: err[:100]), 'ERR has another shape'),
    'SCI is a table': (broken(lambda hdul: fits.HDUList(
        [hdul[0], fits.BinTableHDU.from_columns([fits.Column('a', 'PJ', array=np.array([[1], [2, 3]], object))],
                                                name='SCI')])), 'SCI extension is no image'),
    'huge': (card_in_place('NAXIS1', '1000000000'), 'truncated'),
    'hugest': (card_in_place('NAXIS1', '99999999999999999999'), 'truncated|FITS|damaged'),
    'negative': (card_in_place('NAXIS1', '-2048'), 'damaged|FITS|truncated'),
    'BITPIX': (card_in_place('BITPIX', '7'), 'extension is no image'),
}


@pytest.mark.parametrize('case', BAD_RATES)
def test_a_bad_rate_image_is_refused_in_one_line(case, scratch):
    write, message = BAD_RATES[case]
    write(scratch / RATE)
    before = content(scratch)
    start = time.monotonic()
    with pytest.raises(ExposureError, match=message) as told:
        open_exposure(scratch / RATE, 'rate').close()
    assert '\n' not in str(told.value) and time.monotonic() - start < 30
    assert content(scratch) == before


BAD_UNCALS = {
    'rate': (of_kind(rate_hdus, (8, 8)), 'is a rate product.*not a uncal'),
    'ramp': (lambda path: fits.HDUList([*uncal_hdus((1, 2, 8, 8)), fits.ImageHDU(name='GROUPDQ')]).writeto(path),
             'is a ramp product.*not a uncal'),
    'subarray': (of_kind(uncal_hdus, (1, 2, 64, 64), SUBARRAY='SUB64P'), 'SUB64P'),
    'small': (of_kind(uncal_hdus, (1, 2, 64, 64)), '64 x 64'),
    'constant': (lambda path: fits.HDUList([uncal_hdus((1, 1, 8, 8))[0], fits.ImageHDU(
        np.zeros((1, 2, 2048, 2048), np.uint16), name='SCI')]).writeto(path), '0 everywhere'),
    'no group': (lambda path: no_group(path), '0 groups|damaged|SCI'),
}


def no_group(path):
    hdul = uncal_hdus((1, 1, 2048, 2048))
    hdul.writeto(path)
    with open(path, 'r+b') as file:
        header = file.read(20000)
        file.seek(header.index(b'NAXIS3  ='))
        file.write(f'NAXIS3  = {0:20d}'.encode())
    os.truncate(path, header.index(b'END' + b' ' * 77, header.index(b'XTENSION')) // 2880 * 2880 + 2880)


@pytest.mark.parametrize('case', BAD_UNCALS)
def test_a_bad_raw_exposure_is_refused_in_one_line(case, scratch):
    write, message = BAD_UNCALS[case]
    path = scratch / f'{DATASET}_uncal.fits'
    write(path)
    with pytest.raises(ExposureError, match=message):
        open_exposure(path, 'uncal').close()


def test_good_exposures_open(scratch):
    uncal_hdus().writeto(scratch / 'x_uncal.fits')
    rate_hdus(S_FLAT='SKIPPED').writeto(scratch / 'x_rate.fits')
    for kind in ('uncal', 'rate'):
        with open_exposure(scratch / f'x_{kind}.fits', kind) as hdul:
            assert hdul[0].header['DETECTOR'] == 'NRCA3'


# --- whole files, one process at a time ---------------------------------------------------------------

def test_a_workspace_leaves_nothing(tmp_path):
    with workspace(tmp_path / 'new' / 'out', 'x') as work:
        (work / 'x_rate.fits').write_text('half')
        assert work.parent == tmp_path / 'new' / 'out'
    assert list(tmp_path.iterdir()) == []               # nothing was written, so none was needed


def test_a_workspace_that_cannot_be_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(nircam_io, 'open_plain', full)
    with pytest.raises(ExposureError, match='cannot write in .*: No space left'), workspace(tmp_path / 'new', 'x'):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_workspace_passes_every_error_on(tmp_path):
    for error in (FileNotFoundError, OSError, KeyboardInterrupt, ExposureError):
        with pytest.raises(error), workspace(tmp_path, 'x') as work:
            (work / 'x_rate.fits').write_text('half')
            raise error
        assert list(tmp_path.iterdir()) == []


def test_a_workspace_clears_what_a_killed_process_left_of_this_dataset_only(tmp_path):
    for dataset in ('x', 'x_y'):
        (tmp_path / f'.{dataset}.tmp').mkdir()
        (tmp_path / f'.{dataset}.tmp' / 'lock').touch()
        (tmp_path / f'.{dataset}.tmp' / 'rate.fits').write_text('half')
    with workspace(tmp_path, 'x') as work:
        assert [path.name for path in work.iterdir()] == ['lock']
    assert [path.name for path in tmp_path.iterdir()] == ['.x_y.tmp']


def test_products_appear_together_the_last_one_last(tmp_path, monkeypatch):
    (tmp_path / 'x_rate.fits').write_text('old')
    with workspace(tmp_path, 'x') as work:
        for ending in ('_rate.fits', '_a.fits', '_z.pdf'):
            (work / f'x{ending}').write_text('new')
        assert (tmp_path / 'x_rate.fits').read_text() == 'old'
        order = []
        replace = type(tmp_path).replace
        monkeypatch.setattr(type(tmp_path), 'replace', lambda self, to: (order.append(to.name), replace(self, to)))
        publish(work, tmp_path, 'x_rate.fits')
    assert order == ['x_a.fits', 'x_z.pdf', 'x_rate.fits']
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(order, 'new')


def add_one(directory, times, seconds):
    """Add to a number in a file, slowly enough that another process would come between."""
    for _ in range(times):
        with workspace(directory, 'x') as work:
            number = int((directory / 'number').read_text())
            time.sleep(seconds)
            (work / 'number').write_text(str(number + 1))
            (work / 'number').replace(directory / 'number')


@pytest.mark.parametrize('times, seconds', [(10, 0.002), (200, 0)], ids=['slowly', 'at once'])
def test_eight_processes_take_turns(times, seconds, tmp_path):
    (tmp_path / 'number').write_text('0')
    processes = [multiprocessing.get_context('fork').Process(target=add_one, args=(tmp_path, times, seconds))
                 for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 8
    assert (tmp_path / 'number').read_text() == str(8 * times)
    assert [path.name for path in tmp_path.iterdir()] == ['number']


def test_a_directory_that_vanishes_is_made_again(tmp_path, monkeypatch):
    path, mkdir, calls = tmp_path / 'x', os.mkdir, []
    path.mkdir()

    def remove_what_was_found(*args):
        calls.append(args)
        try:
            mkdir(*args)
        except FileExistsError:
            path.rmdir()
            raise

    monkeypatch.setattr(os, 'mkdir', remove_what_was_found)
    nircam_io.make_directory(path)
    assert path.is_dir() and len(calls) == 2


def test_what_nfs_shows_of_a_removed_lock_is_no_product(tmp_path):
    with workspace(tmp_path, 'x') as work:
        (work / '.nfs0001').touch()  # stays as long as another process has it open
        (work / 'x_rate.fits').write_text('new')
        publish(work, tmp_path, 'x_rate.fits')
    assert {path.name for path in tmp_path.rglob('*')} == {'.x.tmp', 'x_rate.fits', '.nfs0001'}


def test_a_directory_that_cannot_be_is_said(tmp_path):
    (tmp_path / 'file').touch()
    for output in (tmp_path / 'file', tmp_path / 'file' / 'below', '/proc/none'):
        with pytest.raises(ExposureError, match='cannot write in'), workspace(output, 'x'):
            pass


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / 'precious').write_text('mine')
    (tmp_path / 'precious').chmod(0o600)
    (tmp_path / '.x.tmp').mkdir()
    (tmp_path / '.x.tmp' / 'lock').symlink_to(tmp_path / 'precious')
    with pytest.raises(ExposureError, match='cannot write in'), workspace(tmp_path, 'x'):
        pass
    assert (tmp_path / 'precious').read_text() == 'mine' and (tmp_path / 'precious').stat().st_mode & 0o777 == 0o600


def test_a_workspace_that_is_a_link_is_not_cleared(tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'precious').touch()
    (tmp_path / '.x.tmp').symlink_to('mine')
    with pytest.raises(ExposureError, match='is a link'), workspace(tmp_path, 'x'):
        pass
    assert [path.name for path in (tmp_path / 'mine').iterdir()] == ['precious']


@pytest.mark.parametrize('mode, shared', [(0o755, 0o755), (0o2775, 0o2775), (0o1777, 0o755), (0o575, 0o775)])
def test_a_workspace_is_shared_as_its_directory_is(mode, shared, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out').chmod(mode)
    umask = os.umask(0o022)
    try:
        with workspace(tmp_path / 'out', 'x') as work:
            assert [stat.S_IMODE(path.stat().st_mode) for path in (work, work / 'lock')] == [shared, shared & 0o666]
    finally:
        os.umask(umask)


def in_turn(directory, first, second):
    """Two processes with a umask of 022, each the function of another user: their exit statuses."""
    def start(call, user):
        os.umask(0o022)
        os.setgid(3000)
        os.setuid(user)
        call(directory)
    statuses = []
    for call, user in (first, 3001), (second, 3002):
        process = multiprocessing.get_context('fork').Process(target=start, args=(call, user))
        process.start()
        process.join(60)
        statuses.append(process.exitcode)
    return statuses


@pytest.fixture
def group_directory(scratch):
    """A directory of a group with two members who have to be able to reach it."""
    if os.geteuid() != 0:
        pytest.skip('only root can be two users')
    scratch.chmod(0o755)
    directory = scratch / 'group'
    directory.mkdir()
    os.chown(directory, 0, 3000)
    directory.chmod(0o2775)
    return directory


def test_what_one_killed_left_does_not_lock_another_user_out(group_directory):
    def killed(directory):
        with workspace(directory, 'x') as work:
            (work / 'x_rate.fits').write_text('half')
            os._exit(9)

    def goes_on(directory):
        with workspace(directory, 'x') as work:
            assert [path.name for path in work.iterdir()] == ['lock']
            (work / 'x_rate.fits').write_text('new')
            publish(work, directory, 'x_rate.fits')

    assert in_turn(group_directory, killed, goes_on) == [9, 0]
    assert [path.name for path in group_directory.iterdir()] == ['x_rate.fits']


def publish_two(directory):
    """Make two products of a dataset."""
    with workspace(directory, 'x') as work:
        for ending in '_a.fits', '_rate.fits':
            (work / f'x{ending}').write_text('new')
        publish(work, directory, 'x_rate.fits')


def test_nothing_is_put_in_place_where_one_product_cannot_be(group_directory):
    def told(message):
        def call(directory):
            with pytest.raises(ExposureError, match=message):
                publish_two(directory)
        return call

    group_directory.chmod(0o3775)                        # with the sticky bit
    assert in_turn(group_directory, publish_two, told("x_a.fits cannot be replaced: it is another user's")) == [0, 0]
    (group_directory / 'x_a.fits').unlink()
    assert in_turn(group_directory, lambda _: None, told('x_rate.fits cannot be replaced')) == [0, 0]
    assert [path.name for path in group_directory.iterdir()] == ['x_rate.fits']


def test_a_directory_in_the_place_of_a_product_is_named(tmp_path):
    (tmp_path / 'x_rate.fits').mkdir()
    with pytest.raises(ExposureError, match='x_rate.fits is a directory'):
        publish_two(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['x_rate.fits']


@pytest.mark.parametrize('dtype', [bool, np.uint8, np.uint16, np.uint32, np.float32, np.float64])
def test_maps_are_read_back(dtype, tmp_path):
    array = np.random.default_rng(2).integers(0, 2, (100, 130)).astype(dtype)
    nircam_io.write_map(tmp_path / 'map.fits', array, [('ANSWER', 42, 'a card')])
    read, header = fits.getdata(tmp_path / 'map.fits', header=True)
    assert np.array_equal(read, array) and header['ANSWER'] == 42
    assert read.dtype.kind == ('f' if dtype in (np.float32, np.float64) else 'u')


# --- the untouched input, once only, again ------------------------------------------------------------

def test_the_untouched_input_stays_and_nothing_is_corrected_twice(image, capsys):
    original = image.read_bytes()
    image.chmod(0o640)
    mtime = image.stat().st_mtime_ns
    assert wisps('--scale', 0.6) == 0
    untouched = beside(image, '_rate_prewisp.fits')
    assert untouched.read_bytes() == original and untouched.stat().st_mtime_ns == mtime
    assert stat.S_IMODE(image.stat().st_mode) == stat.S_IMODE(untouched.stat().st_mode) == 0o640
    assert stripes() == 0
    before = content(image.parent)
    assert wisps('--scale', 0.3) == 0 and wisps('--fit_scaling') == 0 and stripes() == 0
    assert content(image.parent) == before
    assert capsys.readouterr().err.count('left alone') == 3
    assert sorted(path.name for path in image.parent.iterdir()) == [
        RATE, f'{DATASET}_rate_1fmask.fits', f'{DATASET}_rate_pre1f.fits', f'{DATASET}_rate_prewisp.fits']


def test_redo_without_the_untouched_copy_is_refused(image, capsys):
    before = content(image.parent)
    assert wisps('--scale', 0.6, '--redo') == 1 and stripes('--redo') == 1
    assert content(image.parent) == before
    assert wisps('--scale', 0.6) == 0
    beside(image, '_rate_prewisp.fits').unlink()
    before = content(image.parent)
    assert wisps('--scale', 0.3, '--redo') == 1
    assert content(image.parent) == before
    assert capsys.readouterr().err.count('which is not there') == 3


def test_redo_done_corrects_what_was_not_and_starts_again_what_was(image, capsys):
    original = image.read_bytes()
    assert wisps('--scale', 0.6, '--redo_done') == 0
    assert wisps('--scale', 0.3, '--redo_done') == 0
    assert fits.getval(image, 'WISPSCAL') == 0.3
    assert beside(image, '_rate_prewisp.fits').read_bytes() == original
    beside(image, '_rate_prewisp.fits').unlink()
    before = content(image.parent)
    assert wisps('--scale', 0.6, '--redo_done') == 1
    assert 'was corrected otherwise' in capsys.readouterr().err and content(image.parent) == before


def test_redo_done_needs_no_copy_where_the_input_is_untouched(image):
    assert wisps('--scale', 0.6, '--output_dir', 'clean') == 0
    (image.parents[1] / 'clean' / f'{DATASET}_rate_prewisp.fits').unlink()
    assert wisps('--scale', 0.3, '--output_dir', 'clean', '--redo_done') == 0
    assert fits.getval(image.parents[1] / 'clean' / RATE, 'WISPSCAL') == 0.3


def test_redo_done_takes_wisps_off_before_the_stripes(image, capsys):
    original = image.read_bytes()
    assert stripes() == 0
    assert wisps('--scale', 0.6, '--redo_done') == 0
    assert 'remstriping.py must be run again' in capsys.readouterr().err
    assert beside(image, '_rate_prewisp.fits').read_bytes() == original
    assert remstriping.ENTRY not in str(fits.getheader(image)['HISTORY'])
    first = sci(image)
    assert stripes('--redo_done') == 0
    assert same(sci(beside(image, '_rate_pre1f.fits')), first) and fits.getval(image, 'WISPSCAL') == 0.6


def test_redo_done_of_wisps_after_stripes_wants_the_image_before(image, capsys):
    assert stripes() == 0
    beside(image, '_rate_pre1f.fits').unlink()
    before = content(image.parent)
    assert wisps('--scale', 0.6, '--redo_done') == 1
    assert 'remstriping.py came before wispsub.py' in capsys.readouterr().err and content(image.parent) == before


def test_redo_from_a_copy_that_was_corrected_is_refused(image, capsys):
    assert wisps('--scale', 0.6) == 0
    shutil.copy(image, beside(image, '_rate_prewisp.fits'))
    assert wisps('--scale', 0.3, '--redo') == 1
    assert 'has been corrected itself' in capsys.readouterr().err


def test_redo_equals_a_fresh_chain(image, capsys):
    original = image.read_bytes()
    assert wisps('--scale', 0.3) == stripes() == 0
    fresh = {ending: sci(beside(image, ending)) for ending in ('_rate.fits', '_rate_pre1f.fits')}
    fresh_mask = fits.getdata(beside(image, '_rate_1fmask.fits'))
    for path in image.parent.iterdir():
        path.unlink()

    image.write_bytes(original)
    assert wisps('--scale', 1.1) == stripes() == 0                  # makes a mask of its own
    assert not same(fresh_mask, fits.getdata(beside(image, '_rate_1fmask.fits')))
    capsys.readouterr()
    assert wisps('--scale', 0.3, '--redo') == 0
    assert 'remstriping.py must be run again' in capsys.readouterr().err
    assert stripes() == 0
    for ending, expected in fresh.items():
        assert same(sci(beside(image, ending)), expected)
    assert same(fits.getdata(beside(image, '_rate_1fmask.fits')), fresh_mask)
    assert beside(image, '_rate_prewisp.fits').read_bytes() == original
    history = '\n'.join(map(str, fits.getheader(image)['HISTORY']))
    assert history.count(wispsub.ENTRY) == history.count(remstriping.ENTRY) == 1


def test_redo_of_stripes_does_not_bring_back_an_old_wisp_scale(image):
    assert wisps('--scale', 1.1) == stripes() == 0
    assert wisps('--scale', 0.3, '--redo') == 0                     # _pre1f is still that of scale 1.1
    assert stripes('--redo') == 0
    assert fits.getval(image, 'WISPSCAL') == fits.getval(beside(image, '_rate_pre1f.fits'), 'WISPSCAL') == 0.3


def test_an_edited_mask_survives_a_redo(image):
    assert stripes() == 0
    with fits.open(beside(image, '_rate_1fmask.fits'), mode='update') as hdul:
        hdul[-1].data[500:600, 500:900] = 1
    edited = fits.getdata(beside(image, '_rate_1fmask.fits'))
    first = sci(image)
    assert stripes('--redo') == 0
    assert same(fits.getdata(beside(image, '_rate_1fmask.fits')), edited) and not same(sci(image), first)


def test_another_output_directory_leaves_the_input_alone(image):
    before = content(image.parent)
    assert wisps('--scale', 0.6, '--output_dir', 'new/clean') == 0
    assert content(image.parent) == before
    clean = image.parents[1] / 'new' / 'clean'
    assert sorted(path.name for path in clean.iterdir()) == [RATE, f'{DATASET}_rate_prewisp.fits']
    copy = clean / f'{DATASET}_rate_prewisp.fits'
    assert copy.read_bytes() == image.read_bytes() and not copy.samefile(image)
    first = content(clean)
    assert wisps('--scale', 0.3, '--output_dir', 'new/clean') == 0 and content(clean) == first
    assert wisps('--scale', 0.3, '--output_dir', 'new/clean', '--redo') == 0
    assert fits.getval(clean / RATE, 'WISPSCAL') == 0.3


def test_a_corrected_image_in_the_output_directory_is_not_replaced_by_one_without(image, capsys):
    assert wisps('--scale', 0.6, '--output_dir', 'clean') == 0
    before = content(image.parents[1] / 'clean')
    assert stripes('--output_dir', 'clean') == 1                    # the input has its wisps still
    assert content(image.parents[1] / 'clean') == before
    assert 'would be replaced' in capsys.readouterr().err
    assert stripes('--input_dir', 'clean', '--output_dir', 'clean') == 0


def during_flat_field(monkeypatch, do):
    """Have `do()` happen just before the image is flat-fielded, as if another program had done it."""
    flat_field = nircam_io.flat_field
    monkeypatch.setattr(nircam_io, 'flat_field', lambda *arguments: (do(), flat_field(*arguments))[1])


def test_an_input_that_another_process_corrects_meanwhile(image, monkeypatch):
    assert wisps('--scale', 0.6, '--output_dir', 'alone') == 0
    alone, original = content(image.parents[1] / 'alone'), image.read_bytes()
    corrected = image.parents[1] / 'alone' / RATE

    during_flat_field(monkeypatch, lambda: os.replace(shutil.copy(corrected, image.with_name('new')), image))
    assert wisps('--scale', 0.6, '--output_dir', 'clean') == 0
    clean = image.parents[1] / 'clean'
    assert (clean / f'{DATASET}_rate_prewisp.fits').read_bytes() == original
    assert same(sci(clean / RATE), sci(corrected)) and content(clean).keys() == alone.keys()


@pytest.mark.parametrize('change', [lambda new, image: os.replace(new, image), shutil.copyfile], ids=['mv', 'cp'])
def test_an_image_that_is_replaced_meanwhile_stays(change, image, monkeypatch, capsys):
    new = image.parents[1] / 'new.fits'
    with fits.open(image) as hdul:
        hdul['SCI'].data += 10
        hdul.writeto(new)
    other = new.read_bytes()
    during_flat_field(monkeypatch, lambda: change(new, image))
    assert wisps('--scale', 0.6) == 1
    assert f'{RATE} was changed by another program meanwhile' in capsys.readouterr().err
    assert [path.name for path in image.parent.iterdir()] == [RATE] and image.read_bytes() == other


def test_an_input_that_was_corrected_in_the_last_moment_is_not_corrected_twice(image, monkeypatch, capsys):
    assert wisps('--scale', 0.6, '--output_dir', 'alone') == 0
    corrected, open_exposure = image.parents[1] / 'alone' / RATE, nircam_io.open_exposure

    def late(*arguments):
        os.replace(shutil.copy(corrected, image.with_name('new')), image)
        return open_exposure(*arguments)
    monkeypatch.setattr(nircam_io, 'open_exposure', late)
    assert wisps('--scale', 0.6, '--output_dir', 'clean') == 1
    assert 'changed by another program' in capsys.readouterr().err
    assert not (image.parents[1] / 'clean').exists()


def test_a_home_directory_in_a_setting_is_what_it_is_in_a_shell(image, monkeypatch):
    monkeypatch.setenv('HOME', str(image.parents[1]))
    monkeypatch.setenv('NIGHT', '7')
    assert wisps('--scale', 0.6, '--output_dir=~/clean$NIGHT') == 0
    assert (image.parents[1] / 'clean7' / RATE).exists() and not Path('~').exists()
    monkeypatch.setattr(remstriping, 'OUTPUTDIR', '~/clean7')
    monkeypatch.setattr(remstriping, 'INPUTDIR', '~/clean7')
    assert stripes() == 0
    assert (image.parents[1] / 'clean7' / f'{DATASET}_rate_pre1f.fits').exists() and not Path('~').exists()


def test_a_symbolic_link_gives_way_and_its_file_stays(image):
    archive = image.parents[1] / 'archive.fits'
    image.rename(archive)
    original = archive.read_bytes()
    image.symlink_to(archive)
    assert wisps('--scale', 0.6) == 0
    untouched = beside(image, '_rate_prewisp.fits')
    assert archive.read_bytes() == untouched.read_bytes() == original
    assert not image.is_symlink() and not untouched.is_symlink() and not untouched.samefile(archive)


def test_a_run_that_was_killed_between_copy_and_image_is_continued(image):
    os.link(image, beside(image, '_rate_prewisp.fits'))
    original = image.read_bytes()
    assert wisps('--scale', 0.6) == 0
    assert beside(image, '_rate_prewisp.fits').read_bytes() == original != image.read_bytes()
    assert sorted(os.listdir(image.parent)) == [RATE, f'{DATASET}_rate_prewisp.fits']


def test_a_damaged_untouched_copy_is_named(image, capsys):
    assert wisps('--scale', 0.6) == 0
    os.truncate(beside(image, '_rate_prewisp.fits'), 1_000_000)
    before = content(image.parent)
    assert wisps('--scale', 0.3, '--redo') == 1
    assert f'{DATASET}_rate_prewisp.fits is truncated' in capsys.readouterr().err
    assert content(image.parent) == before


def test_an_image_given_twice_in_a_call_is_corrected_once(image):
    assert wispsub.main([RATE, str(image), '--wisp_dir', 'wisps', '--scale', '0.6']) == 0
    assert '\n'.join(map(str, fits.getheader(image)['HISTORY'])).count(wispsub.ENTRY) == 1


# --- headers and names are only quoted ----------------------------------------------------------------

HOSTILE = ['$(touch gotcha)', '`touch gotcha`', "'; touch gotcha; '", '<script>x</script>', '../../../gotcha', '%s%s%n',
           '{0.__class__}', '\\x1b[2J']


@pytest.mark.parametrize('text', HOSTILE)
@pytest.mark.parametrize('keyword', ['INSTRUME', 'DETECTOR', 'FILTER', 'PUPIL', 'SUBARRAY'])
def test_header_strings_are_only_quoted(text, keyword, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rate_hdus((8, 8), **{keyword: text}).writeto('x_rate.fits')
    before = content(tmp_path)
    assert wispsub.main(['x_rate.fits', '--scale', '1']) == remstriping.main(['x_rate.fits']) == 1
    assert content(tmp_path) == before
    assert all('x_rate.fits' in line for line in capsys.readouterr().err.splitlines())


def test_log_lines_hold_no_line_breaks_or_escapes(capsys):
    def fail(_):
        raise ExposureError('a\nb\x1b[2J\x07é')
    assert nircam_io.run_each(['x\ny'], fail) == 1
    line, = capsys.readouterr().err.splitlines()
    assert line.endswith('ERROR x?y: a?b?[2J?é')


def test_history_takes_any_setting():
    header = fits.Header()
    header.add_history(nircam_io.describe('wispsub.py', {'template': 'é\n\x1b'}))
    assert header['HISTORY'][0] == 'wispsub.py settings: template=\\xe9\\n\\x1b'


def test_nothing_is_unpickled_or_evaluated():
    for script in ROOT.glob('*.py'):
        text = script.read_text()
        assert not re.search(r'allow_pickle|import pickle|\beval\(|\bexec\(|os\.system|shell=True|yaml', text), script


@pytest.mark.parametrize('name', ['a space_rate.fits', 'ünïcode_rate.fits', '-dash_rate.fits', "it's $HOME_rate.fits"])
def test_odd_file_names_work(name, image, monkeypatch):
    image.rename(image.with_name(name))
    monkeypatch.chdir(image.parent)
    assert wispsub.main(['--scale', '0.6', '--wisp_dir', '../wisps', '--output_dir', '.', '--', name]) == 0
    assert sorted(os.listdir('.')) == sorted([name, name.replace('_rate', '_rate_prewisp')])


# --- the command line ---------------------------------------------------------------------------------

@pytest.mark.parametrize(('script', 'options'), [
    *((wispsub, ['--scale', value]) for value in ('nan', 'inf', '-inf', '-0.1', '10.1', 'one', '')),
    *((remstriping, ['--thresh', value]) for value in ('nan', 'inf', '-0.1', '1.1', 'half')),
    (wispsub, []), (wispsub, ['--scale', '1', '--fit_scaling']), (wispsub, ['--fit_scaling', '--method', 'best']),
    (remstriping, ['--method', 'best']), (snowball_wrapper, ['--maxcores', '3'])])
def test_misuse_is_a_usage_error(script, options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        script.main(['x_rate.fits', *options])
    assert stop.value.code == 2 and 'usage:' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_one_bad_file_does_not_stop_the_others(capsys):
    done = []

    def work(name):
        done.append(name)
        if name in errors:
            raise errors[name]

    errors = {'b': ExposureError('is empty'), 'c': OSError(28, 'No space left on device'), 'd': SystemExit(0),
              'e': MemoryError(), 'f': RuntimeError('two\nlines')}
    assert nircam_io.run_each('abcdefg', work) == 1
    err = capsys.readouterr().err
    assert done == list('abcdefg') and 'Traceback' not in err
    assert 'b: is empty' in err and 'No space left' in err and '5 of 7 files failed: b c d e f' in err
    assert nircam_io.run_each('ag', work) == 0


def test_interrupting_stops_all_with_130(capsys):
    done = []

    def work(name):
        done.append(name)
        raise KeyboardInterrupt
    assert nircam_io.run_each('ab', work) == 130 and done == ['a']
    assert 'a: interrupted' in capsys.readouterr().err


def test_the_pipeline_is_quiet_and_the_log_comes_back(capsys):
    disabled = logging.root.manager.disable
    with nircam_io.quiet_pipeline() as said:
        logging.getLogger('stpipe').warning('heard')
    assert 'heard' in said.getvalue() and capsys.readouterr().err == ''
    assert logging.root.manager.disable == disabled


def test_flags_of_the_flat_are_left_out_and_not_written(field, scratch, monkeypatch):
    """A pixel that only the flat marks as bad takes no part, under any version of the pipeline, and keeps its DQ."""
    import simulate
    cache = scratch / 'crds'
    shutil.copytree(field / 'crds_cache', cache)
    flat, = cache.rglob('*flat*.fits')
    with fits.open(flat, mode='update') as hdul:
        hdul['DQ'].data[100:110, 100:110] = 1
    for key, value in simulate.crds_environment(cache).items():
        monkeypatch.setenv(key, value)
    path = shutil.copy(next((field / 'calibrated').glob('*_rate.fits')), scratch)
    script = """if True:
        import sys, nircam_io
        from pathlib import Path
        path = Path(sys.argv[1])
        with nircam_io.correcting(path, path.parent, 'Wisps: subtracted', False) as image:
            image.flat_field()
            print([bool((dq[100:110, 100:110] & 1).all()) for dq in (image.flags, image.dq)])"""
    done = subprocess.run([sys.executable, '-c', script, path], cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.stdout.split('\n')[0] == '[True, False]', done.stderr
