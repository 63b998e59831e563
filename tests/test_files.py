"""Whole files only, from one process at a time: stage1/files.py.

`die_at` kills a process at each of its steps on the disk in turn, so that no moment is left out.
"""

import errno
import fcntl
import os
import signal
import sys
import time

from conftest import ended, forked
from stage1.exposure import ExposureError
from stage1.files import left_behind, publish, workspace, write_map

import numpy as np
import pytest
from astropy.io import fits


def make(directory, text='new'):
    """Make three products of the dataset x, as a script does."""
    with workspace(directory, 'x') as work:
        for ending in '_rate.fits', '_a.fits', '_z.pdf':
            (work / f'x{ending}').write_text(text)
        publish(work, directory, ['x_rate.fits'])


def texts(directory):
    """What is in the files of a directory; hidden ones too."""
    return {path.name: path.read_text() if path.is_file() else '' for path in directory.iterdir()}


WHOLE = dict.fromkeys(('x_rate.fits', 'x_a.fits', 'x_z.pdf'), 'new')


def holding(directory):
    """Process that has begun to make a product of x, and goes on for a minute."""
    def hold():
        with workspace(directory, 'x') as work:
            (work / 'x_rate.fits').write_text('half')
            time.sleep(60)
    pid = forked(hold)
    while not (directory / '.x.tmp' / 'x_rate.fits').exists():
        time.sleep(0.01)
    return pid


def test_products_appear_together(tmp_path):
    output = tmp_path / 'new' / 'out'
    make(output, 'old')
    with open(output / 'x_rate.fits') as reader, workspace(output, 'x') as work:
        assert work.parent == output and not list(work.iterdir())
        for name in WHOLE:
            (work / name).write_text('new')
        assert set(texts(output).values()) == {'old', ''}
        publish(work, output, ['x_rate.fits'])
        assert reader.read() == 'old'                    # replaced, not written to
    assert texts(output) == WHOLE


@pytest.mark.parametrize('error', [FileNotFoundError, OSError, KeyboardInterrupt, ExposureError])
def test_an_error_is_passed_on_and_leaves_what_was_there(error, tmp_path):
    make(tmp_path, 'old')
    for directory in tmp_path, tmp_path / 'new':
        with pytest.raises(error), workspace(directory, 'x') as work:
            (work / 'x_rate.fits').write_text('half')
            raise error
    assert texts(tmp_path) == dict.fromkeys(WHOLE, 'old') | {'new': ''} and not texts(tmp_path / 'new')


def test_a_directory_in_the_place_of_a_product_is_named_and_nothing_is_put_in_place(tmp_path):
    (tmp_path / 'x_rate.fits').mkdir()
    with pytest.raises(ExposureError, match='x_rate.fits is a directory'):
        make(tmp_path)
    assert os.listdir(tmp_path) == ['x_rate.fits']


@pytest.mark.parametrize('dtype', [bool, np.float32, np.float64])
def test_maps_are_read_back(dtype, tmp_path):
    array = np.random.default_rng(2).integers(0, 2, (100, 130)).astype(dtype)
    write_map(tmp_path / 'map.fits', array, [('ANSWER', 42, 'a card')])
    read, header = fits.getdata(tmp_path / 'map.fits', header=True)
    assert np.array_equal(read, array) and header['ANSWER'] == 42
    assert read.dtype.kind == ('u' if dtype is bool else 'f')


def die_at(step, call):
    """Process that runs `call()` and is killed just before its `step`th step on the disk, counted from 0."""
    def run():
        left = [step]

        def count(event, _):
            if event == 'open' or event.startswith(('os.', 'shutil.')):
                if not left[0]:
                    signal.raise_signal(signal.SIGKILL)
                left[0] -= 1
        sys.addaudithook(count)
        call()
    return forked(run)


