"""finish.py: what goes once a set is accepted, and what never goes."""

import os
import shutil
import subprocess
import sys

import finish
import make_batch
from conftest import ROOT
from stand_ins import write_rate
from test_batch import SNOW_DONE, STRIPES_DONE, WISPS_DONE, write_table


def test_finish_removes_what_an_accepted_set_does_not_need(tmp_path, capsys):
    spare = ['ramp', 'rateints', 'rate_prewisp', 'rate_pre1f', 'rate_horiz', 'rate_vert', 'rateints_pre1f']
    keep = ['rate', 'rate_1fmask', 'segm_cold']
    done = {'history': [SNOW_DONE, WISPS_DONE, STRIPES_DONE], 'WISPSCAL': 0.61, 'WISPMETH': 'fixed',
            'STRPMETH': 'dr05', 'STRPTHR': 0.8}
    exposures = {'good': done, 'cube': done | {'NINTS': 2}, 'flagged': done, 'redo': done, '-redone': done,
                 'unlooked': done, 'striped': {'history': [SNOW_DONE, WISPS_DONE]}, 'cut': done, 'unseen': done,
                 'wisp': {'history': [SNOW_DONE, STRIPES_DONE], 'detector': 'NRCB2', 'filter_': 'F182M'},
                 'part': done | {'NINTS': 2}, 'lost': done | {'NINTS': 2},
                 'held': done | {'WISPMETH': 'adaptive'}}       # the table names no method
    for name, header in exposures.items():
        for ending in (*spare, *keep):
            write_rate(tmp_path / f'{name}_{ending}.fits', **header)
    os.truncate(tmp_path / 'cut_rate.fits', 10_000)
    os.truncate(tmp_path / 'part_rateints.fits', 10_000)
    (tmp_path / 'lost_rateints.fits').unlink()
    accepted = [['wisp', 'fit', '', 'adaptive', '', '1'], ['held', 'fit', '', '', '', '1'],
                *([name, '', '', '', '', '1'] for name in ('good', 'cube', 'striped', 'cut', 'part', 'lost'))]
    table = write_table(tmp_path / 'review.csv', ['flagged', '', '', '', 'halo', ''], ['redo', '0.7', '', '', '', '1'],
                        ['-redone', '0.61', '0.8', '', '', '1'], *accepted,
                        ['unlooked', '0.61', '0.8', '', '', 'rejected'],
                        columns='Dataset, wisp_scale ,mask_threshold,method,Flag,Accepted')
    before = sorted(tmp_path.iterdir())
    arguments = [str(tmp_path), '--table', str(table)]
    assert finish.main(arguments) == 0 and sorted(tmp_path.iterdir()) == before
    said = capsys.readouterr().out
    assert 'flagged: kept whole, is flagged in the table: halo' in said and 'good: 0 MB: ramp' in said
    assert 'unseen: kept whole, is not in the table' in said and 'striped: kept whole, has its striping still' in said
    assert 'unlooked: kept whole, is not accepted in the table' in said
    assert 'wisp: kept whole, has its wisp still' in said       # whatever templates are found from here
    assert 'redo: kept whole, is to be redone: corrected with scale 0.61, not 0.7 as asked for' in said
    assert f'part: kept whole, {tmp_path}/part_rateints.fits is damaged' in said
    assert 'lost: kept whole, lost_rateints.fits is not there' in said
    os.utime(table, (1e9, 1e9))
    for older in table, shutil.copyfile(table, tmp_path / 'review_2025-12-31_235959 (1).csv'):
        assert finish.main([str(tmp_path), '--table', str(older)]) == 0
        assert 'good: kept whole, was corrected again since' in capsys.readouterr().out
    os.utime(table)
    older.unlink()
    assert finish.main([*arguments, '--remove']) == 0
    gone = {path.name for path in before} - {path.name for path in tmp_path.iterdir()}
    assert gone == {f'{name}_{ending}.fits' for name in ('good', 'cube', '-redone', 'held') for ending in spare} - \
        {'cube_rateints.fits'}
    assert 'GB removed' in capsys.readouterr().out
    exposures, _ = make_batch.find_exposures(tmp_path, tmp_path)        # what make_batch.py --redo --check says of them
    rows = make_batch.check_copies([(exposure, dict.fromkeys(make_batch.STEPS)) for exposure in exposures])
    assert {text.split(': make')[0] for *_, text in rows} == {name for name in gone if '_rate_pre' in name}
    assert finish.main(arguments) == 0 and 'good: nothing to remove\n' in capsys.readouterr().out
    (tmp_path / 'wisp_rate_pre1f.fits').unlink()        # the wisp comes first: from there
    (_, _, text), = make_batch.check_copies([(exposure, {make_batch.WISPS: ''}) for exposure in exposures], False)
    assert text.startswith('wisp_rate_pre1f.fits: make')
    (tmp_path / 'below').mkdir()
    shutil.copy(tmp_path / 'good_rate.fits', tmp_path / 'below')
    exposures, problems = make_batch.find_exposures(tmp_path, tmp_path, ['good'])
    assert exposures[0].rate.parent == tmp_path and len(problems) == 1
    script = [sys.executable, ROOT / 'batch_scripts' / 'finish.py', tmp_path]
    write_rate(tmp_path / 'é_rate.fits')
    for command in (script, ['bash', '-c', '"$@" >&-', 'bash', *script]):      # no place to write to, or no such letter
        said = subprocess.run(command, env=os.environ | {'PYTHONIOENCODING': 'ascii'}, capture_output=True, check=True)
        assert not said.stderr
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as listing:
        listing.stdout.close()                                  # nobody reads it
        assert listing.wait() == 1 and 'Broken pipe' in (said := listing.stderr.read()) and 'Traceback' not in said
    assert finish.main([str(tmp_path)]) == 0 and 'unseen: 0 MB: ramp' in capsys.readouterr().out    # without a table
