"""What could end up in a paper is said: the order of steps, what was asked, what lies beside the image, the log."""

import re
import shutil
import subprocess
import sys

import remstriping
import simulation
import snowball_wrapper
import wispsub
from conftest import DATASET, RATE, ROOT, UNCAL, content, history, run_script, stripes, wisps
from stage1.exposure import UNUSABLE

import numpy as np
import pytest
from astropy.io import fits


def beside(image, ending):
    return image.with_name(f'{DATASET}{ending}')


def test_wisps_after_stripes_are_refused_in_one_line(image, capsys):
    assert stripes() == 0
    before = content(image.parent)
    capsys.readouterr()
    assert wisps('--scale', 0.6) == 1
    line, = capsys.readouterr().err.splitlines()
    for words in 'remstriping.py was run before wispsub.py', '--redo', 'run remstriping.py again':
        assert words in line
    assert content(image.parent) == before
    beside(image, '_rate_pre1f.fits').unlink()                  # the image before, which --redo wants
    before = content(image.parent)
    assert wisps('--scale', 0.6, '--redo') == 1 and content(image.parent) == before
    assert 'remstriping.py was run before wispsub.py' in capsys.readouterr().err


@pytest.mark.parametrize(('first', 'then', 'words'), [
    ((wisps, '--scale', 0.63), (wisps, '--scale', 0.5), 'scale 0.63, not 0.5'),
    ((wisps, '--scale', 0.63), (wisps, '--fit_scaling'), 'a given scale, not one fitted by dr05'),
    ((stripes, '--thresh', 0.7), (stripes,), 'threshold 0.7, not 0.8'),
    ((stripes,), (stripes, '--method', 'adaptive'), 'method dr05, not adaptive')])
def test_another_setting_than_the_one_on_record_is_a_warning(first, then, words, image, capsys):
    call, *options = first
    assert call(*options) == 0
    capsys.readouterr()
    assert call(*options) == 0
    assert 'WARNING' not in capsys.readouterr().err
    call, *options = then
    before = content(image.parent)
    assert call(*options) == 0 and content(image.parent) == before
    line, = capsys.readouterr().err.splitlines()
    assert 'WARNING' in line and words in line and '--redo' in line


def test_an_option_of_another_method_is_a_warning(image, capsys, monkeypatch):
    fits.setval(image, 'S_CLNFNS', value='COMPLETE')                    # what the pipeline did is said as well
    assert stripes('--no-within_rows') == 0 and 'does nothing here' in capsys.readouterr().err
    assert 'removed 1/f noise already' in fits.getval(image, 'STRPWARN')
    assert stripes('--method', 'adaptive', '--thresh', 0.7, '--redo') == 0
    assert '--thresh is for --method dr05' in capsys.readouterr().err
    monkeypatch.setattr(remstriping, 'MASKTHRESH', '0.8')               # a setting, as text
    assert stripes('--method', 'adaptive', '--redo') == 0 and '--thresh' not in capsys.readouterr().err


def test_the_scale_of_a_product_of_dr05_is_read_from_its_history(image, capsys):
    fits.setval(image, 'HISTORY', value=f'{wispsub.ENTRY} wisps/wisps_2022_08_26/wisps_nrca3_F200W.fits, scale=0.47; '
                                        'wispsub.py 2022-12-01 10:00:00')
    assert wisps('--scale', 0.5) == 0
    assert 'scale 0.47, not 0.5' in capsys.readouterr().err


def test_side_products_say_which_run_made_them_and_go_with_it(image):
    assert wisps('--fit_scaling') == stripes('--save_patterns') == 0
    done = history(image)
    for ending, entry in (('_segm_cold.fits', wispsub.ENTRY), ('_rate_horiz.fits', remstriping.ENTRY),
                          ('_rate_vert.fits', remstriping.ENTRY), ('_rate_1fmask.fits', remstriping.ENTRY)):
        told = history(beside(image, ending), -1)
        assert told.startswith(entry) and 'settings: method=dr05' in told and told.rstrip() in done
    assert beside(image, '_wisp.pdf').exists() and stripes('--redo') == 0
    assert not beside(image, '_rate_horiz.fits').exists() and not beside(image, '_rate_vert.fits').exists()
    assert stripes('--redo', '--save_patterns') == wisps('--scale', 0.5, '--redo') == 0
    for ending in '_segm_cold.fits', '_wisp.pdf', '_rate_horiz.fits', '_rate_vert.fits':
        assert not beside(image, ending).exists()


@pytest.mark.parametrize('method', ['dr05', 'adaptive'])
def test_a_supplied_mask_is_named_and_counted(method, image, capsys):
    scene = simulation.rate_scene(subarray='SUB160')
    simulation.write_rate(scene, image)
    mask = np.zeros((160, 160), np.uint8)
    mask[:, :55] = 1
    fits.writeto(beside(image, '_rate_1fmask.fits'), mask)
    assert stripes('--method', method) == 0
    assert 'was supplied or edited' in capsys.readouterr().err
    assert 'mask=supplied or edited, 0.3438 masked, checksum ' in history(image)
    assert fits.getval(image, 'STRPMASK') >= np.mean(mask * ((scene.dq & UNUSABLE) == 0)) - 1e-6
    assert ('thresh=' in history(image)) == (method == 'dr05')


