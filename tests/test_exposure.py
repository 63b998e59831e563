"""What one exposure has to be: anything else is refused in one line, and left as it is."""

import os

from conftest import DATASET, content
from hdus import CARDS, rate_hdus, uncal_hdus
from stage1.exposure import AMPLIFIERS, ExposureError, amplifiers, find_input, open_exposure, reading_directions

import numpy as np
import pytest
from astropy.io import fits


def test_find_input_takes_an_existing_path_before_the_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / 'a b é.fits').write_text('x')
    assert find_input('a b é.fits', 'in').parent.name == 'in'
    (tmp_path / 'a b é.fits').write_text('x')
    assert str(find_input('a b é.fits', 'in')) == 'a b é.fits'


def test_find_input_says_what_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'broken').symlink_to('nowhere')
    for name, message in {'pipe': 'not a regular file', '.': 'directory', 'broken': 'no such', 'no': 'no such'}.items():
        with pytest.raises(ExposureError, match=message):
            find_input(name, tmp_path)


def made(hdus, *shape, change=None, **cards):
    """Writer of a file with the extensions `hdus(*shape, **cards)`, after `change(hdul)`, which may return others."""
    def write(path):
        hdul = hdus(*shape, **cards)
        (change and change(hdul) or hdul).writeto(path)
    return write


def without(name):
    return made(rate_hdus, change=lambda hdul: hdul.pop([hdu.name for hdu in hdul].index(name)) and None)


def with_data(name, array, hdus=rate_hdus):
    """A file with another array in one extension: a constant, or a function of the old array."""
    def change(hdul):
        old = hdul[name].data
        hdul[name].data = array(old) if callable(array) else np.full_like(old, array)
    return made(hdus, change=change)


def cut(length):
    """A rate image with its last bytes missing (or `length` zeros more)."""
    def write(path):
        rate_hdus().writeto(path)
        os.truncate(path, path.stat().st_size + length)
    return write


def card_in_place(keyword, text):
    """A small rate image whose first card of that name in the extensions is overwritten."""
    def write(path):
        rate_hdus((8, 8)).writeto(path)
        place = path.read_bytes().index(keyword.ljust(8).encode() + b'=', 2880)
        with open(path, 'r+b') as file:
            file.seek(place)
            file.write(f'{keyword:8}= {text:>20}'.ljust(80).encode())
    return write


def table(hdul):
    """A table with rows of different lengths in the place of SCI."""
    column = fits.Column('a', 'PJ', array=np.array([[1], [2, 3]], object))
    return fits.HDUList([hdul[0], fits.BinTableHDU.from_columns([column], name='SCI')])


