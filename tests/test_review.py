"""The page of `batch_scripts/review.py`: what is on it, and how it works in a real browser."""
import base64
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import make_batch
import review
import review_pictures
from conftest import ROOT
from review_page import Keys, Page, start_chromium, write_products
from stage1.exposure import ExposureError

import numpy as np
import pytest
from astropy.io import fits

HOSTILE_NAME = "jw5 it's; rm -rf <b>$HOME`id`"
DASH_NAME = '-jw6_nrca1'
BREAK_NAME = 'jw7\nrm_me'
HOSTILE = "</script><img src=x onerror=window.hacked=1>'\"{{7*7}}"


# -- exposures

def options_of(*arguments):
    """The options of a command line."""
    return review.build_parser().parse_args([*map(str, arguments)])


def look_at(directory, dataset):
    """What the page shows of an exposure, without anything kept."""
    store = directory / 'store'
    store.mkdir(exist_ok=True)
    return review.look_at(dataset, 'key', store, options_of(directory))


@pytest.fixture(scope='module')
def calibrated(tmp_path_factory):
    """A directory `calibrated` with exposures of every kind."""
    directory = tmp_path_factory.mktemp('night') / 'calibrated'
    directory.mkdir()
    write_products(directory, 'jw1_nrca3', wisp=0.61, left=0.1)
    write_products(directory, 'jw2_nrcb4', wisp=1.19, detector='NRCB4', filter_='F150W', WISPMETH='fixed',
                   WISPWARN='best scale 1.19 is at the end of the trial range')
    write_products(directory, 'jw3_nrcalong', detector='NRCALONG', filter_='F444W', left=0.6)
    write_products(directory, 'jw4_nrca1', size=288, detector='NRCA1', filter_='F115W', STRPMETH='adaptive')
    write_products(directory, HOSTILE_NAME, wisp=0.3, STRPWARN=HOSTILE, **{'DATE-OBS': HOSTILE})
    write_products(directory, DASH_NAME, detector='NRCA1', filter_='F115W', left=0.3)
    write_products(directory, BREAK_NAME, detector='NRCA1', filter_='F115W', left=0.4)
    write_products(directory, 'jw8_nrca3', striped=False)
    (directory / 'jw1_nrca3_snowballs.ecsv').write_text(
        '# %ECSV 1.0\n# ---\nsnowball integration group x y core_radius grown_radius pixels\n'
        '1 0 2 40.2 50.9 5.0 20.0 300\n1 0 3 41.0 51.0 7.0 30.0 600\n2 0 3 200.0 10.0 5.0 12.0 200\n')
    whole = (directory / 'jw1_nrca3_rate.fits').read_bytes()
    (directory / 'jw9_nrca3_rate.fits').write_bytes(whole[:len(whole) // 2])
    (directory.parent / 'wisps').mkdir()
    (directory.parent / 'wisps' / 'wisps_nrca1_F115W.fits').touch()
    return directory


@pytest.fixture(scope='module')
def page(calibrated):
    """The page of those exposures."""
    output = calibrated.parent / 'review.html'
    assert review.main([str(calibrated), '-o', str(output), '-j', '2', '--wisp_dir',
                        str(calibrated.parent / 'wisps')]) == 0
    return output


def picture(text):
    """The pixels, 0 ... 1, row 0 at the bottom, of a base64 picture."""
    from PIL import Image
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.asarray(image.convert('L'))[::-1] / 255


# -- what is known of an exposure

def test_every_method_is_measured_alike_and_harm_stands_on_top(tmp_path):
    kinds = {'clean': {'STRPMETH': 'adaptive', 'STRPROW1': 0.5}, 'same': {'STRPMETH': 'dr05'},  # headers do not count
             'half': {'left': 0.5}, 'harm': {'left': -1.5}, 'raw': {'striped': False}}
    for name, kind in kinds.items():
        write_products(tmp_path, name, **kind)
    seen = {name: look_at(tmp_path, name) for name in kinds}
    scores = {name: exposure['score'] for name, exposure in seen.items()}
    assert scores['clean'] == scores['same'] < scores['half'] < scores['raw'] < scores['harm']
    assert seen['half']['row0'] == pytest.approx(4, rel=0.15) == seen['raw']['row']
    assert seen['half']['row'] == pytest.approx(np.hypot(2, 0.6), rel=0.15) and seen['raw']['row0'] is None
    assert not seen['half']['warnings'] and 'worse than before: amp-rows' in seen['harm']['warnings'][0]


def test_header_values_may_be_anything():
    header = fits.Header({'WISPSCAL': 'many', 'STRPTHR': True, 'STRPMASK': 0.5, 'DETECTOR': 7})
    exposure = review.describe('x', 'key', header)
    assert exposure['scale'] is None and exposure['threshold'] is None and exposure['detector'] == '7'
    assert exposure['masked'] == 50 and exposure['score'] is None
    header.add_history('Wisps: subtracted WISP_NRCA3_F200W_CLEAR_of_a_longer_name.fits, scale=0.63; '
                       'wispsub.py 2022-10-01 10:00:00')                # all that DR0.5 said
    assert review.describe('x', 'key', header)['scale'] == 0.63


# -- pictures

@pytest.mark.parametrize('shape, factor', [((12, 12), 3), ((13, 11), 4), ((5, 7), 1), ((3, 3), 8)])
def test_block_mean_is_the_mean_of_each_block(shape, factor):
    rng = np.random.default_rng(3)
    image = rng.standard_normal(shape).astype(np.float32)
    image[rng.random(shape) < 0.2] = np.nan
    ignore = rng.random(shape) < 0.2
    image[:1, :1], ignore[:1, :1] = 1, False
    before = image.copy()
    got = review_pictures.block_mean(image, ignore, factor)
    for j, i in np.ndindex(got.shape):
        block = np.s_[j * factor:(j + 1) * factor, i * factor:(i + 1) * factor]
        values = image[block][~ignore[block] & np.isfinite(image[block])]
        assert np.isnan(got[j, i]) if not values.size else np.isclose(got[j, i], values.mean(), atol=1e-6)
    np.testing.assert_array_equal(image, before)


def test_one_stretch_for_all_four(tmp_path):
    truth = write_products(tmp_path, 'jw1', wisp=0.8)
    exposure = look_at(tmp_path, 'jw1')
    before, wisps, striping, removed, _ = (picture(text) for text in exposure['pictures']['views'])
    quiet = np.s_[60:100, 200:250]
    sky = np.nanmedian(truth['sky'])
    full = [base64.b64encode((tmp_path / 'store' / name).read_bytes()) for name in exposure['full']]
    for shown, whole, value in ((before, full[0], sum(truth.values()) - np.nanmedian(sum(truth.values()))),
            (wisps, full[1], truth['sky'] + truth['stripes'] - sky),
            (striping, full[2], truth['sky'] - sky), (removed, full[3], truth['wisp'] + truth['stripes'])):
        expected = review_pictures.stretch(value[quiet], *exposure['limits']).mean()
        assert shown[quiet].mean() == pytest.approx(expected, abs=0.04)
        assert picture(whole)[quiet].mean() == pytest.approx(expected, abs=0.04)


def test_what_the_panels_are(tmp_path):
    kinds = {'both': {'wisp': 0.5}, 'striping': {}, 'wisps': {'wisp': 0.5, 'striped': False},
             'none': {'striped': False}, 'lost': {'wisp': 0.5}, 'no_wisp': {'wisp': 0.},
             'done': {'wisp': 0.5}}                     # finish.py took the copies
    for name, kind in kinds.items():
        write_products(tmp_path, name, **kind)
    for name in 'lost_rate_prewisp', 'no_wisp_rate_prewisp', 'done_rate_prewisp', 'done_rate_pre1f':
        (tmp_path / f'{name}.fits').unlink()
    seen = {name: look_at(tmp_path, name) for name in kinds}
    shown = {name: [bool(text) for text in exposure['pictures']['views'][:4]] for name, exposure in seen.items()}
    assert shown == {'both': [True] * 4, 'striping': [True, False, True, True], 'wisps': [True, True, False, True],
                     'none': [True, False, False, False], 'lost': [True] * 4, 'no_wisp': [True] * 4,
                     'done': [False, False, True, False]}
    assert not seen['done']['notes'] and seen['done']['score'] and 'missing' in seen['done']['lost']['pre1f']
    review.say_what_can_be_redone(seen['no_wisp'], None)
    assert seen['no_wisp']['notes'] == ['wisp not removed'] and not seen['no_wisp']['redo_wisps']   # nor a copy kept
    review.say_what_can_be_redone(seen['lost'], None)
    assert 'prewisp' in seen['lost']['redo_wisps'] and not seen['lost']['redo_striping']
    assert any('prewisp' in note for note in seen['lost']['notes'])


def put(path, sci):
    """Replace the SCI array of a file."""
    fits.update(path, sci, fits.Header({'EXTNAME': 'SCI'}), 'SCI')


@pytest.mark.parametrize('spoil, words', [
    (lambda path: path.write_bytes(path.read_bytes()[:9000]), 'truncated'),
    (lambda path: path.write_bytes(b''), 'empty'), (lambda path: path.write_text('hello'), 'not a FITS'),
    (lambda path: (path.unlink(), path.mkdir()), 'not a file'), (lambda path: path.unlink(), 'missing'),
    (lambda path: fits.PrimaryHDU().writeto(path, overwrite=True), 'not a NIRCam exposure'),
    (lambda path: put(path, np.zeros((2, 9, 9))), 'is a rateints product'),
    (lambda path: put(path, np.full((256, 256), np.nan)), 'NaN everywhere'),
])
def test_a_file_that_cannot_be_shown_says_why(tmp_path, spoil, words):
    write_products(tmp_path, 'jw1')
    spoil(tmp_path / 'jw1_rate.fits')
    assert words in look_at(tmp_path, 'jw1')['broken']
    assert review.find_datasets(tmp_path, '*_rate.fits') == ['jw1']


def test_spoiled_files_beside_it_are_noted_or_left_out(tmp_path):
    truth = write_products(tmp_path, 'jw1', wisp=0.5)
    truth['sky'][100] = np.inf
    put(tmp_path / 'jw1_rate_prewisp.fits', truth['sky'])
    for ending in ('_rate_pre1f.fits', '_rate_1fmask.fits', '_snowballs.ecsv'):
        (tmp_path / f'jw1{ending}').write_bytes(b'SIMPLE')
    fits.update(tmp_path / 'jw1_rate.fits', np.zeros((256, 256), np.int32), fits.Header({'EXTNAME': 'DQ'}), 'DQ')
    exposure = look_at(tmp_path, 'jw1')
    assert not exposure['broken'] and any('_rate_pre1f.fits' in note for note in exposure['notes'])
    json.dumps(exposure, allow_nan=False)               # a browser takes no NaN


# -- the command

def test_only_what_changed_is_looked_at_again(tmp_path, monkeypatch):
    calibrated, output = tmp_path / 'calibrated', tmp_path / 'a page.html'
    calibrated.mkdir()
    for name in ('jw1', 'jw2', 'jw3'):
        write_products(calibrated, name, size=160)

    def looked_at():
        said = []
        monkeypatch.setattr(review.log, 'info', lambda *words: said.append(words))
        review.make_page(options_of(calibrated, '-o', output, '-j1', '--wisp_dir', tmp_path / 'wisps'))
        return said[0][2], output.read_text('utf-8')

    number, first = looked_at()
    assert number == 3 and looked_at() == (0, first)
    files = tmp_path / 'a page_files'
    before = set(files.iterdir())
    (calibrated / 'jw2_rate.fits').touch()
    next(path for path in files.glob('*.json') if '"jw3"' in path.read_text()).write_text('{"cut')
    assert looked_at()[0] == 2
    assert len(before - set(files.iterdir())) == 4, 'what is known of the old jw2, and its pictures, are gone'
    shutil.rmtree(files)
    assert looked_at()[0] == 3
    (tmp_path / 'wisps').mkdir()                        # what is in it decides what is said of wisps
    assert looked_at()[0] == 3


def test_errors(tmp_path, capsys, monkeypatch):
    assert review.main([str(tmp_path), '-o', str(tmp_path / 'x.html')]) == 1
    assert review.main([str(tmp_path), '-o', str(tmp_path)]) == 1
    write_products(tmp_path, 'jw1', size=32)
    (tmp_path / 'file').touch()
    assert review.main([str(tmp_path), '-o', str(tmp_path / 'file' / 'x.html')]) == 1
    assert review.main([str(tmp_path), '-o', str(tmp_path / 'jw1_rate.fits')]) == 1
    for arguments in [tmp_path, '-j', '0'], [tmp_path / 'nowhere'], [tmp_path, '--match', '']:
        with pytest.raises(SystemExit, match='2'):
            review.main(list(map(str, arguments)))
    said = capsys.readouterr().err
    for words in ('nowhere', 'holds no', 'Not a directory', 'give the name of a page', 'is not the name of a page',
                  "'' is not the name of a file"):
        assert words in said
    (tmp_path / 'x.html').write_text('old')
    monkeypatch.setattr(review, 'written', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        review.make_page(options_of(tmp_path, '-o', tmp_path / 'x.html'))
    assert (tmp_path / 'x.html').read_text() == 'old'
    assert not list(tmp_path.glob('.x.html*'))
    monkeypatch.setattr(review, 'draw', lambda *_: os._exit(9))
    with pytest.raises(ExposureError, match='a process was killed, or memory ran out'):
        review.make_page(options_of(tmp_path, '-o', tmp_path / 'y.html'))


def test_an_interrupt_ends_it_at_once(tmp_path):
    write_products(tmp_path, 'jw')
    for number, path in itertools.product(range(40), list(tmp_path.iterdir())):
        os.link(path, path.with_name(path.name.replace('jw', f'jw{number}')))
    script = [sys.executable, ROOT / 'batch_scripts' / 'review.py', tmp_path, '-o', tmp_path / 'x.html', '-j2']
    with subprocess.Popen(script, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        next(line for line in running.stderr if 'to be looked at' in line)
        time.sleep(0.5)
        for _ in range(2):                              # as from an impatient user's terminal
            os.killpg(running.pid, signal.SIGINT)
            time.sleep(0.1)
        assert running.wait(20) == 130 and 'Traceback' not in running.stderr.read()


def test_the_commands_name_what_the_shell_takes_back():
    place = Path('/data') / "it's; rm -rf $HOME\n`id`"
    redo = shlex.split(review.commands(place, make_batch.TOP / '-wisps').replace('TABLE', 't.csv'))
    assert redo[:3] == ['python', 'batch_scripts/make_batch.py', str(place)] and './-wisps' in redo
    assert make_batch.build_parser().parse_args(['.', *redo[3:redo.index('python', 1)]]).redo


# -- the browser

@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
    """Headless Chromium that downloads to `.downloads`."""
    browser = start_chromium(tmp_path_factory.mktemp('profile'), tmp_path_factory.mktemp('downloads'))
    yield browser
    browser.quit()


@pytest.fixture
def opened(chromium, page):
    """The page, open, as seen for the first time."""
    chromium.get(page.as_uri())
    chromium.execute_script('localStorage.clear()')
    for file in chromium.downloads.iterdir():
        file.unlink()
    chromium.get(page.as_uri())
    yield Page(chromium)
    chromium.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


def test_worst_first_then_sorted_by_any_column(opened):
    names = opened.names()
    assert names[0] == 'jw9_nrca3'                                            # unreadable
    assert set(names[1:4]) == {'jw2_nrcb4', HOSTILE_NAME, 'jw8_nrca3'}        # warnings
    assert names[4:] == ['jw3_nrcalong', BREAK_NAME, DASH_NAME, 'jw1_nrca3', 'jw4_nrca1']      # by score
    opened.find('#head [data-sort=masked]').click()
    assert opened.names()[-1] in ('jw8_nrca3', 'jw9_nrca3')                   # without a value: last
    opened.find('#head [data-sort=row]').click()
    assert opened.names()[:3] == ['jw8_nrca3', *names[4:6]] and opened.names()[-1] == 'jw9_nrca3'
    header = opened.js("$('#head [data-sort=row]').closest('[role=columnheader]').getAttribute('aria-sort')")
    assert header == 'descending'
    opened.find('#direction').click()
    assert opened.names()[-2:] == ['jw8_nrca3', 'jw9_nrca3']
    opened.find('#head [data-sort=name]').click()
    plain = [name for name in opened.names() if re.fullmatch(r'\w+', name) and '\n' not in name]
    assert plain == sorted(plain) and len(plain) == 6
    for option in opened.js("[...$('#sort').options].map(o => o.value)"):
        opened.js('sortBy(arguments[0])', option)
        assert len(opened.names()) == 9


@pytest.mark.parametrize('query, expected, message', [
    ('nrcb4', {'jw2_nrcb4'}, ''),
    ('detector=nrca1', {'jw4_nrca1', DASH_NAME, BREAK_NAME}, ''), ('row>2', {'jw3_nrcalong', 'jw8_nrca3'}, ''),
    ('scale>=1.19', {'jw2_nrcb4'}, ''), ('scale<0.5', {HOSTILE_NAME}, ''), ('method=adaptive', {'jw4_nrca1'}, ''),
    ('trial range', {'jw2_nrcb4'}, ''), ('warn -broken', {'jw2_nrcb4', HOSTILE_NAME, 'jw8_nrca3'}, ''),
    ('broken', {'jw9_nrca3'}, ''), ('filter=F444W', {'jw3_nrcalong'}, ''), ('nothing_like_it', set(), ''),
    ('date>2022-06-20 -date>=2030 nrcb4 -', {'jw2_nrcb4'}, ''), ('date<2022 nrcb4', set(), ''), ('limits=3', set(), ''),
    ('rows>1.5 nrcb4', {'jw2_nrcb4'}, '"rows"'), ('row>many nrcb4', {'jw2_nrcb4'}, '"many" is not a number'), ])
def test_filter(opened, query, expected, message):
    opened.keys('/')
    opened.keys(query)
    said = opened.find('#message').text
    assert set(opened.names()) == expected and (message in said if message else said == '')
    assert opened.find('#nothing').is_displayed() == (not expected)
    assert opened.find('#counts').text.startswith(f'{len(expected)} of 9')
    if not expected:                                    # nothing is hit that nobody sees
        opened.keys(Keys.ENTER, 'a', 'f', 'm', Keys.ENTER)
        assert not opened.find('#viewer').is_displayed() and opened.save() == {}


def test_drop_downs_let_go_of_the_keyboard_after_a_choice(opened):
    opened.js("$('#only-detector').focus()")
    opened.keys('N')                                    # chooses NRCA1, the first with that letter
    assert set(opened.names()) == {'jw4_nrca1', DASH_NAME, BREAK_NAME}
    opened.keys('n', 'n')
    assert opened.current() == opened.names()[2] and opened.js("$('#only-detector').value") == 'detector=NRCA1'
    opened.keys('p', 'm', Keys.ENTER, Keys.ARROW_UP)
    opened.keys(Keys.ESCAPE)
    name = opened.names()[1]
    assert opened.field(name, '[data-field=method]').get_attribute('class') == 'new'
    opened.js("$('#sort').focus()")
    opened.keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ENTER, 'n')
    assert opened.js("$('#sort').value") == 'col' == opened.js('state.view.sort')


def test_the_table_says_what_is_to_be_made_of_each_exposure(opened):
    for dataset, field, text in (
            ('jw1_nrca3', 'scale', '0.63'), ('jw2_nrcb4', 'threshold', '.2'), ('jw3_nrcalong', 'method', 'adaptive'),
            (HOSTILE_NAME, 'scale', 'fit'), (HOSTILE_NAME, 'threshold', '0.15'), (DASH_NAME, 'threshold', '0.5'),
            (BREAK_NAME, 'scale', 'fit'), ('jw4_nrca1', 'method', 'dr05'), ('jw8_nrca3', 'threshold', '0.4')):
        opened.type(dataset, field, text)
    assert opened.save() == {'jw1_nrca3': ('0.63', '0.8', 'dr05', '', ''), 'jw2_nrcb4': ('', '.2', 'dr05', '', ''),
        'jw3_nrcalong': ('', '', 'adaptive', '', ''), HOSTILE_NAME: ('fit', '0.15', 'dr05', '', ''),
        DASH_NAME: ('', '0.5', 'dr05', '', ''), 'jw4_nrca1': ('', '0.8', 'dr05', '', ''),
        BREAK_NAME: ('fit', '', 'adaptive', '', ''),            # a detector that dr05 has no wisps for
        'jw8_nrca3': ('', '0.4', 'dr05', '', '')}
    assert len(make_batch.read_table(opened.table)) == 8
    assert re.fullmatch(r'review_\d{4}-\d\d-\d\d_\d{6}\.csv', opened.table.name)
    shown = opened.find('#saved').text
    assert opened.table.name in shown and 'Downloads' in shown and 'make_batch.py' in shown


def test_a_new_method_refits_a_fitted_scale_but_not_a_given_one(opened):
    for name, method in ('jw1_nrca3', 'adaptive'), ('jw2_nrcb4', 'adaptive'), ('jw8_nrca3', 'dr05'):
        opened.type(name, 'method', method)
    opened.js('exposures.find(e => e.dataset === arguments[0]).wisp_method = "adaptive"', HOSTILE_NAME)
    opened.type(HOSTILE_NAME, 'scale', 'fit')           # whose striping has dr05, and keeps it
    assert opened.save() == {'jw1_nrca3': ('fit', '', 'adaptive', '', ''), 'jw2_nrcb4': ('', '', 'adaptive', '', ''),
                             'jw8_nrca3': ('', '', 'dr05', '', ''), HOSTILE_NAME: ('fit', '0.8', '', '', '')}


def test_what_cannot_be_redone_cannot_be_typed(opened):
    assert not opened.field('jw9_nrca3', '[data-field=threshold]').is_enabled()      # unreadable
    assert not opened.field('jw3_nrcalong', '[data-field=scale]').is_enabled()       # no template
    assert not opened.field('jw4_nrca1', '[data-field=threshold]').is_enabled()      # adaptive
    assert 'no threshold' in opened.field('jw4_nrca1', '[data-field=threshold]').get_attribute('title')
    assert not opened.save() and 'finish.py' in opened.find('#saved').text          # nothing is to be redone


@pytest.mark.parametrize('dataset, field, text', [
    ('jw1_nrca3', 'scale', '11'), ('jw1_nrca3', 'scale', '0.5; rm'), ('jw1_nrca3', 'scale', 'nan'),
    ('jw1_nrca3', 'threshold', '1.2'), ('jw1_nrca3', 'threshold', 'fit'), ('jw1_nrca3', 'threshold', '1e-1'),
    ('jw4_nrca1', 'scale', '0.5')])
def test_a_wrong_value_is_marked_and_left_out(opened, dataset, field, text):
    opened.type(dataset, field, text)
    assert opened.field(dataset, f'[data-field={field}]').get_attribute('aria-invalid') == 'true'
    assert opened.save() == {} and dataset in opened.find('#save-bad').text


def test_the_present_value_is_no_change(opened):
    opened.type('jw1_nrca3', 'scale', '0.610')
    opened.type('jw1_nrca3', 'threshold', '0.80')
    assert opened.find('#save').text == 'Save'
    opened.type('jw1_nrca3', 'threshold', '0.81')
    assert opened.find('#save').text == 'Save (1)'
    opened.field('jw1_nrca3', '.revert').click()
    assert opened.find('#save').text == 'Save'


def test_keyboard(opened):
    names = opened.names()
    opened.keys('n', Keys.ARROW_DOWN, 'k')
    assert opened.current() == names[1]
    opened.keys(Keys.END)
    assert opened.current() == names[-1]
    opened.keys(Keys.HOME, *4 * ['j'])
    assert opened.current() == names[4] == 'jw3_nrcalong'
    opened.keys('f', 't', '0.25' + Keys.ENTER, Keys.ENTER)
    assert opened.find('#viewer').is_displayed() and opened.shown() == [2, 2, 'data']
    opened.keys('2')
    assert opened.js('panel') == 2, 'there is no image after wisps'
    opened.keys('4', ' ')
    assert opened.js('panel') == 2
    opened.keys(' ')
    assert opened.js('panel') == 3
    opened.keys(Keys.ARROW_RIGHT)
    assert opened.find('#viewer-name').text.split() == names[5].split() and opened.js('panel') == 3
    opened.keys(Keys.ARROW_LEFT, 's')
    assert opened.js('document.activeElement.tagName') != 'INPUT', 'no scale can be typed here'
    opened.keys('c', 'satellite, "trail"' + Keys.ENTER, Keys.ESCAPE, '?')
    assert opened.find('#help').is_displayed() and opened.js('document.activeElement.id') == 'help'
    opened.keys(Keys.ESCAPE)
    assert opened.save() == {'jw3_nrcalong': ('', '0.25', 'dr05', 'satellite, "trail"', '')}


def test_accept_and_next_on_one_key(opened):
    names = opened.names()
    opened.keys('a', 'f', 'a', 't', '0.3' + Keys.ENTER, 'a', Keys.ENTER, 'a', 'f')
    assert opened.find('#viewer-name').text == names[4] == 'jw3_nrcalong'
    assert '2 accepted' in opened.js("$('#counts').textContent")
    opened.keys(Keys.ESCAPE)
    rows = opened.save()
    assert names[0] not in rows, 'what cannot be read cannot be accepted'
    assert {name for name, row in rows.items() if row[4]} == {names[1], names[3]}
    assert rows[names[2]][1] == '0.3' and rows['jw3_nrcalong'] == ('', '', '', '1', '')


def test_the_larger_view_in_full_size_with_overlays_and_contrast(opened):
    opened.field('jw1_nrca3', '.thumb[data-panel="1"]').click()
    assert opened.shown() == [1, 1, 'data']
    assert opened.js("$('#viewer-pdf').href").endswith('calibrated/jw1_nrca3_wisp.pdf')
    opened.keys('z')
    assert opened.shown() == [1, 1, 'file'] and opened.js('images[1].naturalWidth') == 256
    opened.keys('n')
    assert opened.js('sheet.style.width') == '288px'
    opened.keys('p', '+', '3')
    assert opened.shown() == [2, 2, 'file'] and 'contrast' in opened.js('images[2].style.filter')
    opened.keys('0', 'z', 'x', 'o')
    assert opened.shown() == [2, 2, 'data'] and opened.js('images[2].style.filter') == ''
    assert opened.js("$('#mask-image').naturalWidth") == 256 and opened.find('#mask-image').is_displayed()
    assert opened.js("$$('#circle-image circle').map(c => c.getAttribute('r'))") == ['30', '12']
    opened.find('#next').click()
    assert opened.current() == 'jw4_nrca1' and not opened.find('#circles').is_enabled()
    assert not opened.find('#viewer-pdf').is_displayed()
    assert opened.js("exposures.filter(e => has('seen', e)).length") == 2


def test_full_size_without_its_files_falls_back(opened, page):
    files, away = page.with_name('review_files'), page.with_name('away')
    files.rename(away)
    opened.field('jw1_nrca3', '.thumb').click()
    opened.keys('z')
    time.sleep(0.3)
    away.rename(files)
    assert opened.shown() == [0, 0, 'data'] and not opened.find('#full').is_enabled()


@pytest.mark.parametrize('width', [390, 1000, 1600])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_fits_the_window_and_the_light(opened, width, scheme):
    opened.browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', {
        'width': width, 'height': 844, 'deviceScaleFactor': 1, 'mobile': width < 500})
    opened.browser.execute_cdp_cmd('Emulation.setEmulatedMedia', {
        'features': [{'name': 'prefers-color-scheme', 'value': scheme}]})
    assert opened.js('document.documentElement.scrollWidth') <= width
    background = re.findall(r'\d+', opened.js('getComputedStyle(document.body).backgroundColor'))
    assert (int(background[0]) > 128) == (scheme == 'light')
    opened.field('jw1_nrca3', '.thumb').click()
    assert opened.js("$('#sheet').offsetWidth") >= min(width, 600)
    assert opened.js("$('#viewer').scrollWidth") <= width


def test_state_survives_a_reload(opened, page):
    opened.type('jw1_nrca3', 'scale', '0.63')
    opened.field('jw2_nrcb4', '.flag').click()
    opened.field('jw2_nrcb4', '.note').send_keys('trail')
    for _ in range(2):                                      # the note comes back with the flag
        opened.field('jw2_nrcb4', '.flag').click()
    opened.field('jw4_nrca1', '.accept').click()
    opened.find('#filter').send_keys('nrc')
    opened.find('#head [data-sort=row]').click()
    before = opened.names()
    opened.browser.get('about:blank')
    opened.browser.get(page.as_uri())
    assert opened.names() == before and opened.find('#filter').get_attribute('value') == 'nrc'
    opened.browser.switch_to.new_window('tab')              # two pages of one directory do not undo each other
    opened.browser.get(page.as_uri())
    opened.field('jw3_nrcalong', '.accept').click()
    for text in '0.3' + Keys.ENTER, Keys.BACKSPACE * 3 + Keys.ENTER:    # it stays as it was accepted
        opened.field('jw3_nrcalong', '[data-field=threshold]').send_keys(text)
    opened.browser.close()
    opened.browser.switch_to.window(opened.browser.window_handles[0])
    assert opened.save() == {'jw1_nrca3': ('0.63', '0.8', 'dr05', '', ''), 'jw2_nrcb4': ('', '', '', 'trail', ''),
                             'jw4_nrca1': ('', '', '', '', '1'), 'jw3_nrcalong': ('', '', '', '', '1')}


def test_what_was_said_of_an_image_is_forgotten_once_it_was_redone(opened, page, tmp_path):
    opened.type('jw1_nrca3', 'scale', '0.63')
    opened.field('jw1_nrca3', '.flag').click()
    opened.field('jw2_nrcb4', '.accept').click()
    opened.type('jw3_nrcalong', 'threshold', '0.3')
    text, again = page.read_text('utf-8'), tmp_path / 'again.html'
    for stamp in opened.js('exposures.filter(e => /jw[12]/.test(e.dataset)).map(e => e.stamp)'):
        text = text.replace(stamp, 'f' * 16)
    again.write_text(text, 'utf-8')
    state = opened.js('JSON.stringify(localStorage)')
    opened.browser.get(again.as_uri())
    opened.js('Object.assign(localStorage, JSON.parse(arguments[0]))', state)
    opened.browser.get(again.as_uri())
    assert opened.save() == {'jw1_nrca3': ('', '', '', '1', ''), 'jw3_nrcalong': ('', '0.3', 'dr05', '', '')}


def test_hostile_header_strings_stay_text(opened):
    assert opened.js('window.hacked') is None
    opened.field(HOSTILE_NAME, '.thumb').click()
    assert HOSTILE in opened.find('#viewer-warnings').text
    assert opened.find('#viewer-name').text == HOSTILE_NAME
    assert HOSTILE in opened.js("$('#viewer-what').textContent")
    opened.keys('z')
    assert opened.shown()[2] == 'file'
    assert opened.js("$$('img').filter(i => i.getAttribute('src') === 'x').length") == 0
    assert opened.js('window.hacked') is None


def test_no_request_leaves_the_page_and_nothing_is_logged(opened, page):
    opened.browser.get_log('browser')
    opened.browser.get_log('performance')
    opened.browser.refresh()
    opened.field('jw1_nrca3', '.thumb').click()
    opened.keys('2', '3', '4')
    assert "default-src 'none'" in page.read_text('utf-8')
    messages = [json.loads(entry['message'])['message'] for entry in opened.browser.get_log('performance')]
    asked = [message['params']['request']['url'] for message in messages
             if message['method'] == 'Network.requestWillBeSent']
    assert asked and all(url.startswith(('file:', 'data:')) for url in asked)
    assert sum(url.startswith('file:') for url in asked) == 1, 'full size is not asked for'
    assert opened.browser.get_log('browser') == []


def test_690_exposures(chromium, tmp_path):
    """As many as CEERS epoch 1, each with as many bytes of pictures as it may have."""
    write_products(tmp_path, 'jw1', wisp=0.6, size=2048)
    one = look_at(tmp_path, 'jw1')
    review.say_what_can_be_redone(one, None)
    size = sum(len(text) for group in one['pictures'].values() for text in group)
    assert size < 1.34 * 1000 * review.EXPOSURE_KB
    one['pictures']['views'][3] = 'A' * ((int(1.333 * 1000 * review.EXPOSURE_KB) - size) // 4 * 4)
    page = tmp_path / 'review.html'
    review.write_page(page, [one | {'dataset': f'jw01345001001_{n:05d}_nrca3'} for n in range(690)],
                      options_of(tmp_path, '-o', page))
    assert page.stat().st_size < 150e6
    shown = 'return $(".row:not([hidden]) .thumb img").complete && $(".row:not([hidden]) .thumb img").naturalWidth'
    loads = []
    while len(loads) < 5 and min(loads, default=9) > 3:         # a busy machine may need more than one try
        start = time.perf_counter()
        chromium.get(page.as_uri())
        while not chromium.execute_script(shown):
            time.sleep(0.01)
        loads.append(time.perf_counter() - start)
    assert min(loads) < 3