def test_verbose_shows_what_the_pipeline_logs(place, quick, capsys):  # noqa: ARG001
    assert stripes('--verbose') == 0 and 'Step FlatFieldStep done' in capsys.readouterr().err


def test_redo_of_the_rate_image_warns_of_later_steps_when_it_is_done(place, monkeypatch, capsys):
    shutil.copytree(place / 'calibrated', place / 'reduced')
    fits.setval(place / 'reduced' / RATE, 'HISTORY', value=remstriping.ENTRY)

    def fail(*_):
        raise OSError('no')
    monkeypatch.setattr(snowball_wrapper, 'run_detector1', fail)
    assert snowball_wrapper.main([UNCAL, '--output_dir', 'reduced', '--redo']) == 1
    assert 'remstriping.py' not in capsys.readouterr().err


def test_an_input_from_elsewhere_is_told_where_its_products_go(image, capsys):
    (image.parents[1] / 'elsewhere').mkdir()
    shutil.move(image, image.parents[1] / 'elsewhere')
    assert wispsub.main([f'elsewhere/{RATE}', '--wisp_dir', 'wisps', '--scale', '0.6']) == 0
    first, *_, last = capsys.readouterr().err.splitlines()
    assert f'elsewhere/{RATE}: products go to calibrated' in first and f'calibrated/{RATE}: written' in last
    assert remstriping.main([f'elsewhere/{RATE}']) == 1
    assert f'give calibrated/{RATE} instead' in capsys.readouterr().err


@pytest.mark.usefixtures('place')
def test_a_product_of_the_wrong_step_is_told_the_right_one(capsys):
    assert remstriping.main([f'uncals/{UNCAL}']) == wispsub.main([f'uncals/{UNCAL}', '--scale', '1']) == 1
    assert capsys.readouterr().err.count('run snowball_wrapper.py on it') == 2
    assert snowball_wrapper.main([f'calibrated/{RATE}']) == 1
    assert 'give the raw exposure' in capsys.readouterr().err


COMMANDS = ['snowball_wrapper.py', 'wispsub.py', 'remstriping.py', 'batch_scripts/make_batch.py',
            'batch_scripts/run_batch.py', 'batch_scripts/finish.py']


@pytest.mark.parametrize('script', COMMANDS)
def test_without_an_environment_one_line_says_so(script):
    done = subprocess.run([sys.executable, '-S', '-E', ROOT / script, 'x'], text=True, capture_output=True, check=False)
    assert done.returncode == 1 and 'activate the environment' in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize('script', ['snowball_wrapper.py', 'batch_scripts/review.py'])
def test_help_is_quick(script):
    done = subprocess.run([sys.executable, '-X', 'importtime', ROOT / script, '--help'], text=True, capture_output=True,
                          check=True)
    assert done.stdout.startswith('usage:')
    assert not re.search(r'\b(scipy|astropy|jwst|crds|numba|PIL|jinja2|tqdm)\b', done.stderr)


LACKS = [('CRDS_CONTEXT', 'latest best'), ('CRDS_PATH', 'nowhere'), ('CRDS_CONTEXT', 'jwst_9999.pmap'),
         ('CRDS_PATH', '/proc/none')]
@pytest.mark.parametrize(('script', 'key', 'value'), [
    pytest.param(script, *lacks, marks=[pytest.mark.faults] * (i != k)) for k, lacks in enumerate(LACKS)
    for i, script in enumerate(('snowball_wrapper.py', 'wispsub.py', 'remstriping.py'))])
def test_without_references_one_line_says_so_and_nothing_happens(script, key, value, place):
    """Commands, because crds keeps the mappings of a process."""
    before = content(place)
    name = UNCAL if script == 'snowball_wrapper.py' else RATE
    options = ['--scale', '0.6', '--wisp_dir', 'wisps'] if script == 'wispsub.py' else ['--output_dir', 'new']
    done = run_script(script, name, *options, cwd=place, **{key: value})
    line, = (line for line in done.stderr.splitlines() if 'ERROR' in line)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert name in line and 'NRCA3 F200W CLEAR' in line and f'{key}={value}' in line
    assert {path: data for path, data in content(place).items() if path.parts[0] != 'nowhere'} == before


def test_adaptive_without_a_wisp_says_so_and_keeps_no_copy(image, capsys):
    simulation.write_rate(simulation.rate_scene(crowd=0.2, wisp=0.), image)
    before = fits.getdata(image, 'SCI')
    assert wisps('--fit_scaling', '--method', 'adaptive') == 0
    said = capsys.readouterr().err
    assert 'no wisp above 3 sigma' in said and 'nothing subtracted' in said and 'nan' not in said
    assert not beside(image, '_rate_prewisp.fits').exists()
    assert wisps('--fit_scaling', '--method', 'adaptive') == 0 and 'starts again' not in capsys.readouterr().err
    assert np.array_equal(fits.getdata(image, 'SCI'), before, equal_nan=True) and wispsub.ENTRY in history(image)
    for scale in 0.7, 0.5:
        assert wisps('--scale', scale, '--redo') == 0 and fits.getval(image, 'WISPSCAL') == scale
    assert 'WISPNULL' not in fits.getheader(image)          # of the fit
    assert np.array_equal(fits.getdata(beside(image, '_rate_prewisp.fits'), 'SCI'), before, equal_nan=True)