BAD_RATES = {
    'empty': (lambda path: path.touch(), 'empty'),
    'text': (lambda path: path.write_text('not an image\n' * 1000), 'not a FITS file'),
    'compressed': (lambda path: os.system(f'echo SIMPLE | gzip > {path}'), 'not a FITS file'),
    'only a start': (lambda path: path.write_bytes(b'SIMPLE  ='), 'FITS|damaged|SCI|truncated'),
    'primary only': (lambda path: fits.PrimaryHDU(header=fits.Header(CARDS)).writeto(path), 'no SCI'),
    'no SCI': (without('SCI'), 'no SCI'), 'no DQ': (without('DQ'), 'no DQ'), 'no ERR': (without('ERR'), 'no ERR'),
    'tail cut': (cut(-1000), 'truncated'), 'half': (cut(-42_000_000), 'truncated'),
    'tail added': (cut(2880), 'damaged'), 'another instrument': (made(rate_hdus, (8, 8), INSTRUME='NIRISS'), 'NIRISS'),
    'no instrument': (made(rate_hdus, (8, 8), INSTRUME=''), 'INSTRUME'),
    'subarray': (made(rate_hdus, (64, 64), SUBARRAY='SUB160P', SUBSIZE1=160, SUBSIZE2=64),
                 'SCI is 64 x 64 pixels, but SUBARRAY SUB160P is 160 x 64'),
    'small': (made(rate_hdus, (64, 64)), 'SCI is 64 x 64'),
    'grism': (made(rate_hdus, (8, 8), EXP_TYPE='NRC_WFSS', PUPIL='GRISMR'), 'GRISMR.*supported'),
    'grism pupil': (made(rate_hdus, (8, 8), PUPIL='GRISMC'), 'GRISMC.*supported'),
    'coronagraphic': (made(rate_hdus, (8, 8), EXP_TYPE='NRC_CORON', PUPIL='MASKRND'), 'MASKRND.*supported'),
    'time series': (made(rate_hdus, (8, 8), EXP_TYPE='NRC_TSIMAGE'), 'NRC_TSIMAGE.*supported'),
    'weak lens': (made(rate_hdus, (8, 8), FILTER='WLP4'), 'FILTER WLP4.*supported'),
    'guider': (made(rate_hdus, (8, 8), DETECTOR='GUIDER1'), 'GUIDER1'),
    'no number': (made(rate_hdus, (8, 8), NINTS='two'), "is damaged: NINTS in its header is 'two'"),
    'no place': (made(rate_hdus, (8, 8), SUBARRAY='SUB64P', SUBSTRT1='abc'), 'is damaged: SUBSTRT1 in its'),
    'outside': (made(rate_hdus, (8, 8), SUBARRAY='SUB64P', SUBSTRT1=2048), 'not inside the detector'),
    'uncal': (made(uncal_hdus, (1, 2, 8, 8)), 'is an uncal product.*not a rate'),
    'rateints': (made(rate_hdus, (2, 8, 8)), 'is a rateints product.*not a rate'),
    'cal': (made(rate_hdus, (8, 8), S_PHOTOM='COMPLETE'), 'is a cal product.*not a rate'),
    'NaN': (with_data('SCI', np.nan), 'NaN everywhere'), 'masked': (with_data('DQ', 1), 'flagged'),
    'masked by other flags': (with_data('DQ', 4), 'flagged'), 'constant': (with_data('SCI', 0.25), '0.25 everywhere'),
    'integers': (with_data('SCI', lambda sci: (1000 * sci).astype(np.int32)), 'int32'),
    'float flags': (with_data('DQ', lambda dq: dq.astype(np.float32)), 'float32'),
    'another shape': (with_data('ERR', lambda err: err[:100]), 'shapes of ERR and SCI differ'),
    'SCI is a table': (made(rate_hdus, (8, 8), change=table), 'SCI extension is not an image'),
    'huge': (card_in_place('NAXIS1', '1000000000'), 'truncated'),
    'hugest': (card_in_place('NAXIS1', '99999999999999999999'), 'truncated|FITS|damaged'),
    'negative': (card_in_place('NAXIS1', '-2048'), 'damaged|FITS|truncated'),
    'BITPIX': (card_in_place('BITPIX', '7'), 'is not an image|8 x 8')}


BAD_UNCALS = {'rate': (made(rate_hdus, (8, 8)), 'is a rate product.*not an uncal'),
    'ramp': (made(uncal_hdus, (1, 2, 8, 8), change=lambda hdul: hdul.append(fits.ImageHDU(name='GROUPDQ'))),
             'is a ramp product.*not an uncal'),
    'subarray': (made(uncal_hdus, (1, 2, 64, 64), SUBARRAY='SUB64P', SUBSIZE1=64, SUBSIZE2=65), 'SUB64P is 64 x 65'),
    'small': (made(uncal_hdus, (1, 2, 64, 64)), '64 x 64'),
    'constant': (with_data('SCI', 0, uncal_hdus), '0 everywhere'),
    'no group': (made(uncal_hdus, (1, 0, 2048, 2048)), '0 groups')}
BAD = {'rate': BAD_RATES, 'uncal': BAD_UNCALS}


@pytest.mark.parametrize(('kind', 'case'), [(kind, case) for kind, cases in BAD.items() for case in cases])
def test_a_bad_exposure_is_refused_in_one_line(kind, case, scratch):
    write, message = BAD[kind][case]
    path = scratch / f'{DATASET}_{kind}.fits'
    write(path)
    before = content(scratch)
    with pytest.raises(ExposureError, match=message) as told:
        open_exposure(path, kind).close()
    assert '\n' not in str(told.value) and content(scratch) == before


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    made(rate_hdus)(tmp_path / 'x_rate.fits')
    monkeypatch.setattr('stage1.exposure.check_pixels', lambda _: bytearray(2**62))
    with pytest.raises(MemoryError):
        open_exposure(tmp_path / 'x_rate.fits', 'rate')


def test_how_it_was_read_out():
    assert amplifiers({'NOUTPUTS': '4'}, np.zeros((2, 2048), np.uint32)) is AMPLIFIERS
    for key, value in ('FASTAXIS', 'left'), ('FASTAXIS', 2), ('SLOWAXIS', 1):
        with pytest.raises(ExposureError, match=f'is damaged: {key}'):
            reading_directions({key: value}, 4)