def test_a_kill_at_any_moment_leaves_old_or_new_and_nothing_that_the_next_run_does_not_clear(tmp_path):
    make(tmp_path / 'first')                             # all is imported
    outcomes = []
    for step in range(200):
        directory = tmp_path / str(step)
        make(directory, 'old')
        status = ended(die_at(step, lambda directory=directory: make(directory)))
        found = {name: text for name, text in texts(directory).items() if name[0] != '.'}
        assert found.keys() == WHOLE.keys() and set(found.values()) <= {'old', 'new'}
        if found['x_rate.fits'] == 'new':                # it comes last
            assert found == WHOLE
        outcomes.append(found['x_rate.fits'])
        if left_behind(directory, 'x'):
            with workspace(directory, 'x'):              # a run with nothing to do ...
                pass
        assert texts(directory) == found and not left_behind(directory, 'x')
        make(directory)                                  # ... and one with something
        assert texts(directory) == WHOLE
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert status == 0 and outcomes == sorted(outcomes, reverse=True) and len(outcomes) > 15


def test_what_was_left_of_another_dataset_stays(tmp_path):
    for dataset in 'x', 'x_y':
        (tmp_path / f'.{dataset}.tmp').mkdir()
        (tmp_path / f'.{dataset}.tmp' / 'half').touch()
        (tmp_path / f'.{dataset}.lock').touch()
    make(tmp_path)
    assert texts(tmp_path).keys() == {*WHOLE, '.x_y.tmp', '.x_y.lock'}
    assert os.listdir(tmp_path / '.x_y.tmp') == ['half']


def test_who_waits_for_a_process_that_is_killed_goes_on(tmp_path):
    holder = holding(tmp_path)
    waiting = forked(lambda: make(tmp_path))
    time.sleep(0.3)
    assert os.waitpid(waiting, os.WNOHANG) == (0, 0) and 'x_rate.fits' not in texts(tmp_path)
    start = time.monotonic()
    os.kill(holder, signal.SIGKILL)
    assert ended(holder) == -signal.SIGKILL and ended(waiting) == 0 and time.monotonic() - start < 10
    assert texts(tmp_path) == WHOLE


def add_one(directory, times, seconds):
    """Add to a number in a file, slowly enough that another process would come between."""
    for _ in range(times):
        with workspace(directory, 'x') as work:
            number = int((directory / 'number').read_text())
            time.sleep(seconds)
            (work / 'number').write_text(str(number + 1))
            (work / 'number').replace(directory / 'number')


@pytest.mark.parametrize('times, seconds', [(10, 0.002), (100, 0)], ids=['slowly', 'at once'])
def test_eight_processes_take_turns(times, seconds, tmp_path):
    (tmp_path / 'number').write_text('0')
    pids = [forked(lambda: add_one(tmp_path, times, seconds)) for _ in range(8)]
    assert [ended(pid) for pid in pids] == [0] * 8
    assert texts(tmp_path) == {'number': str(8 * times)}


@pytest.mark.parametrize('number', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_used(number, tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(fcntl, 'flock', no_locks)
    (tmp_path / '.x.lock').write_text('1\nanother-machine\n')        # left by a kill
    make(tmp_path)
    assert texts(tmp_path) == WHOLE and 'no file locks here' in caplog.text


def test_a_file_in_the_place_of_the_directory_is_said(tmp_path):
    (tmp_path / 'file').touch()
    for output in tmp_path / 'file', tmp_path / 'file' / 'below':
        with pytest.raises(ExposureError, match=f'cannot write in {output}: '):
            make(output)


def refused(directory):
    """True when another user who makes products in a directory is told that it cannot be."""
    def call():
        os.setgid(3001)
        os.setuid(3001)
        with pytest.raises(ExposureError, match=f'cannot write in {directory}: Permission denied'):
            make(directory)
    return ended(forked(call)) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can be two users')
def test_what_is_another_user_s_is_said(scratch):
    scratch.chmod(0o755)
    make(scratch, 'theirs')
    assert refused(scratch) and refused(scratch / 'new')
    os.kill(holding(scratch), signal.SIGKILL)
    os.wait()
    scratch.chmod(0o777)
    assert refused(scratch)                              # the lock is not ours
    make(scratch)
    assert texts(scratch) == WHOLE


@pytest.mark.parametrize('name', ['.x.tmp', '.x.lock'])
def test_a_link_in_the_place_of_what_is_hidden_is_not_followed(name, tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'precious').write_text('mine')
    (tmp_path / name).symlink_to('mine' if name == '.x.tmp' else 'mine/precious')
    if name == '.x.tmp':
        make(tmp_path)
    else:
        with pytest.raises(ExposureError, match='cannot write in .*symbolic link'):
            make(tmp_path)
    assert texts(tmp_path / 'mine') == {'precious': 'mine'}
