"""A rate image corrected once, with the untouched one kept: stage1/correction.py under the two scripts."""

import os
import shutil
import stat
from pathlib import Path

import remstriping
import run_batch
import simulation
import wispsub
from conftest import DATASET, RATE, content, history, run_script, stripes, wisps
from stage1.correction import RateImage, differences, history_of, old_wisp
from stage1.pipeline import history_lines

import numpy as np
import pytest
from astropy.io import fits

PREWISP, PRE1F, MASK = (f'{DATASET}_rate_{suffix}.fits' for suffix in ('prewisp', 'pre1f', '1fmask'))


def test_the_untouched_input_stays_and_nothing_is_corrected_twice(image, capsys):
    original = image.read_bytes()
    image.chmod(0o640)
    mtime = image.stat().st_mtime_ns
    assert wisps('--scale', 0.6) == 0
    untouched = image.with_name(PREWISP)
    assert untouched.read_bytes() == original and untouched.stat().st_mtime_ns == mtime
    assert stat.S_IMODE(image.stat().st_mode) == stat.S_IMODE(untouched.stat().st_mode) == 0o640
    assert stripes() == 0
    before = content(image.parent)
    assert wisps('--scale', 0.3) == wisps('--fit_scaling') == stripes() == 0
    assert content(image.parent) == before
    assert capsys.readouterr().err.count('left alone') == 3
    assert {*os.listdir(image.parent)} == {RATE, MASK, PRE1F, PREWISP}
    os.truncate(image, 3_000_000)                        # which is no reason to leave it alone
    assert wisps('--scale', 0.6) == 1 and 'is truncated' in capsys.readouterr().err


def test_an_image_given_twice_in_a_call_is_corrected_once(image):
    assert wispsub.main([RATE, str(image), '--wisp_dir', 'wisps', '--scale', '0.6']) == 0
    assert history(image).count(wispsub.ENTRY) == 1


def test_a_symbolic_link_gives_way_and_its_file_stays(image):
    archive = image.parents[1] / 'archive.fits'
    image.rename(archive)
    original = archive.read_bytes()
    image.symlink_to(archive)
    assert wisps('--scale', 0.6) == 0
    untouched = image.with_name(PREWISP)
    assert archive.read_bytes() == untouched.read_bytes() == original
    assert not image.is_symlink() and not untouched.is_symlink() and not untouched.samefile(archive)


def test_runs_that_were_killed_between_copy_and_image_and_at_the_very_end(image):
    os.link(image, image.with_name(PREWISP))
    original = image.read_bytes()
    for _ in range(2):
        (image.parent / f'.{DATASET}.tmp').mkdir()
        (image.parent / f'.{DATASET}.lock').touch()
        assert wisps('--scale', 0.6) == 0                # the second one has nothing to do
        assert image.with_name(PREWISP).read_bytes() == original != image.read_bytes()
        assert {*os.listdir(image.parent)} == {RATE, PREWISP}


def test_another_output_directory_leaves_the_input_alone(image):
    with fits.open(image, mode='update', checksum=True) as hdul:
        hdul[0].header.extend([('TARGNAME', 'a'), ('TARGNAME', 'b')])
    before = content(image.parent)
    assert wisps('--scale', 0.6, '--output_dir', 'new/clean') == 0
    clean = image.parents[1] / 'new' / 'clean'
    assert {*os.listdir(clean)} == {RATE, PREWISP}
    assert 'CHECKSUM' in fits.getheader(image, 'SCI') and 'CHECKSUM' not in fits.getheader(clean / RATE, 'SCI')
    copy = clean / PREWISP
    assert copy.read_bytes() == image.read_bytes() and not copy.samefile(image)
    first = content(clean)
    assert wisps('--scale', 0.3, '--output_dir', 'new/clean') == 0 and content(clean) == first
    copy.unlink()                                        # the input is untouched itself
    assert wisps('--scale', 0.3, '--output_dir', 'new/clean', '--redo') == 0
    assert fits.getval(clean / RATE, 'WISPSCAL') == 0.3 and {*os.listdir(clean)} == {RATE, PREWISP}
    assert content(image.parent) == before


def test_a_corrected_image_in_the_output_directory_is_not_replaced_by_one_without(image, capsys):
    assert wisps('--scale', 0.6, '--output_dir', 'clean') == 0
    clean = image.parents[1] / 'clean'
    before = content(clean)
    assert stripes('--output_dir', 'clean') == 1         # the input has its wisps still
    assert content(clean) == before and 'would replace' in capsys.readouterr().err
    assert stripes('--input_dir', 'clean', '--output_dir', 'clean') == 0


def test_what_was_made_of_another_image_is_neither_done_nor_replaced(image, capsys):
    assert wisps('--scale', 0.6, '--output_dir', 'clean') == 0
    before, made = content(image.parents[1] / 'clean'), fits.getheader('clean/' + RATE)
    line = run_batch.read_line(f'python wispsub.py --scale 0.6 --output_dir clean calibrated/{RATE}', 0)
    assert not line.is_of_another('clean/' + RATE, made)
    fits.setval(image, 'DATE', value='2026-01-01T00:00:00')             # made anew
    assert line.is_of_another('clean/' + RATE, made)
    for options in (), ('--redo',):
        assert wisps('--scale', 0.6, '--output_dir', 'clean', *options) == 1
        assert content(image.parents[1] / 'clean') == before and 'another image' in capsys.readouterr().err


def test_an_input_that_is_replaced_meanwhile_is_not_kept_for_what_was_corrected(image, monkeypatch, capsys):
    monkeypatch.setattr(RateImage, 'flat_field', lambda self: (self.sci, os.utime(self.start) or self.err))
    assert wisps('--scale', 0.6, '--output_dir', 'clean') == 1
    assert f'{image.relative_to(Path.cwd())} was replaced by' in capsys.readouterr().err and not os.listdir('clean')


def test_a_wisp_is_taken_off_again_whatever_was_subtracted(image):
    fits.setval(image, 'DETECTOR', value='NRCA1')                       # which only the adaptive fit corrects
    before, template = fits.getdata(image), np.pad(np.ones((2, 300, 300), np.float32), ((0, 0), *2 * [(100, 1648)]))
    for level, how in (0.02, ['--fit_scaling', '--method', 'adaptive']), (0.005, ['--scale', '0', '--redo']):
        fits.writeto('WISP_NRCA1_F200W_CLEAR.fits', np.float32(level) * template, overwrite=True)
        assert wispsub.main([RATE, '--wisp_dir', '.', '--output_dir', 'clean', *how]) == 0
    np.testing.assert_array_equal(fits.getdata('clean/' + RATE), before)
    assert list(map(fits.getheader('clean/' + RATE).get, ('WISPSCAL', 'WISPMETH', 'WISPWARN'))) == [0, 'fixed', None]
    assert wispsub.main([str(image.rename('x.fits')), '--scale', '1']) == 1     # a name to be refused all the same


def test_a_home_directory_in_a_setting_is_what_it_is_in_a_shell(image, monkeypatch):
    monkeypatch.setenv('HOME', str(image.parents[1]))
    monkeypatch.setenv('NIGHT', '7')
    assert wisps('--scale', 0.6, '--output_dir=~/clean$NIGHT') == 0
    assert (image.parents[1] / 'clean7' / RATE).exists()
    monkeypatch.setattr(remstriping, 'OUTPUTDIR', '~/clean7')
    monkeypatch.setattr(remstriping, 'INPUTDIR', '~/clean7')
    assert stripes() == 0
    assert (image.parents[1] / 'clean7' / PRE1F).exists() and not Path('~').exists()


@pytest.mark.parametrize(('spoil', 'message'), [
    (lambda _, copy: copy.unlink(), f'{PREWISP}, from which --redo starts, is not there'),
    (shutil.copy, f'{PREWISP}, but that one has been corrected itself'),
    (lambda _, copy: os.truncate(copy, 1_000_000), f'{PREWISP} is truncated')], ids=['none', 'corrected', 'damaged'])
def test_redo_wants_an_untouched_copy(spoil, message, image, capsys):
    assert wisps('--scale', 0.6) == 0
    spoil(image, image.with_name(PREWISP))
    before = content(image.parent)
    assert wisps('--scale', 0.3, '--redo') == 1
    assert message in capsys.readouterr().err and content(image.parent) == before


def test_redo_equals_a_fresh_chain(image, capsys):
    original = image.read_bytes()
    assert wisps('--scale', 0.3) == stripes() == 0
    fresh = {name: fits.getdata(image.with_name(name), 'SCI') for name in (RATE, PRE1F)}
    fresh_mask = fits.getdata(image.with_name(MASK))
    for path in image.parent.iterdir():
        path.unlink()
    image.write_bytes(original)
    assert wisps('--scale', 1.1) == stripes() == 0       # makes a mask of its own
    assert not np.array_equal(fresh_mask, fits.getdata(image.with_name(MASK)))
    capsys.readouterr()
    assert wisps('--scale', 0.3, '--redo') == 0
    assert 'without what remstriping.py did: run that again' in capsys.readouterr().err
    assert stripes() == 0
    for name, expected in fresh.items():
        np.testing.assert_array_equal(fits.getdata(image.with_name(name), 'SCI'), expected)
    np.testing.assert_array_equal(fits.getdata(image.with_name(MASK)), fresh_mask)
    assert image.with_name(PREWISP).read_bytes() == original
    assert history(image).count(wispsub.ENTRY) == history(image).count(remstriping.ENTRY) == 1


def test_redo_of_stripes_does_not_bring_back_an_old_wisp_scale(image):
    assert wisps('--scale', 1.1) == stripes() == 0
    assert wisps('--scale', 0.3, '--redo') == 0          # _pre1f is still that of scale 1.1
    assert stripes('--redo') == 0
    assert fits.getval(image, 'WISPSCAL') == fits.getval(image.with_name(PRE1F), 'WISPSCAL') == 0.3


def test_redo_takes_wisps_off_before_the_stripes(image, capsys):
    original = image.read_bytes()
    assert stripes() == 0
    assert wisps('--scale', 0.6, '--redo') == 0          # had not been subtracted, and come first
    assert 'without what remstriping.py did: run that again' in capsys.readouterr().err
    assert image.with_name(PREWISP).read_bytes() == original and remstriping.ENTRY not in history(image)
    first = fits.getdata(image, 'SCI')
    assert stripes('--redo') == 0
    np.testing.assert_array_equal(fits.getdata(image.with_name(PRE1F), 'SCI'), first)
    assert fits.getval(image, 'WISPSCAL') == 0.6


def test_flags_of_the_flat_are_left_out_and_not_written(place, field):
    """A pixel that only the flat marks as bad takes no part, under any version of the pipeline, and keeps its DQ."""
    shutil.copytree(field / 'crds_cache', place / 'crds', copy_function=os.symlink)
    flat, = (place / 'crds').rglob('*flat_nrca3_f200w_0001.fits')
    original = flat.resolve()
    flat.unlink()
    shutil.copy(original, flat)
    with fits.open(flat, mode='update') as hdul:
        hdul['DQ'].data[100:110, 100:110] = 1
    (place / 'flags.py').write_text(f"""
from argparse import Namespace
from stage1.correction import WISPS, correcting
with correcting('{RATE}', WISPS, Namespace(input_dir='calibrated', output_dir='calibrated', redo=False), {{}}) as image:
    image.flat_field()
    print([bool((dq[100:110, 100:110] & 1).all()) for dq in (image.flags, image.dq)])
""")
    done = run_script(place / 'flags.py', cwd=place, PYTHONPATH=str(Path(wispsub.__file__).parent),
                      **simulation.crds_environment(place / 'crds'))
    assert done.stdout.split('\n')[0] == '[True, False]', done.stderr


@pytest.mark.parametrize('length', [1, 20, 21, 22, 23, 100])
def test_entries_of_history_are_whole_however_long_they_are(length):
    header, name = fits.Header(), 'x' * length
    lines = ['first', f'Wisps: subtracted {name}, scale=0.63; wispsub.py 2022-10-01 10:00:00', 'last']
    for line in lines:
        header.add_history(line)
    assert history_of(header).split() == ' '.join(lines).split() and old_wisp(header) == (name, 0.63)
    assert history_of({}) == '' and old_wisp({}) is None


@pytest.mark.parametrize('name', ['a,b.asdf', 'é x=1.asdf', 'plain.asdf'])
def test_parameter_files_of_any_name_are_known_again(name):
    header = fits.Header()
    for line in history_lines('Snowballs', 'snowball_wrapper.py', 'x', {'parameters': name, 'jump.after_jump': 4}):
        header.add_history(line)
    assert differences(header, {'parameters': name}) == ''
    assert differences(header, {'parameters': 'other.asdf'}).endswith(', not other.asdf as asked for')
    assert differences({'STRPTHR': fits.card.Undefined()}, {'STRPTHR': 0.8}).endswith(', not 0.8 as asked for')
