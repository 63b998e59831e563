"""Kills, full disks, crowds and mutated files: no image is lost, corrected twice or left half written.

Minutes (make test-faults). FUZZ=300 make test-faults mutates 300 files for each script instead of 40. Most runs
are forks of this process, in which jwst is loaded already, so that a kill meets the work and not the imports.
"""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import remstriping
import simulation
import snowball_wrapper
import wispsub
from conftest import DATASET, RATE, ROOT, UNCAL, content, ended, forked, history, run_script, snowballs, stripes, wisps
from test_exposure import BAD_RATES, BAD_UNCALS

import numpy as np
import pytest
from astropy.io import fits

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures('quick')]     # how sources are found is no matter of safety

FUZZ = int(os.environ.get('FUZZ', 40))          # mutated files for each script


# --- what the tests work on ---------------------------------------------------------------------------

def products(directory):
    """What the arrays in the files of a directory are, for comparison; every FITS file is read whole."""
    found = {}
    for path in sorted(directory.iterdir()):
        if path.suffix == '.fits':
            with fits.open(path) as hdul:
                hdul.verify('exception')
                found[path.name] = [hdu.data for hdu in hdul if hdu.is_image and hdu.data is not None]
                end = hdul[-1].fileinfo()
            assert path.stat().st_size == end['datLoc'] + end['datSpan'], path
        elif path.suffix == '.pdf':
            assert path.read_bytes().rstrip().endswith(b'%%EOF')
            found[path.name] = []
        elif path.name[0] != '.':
            assert path.read_bytes().endswith(b'\n')
            found[path.name] = []
    return found


def equal(one, other):
    return [*map(len, one.values())] == [*map(len, other.values())] and one.keys() == other.keys() and all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == 'f') for name in one
        for a, b in zip(one[name], other[name], strict=True))


# --- kills ---------------------------------------------------------------------------------------------

def kill(call, work, rng, duration):
    """Run `call` and kill it: at any time, or, every other time, soon after it began to write."""
    pid = forked(call)
    start, writing = time.monotonic(), rng.random() < 0.5
    delay = rng.uniform(0, 0.25 * duration if writing else 1.05 * duration)
    while (writing and set(work.glob('*.fits')) <= set(work.glob('*_rate_pre*'))    # the copy of the input comes first
           and time.monotonic() - start < 3 * duration):
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    ended(pid)


def check_kills(call, source, output, copy, number, seed):
    """Kill a run `number` times; after each, products are whole, and a rerun gives what no kill would have given.

    Parameters
    ----------
    call : callable
    source : Path
        The input.
    output : Path
        Where the products go.
    copy : str
        File name of the untouched input there; that of no file when there is none.
    """
    rng = np.random.default_rng(seed)
    original = source.read_bytes()

    def reset():
        shutil.rmtree(output, ignore_errors=True)
        source.parent.mkdir(exist_ok=True)
        source.write_bytes(original)

    start = time.monotonic()
    assert call() == 0
    duration, expected = time.monotonic() - start, products(output)
    for _ in range(number):
        reset()
        kill(call, output / f'.{DATASET}.tmp', rng, duration)
        for name, arrays in (products(output) if output.exists() else {}).items():
            whole = (output / name).read_bytes() == original if name in (copy, source.name) else False
            assert whole or name != copy and equal({name: arrays}, {name: expected[name]}), name
        if source.parent != output:
            assert source.read_bytes() == original
        assert call() == 0
        assert equal(products(output), expected)
        assert not list(output.glob('.*'))
        if copy in expected:
            assert (output / copy).read_bytes() == original


@pytest.mark.usefixtures('flat_of_one')
@pytest.mark.parametrize(('script', 'copy', 'output', 'number'), [
    (wisps, 'prewisp', 'calibrated', 15), (wisps, 'prewisp', 'clean', 10),
    (stripes, 'pre1f', 'calibrated', 15), (stripes, 'pre1f', 'clean', 10)])
def test_killed_corrections_lose_nothing(script, copy, output, number, place):
    options = ['--output_dir', output] + (['--fit_scaling'] if script is wisps else ['--save_patterns'])
    check_kills(lambda: script(*options), place / 'calibrated' / RATE, place / output,
                f'{DATASET}_rate_{copy}.fits', number, seed=number)


@pytest.fixture
def quick_detector1(place, field):
    """In place of `run_detector1` in snowball_wrapper.py: the products of a true run, made once, written again."""
    if not (field / 'reduced').exists():
        assert snowballs('--output_dir', field / 'reduced') == 0
    place.joinpath('products').symlink_to(field / 'reduced')

    def run(_, pipeline, log_file):
        log_file.write_text('all of it\n')
        for source in Path('products').glob('*.fits'):
            with fits.open(source, memmap=False) as hdul:
                hdul.writeto(Path(pipeline.output_dir) / source.name)
    return run


def test_killed_detector1_loses_nothing(place, quick_detector1, monkeypatch):
    files = place / 'uncals' / UNCAL, place / 'reduced', 'none'
    check_kills(snowballs, *files, 3, seed=1)
    monkeypatch.setattr(snowball_wrapper, 'run_detector1', quick_detector1)
    shutil.rmtree(place / 'reduced')
    check_kills(snowballs, *files, 12, seed=2)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_that_ask_to_end(number, place):
    """The file is as before or corrected; Ctrl-C is answered with 130, one line and no debris."""
    image = place / 'calibrated' / RATE
    original, untouched = image.read_bytes(), place / 'calibrated' / f'{DATASET}_rate_prewisp.fits'
    assert wisps('--scale', '0.6') == 0
    corrected = fits.getdata(image, 'SCI')
    for seed in range(4):
        untouched.replace(image)
        arguments = [RATE, '--wisp_dir', 'wisps', '--scale', '0.6']
        with open(place / 'said', 'w') as said:
            process = subprocess.Popen([sys.executable, ROOT / 'wispsub.py', *arguments], stderr=said)
            while not (place / 'calibrated' / f'.{DATASET}.tmp').exists() and process.poll() is None:
                time.sleep(0.005)
            time.sleep(0.5 * seed)
            process.send_signal(number)
            status = process.wait(60)
        words = (place / 'said').read_text()
        assert 'Traceback' not in words
        if status == 130:
            assert number == signal.SIGINT and 'interrupted' in words and not list(image.parent.glob('.*'))
        elif status == -signal.SIGINT:          # when all is done Python leaves Ctrl-C to the system again
            assert number == signal.SIGINT and 'written' in words
        else:
            assert status in (0, -signal.SIGTERM)
        assert image.read_bytes() == original or np.array_equal(fits.getdata(image, 'SCI'), corrected, equal_nan=True)
        assert wisps('--scale', '0.6') == 0
        assert sorted(os.listdir(image.parent)) == [RATE, untouched.name]
        assert untouched.read_bytes() == original


# --- several at once -----------------------------------------------------------------------------------

def test_eight_on_the_same_image_correct_it_once(place, capfd):
    image = place / 'calibrated' / RATE
    original = image.read_bytes()
    pids = [forked(lambda: wisps('--scale', '0.6')) for _ in range(8)]
    assert [ended(pid) for pid in pids] == [0] * 8
    said = capfd.readouterr().err
    assert said.count('written') == 1 and said.count('left alone') == 7, said
    assert sorted(os.listdir(image.parent)) == [RATE, f'{DATASET}_rate_prewisp.fits']
    assert (image.parent / f'{DATASET}_rate_prewisp.fits').read_bytes() == original
    first = fits.getdata(image, 'SCI')
    pids = [forked(stripes) for _ in range(8)]
    assert [ended(pid) for pid in pids] == [0] * 8
    assert np.array_equal(fits.getdata(image.parent / f'{DATASET}_rate_pre1f.fits', 'SCI'), first, equal_nan=True)
    assert history(image).count(remstriping.ENTRY) == history(image).count(wispsub.ENTRY) == 1
    assert not list(image.parent.glob('.*'))


def test_eight_on_the_same_raw_exposure_reduce_it_once(place, quick_detector1, monkeypatch):
    runs = place / 'runs'

    def counted(*arguments):
        with open(runs, 'a') as file:
            file.write('x')
        return quick_detector1(*arguments)
    monkeypatch.setattr(snowball_wrapper, 'run_detector1', counted)
    pids = [forked(snowballs) for _ in range(8)]
    assert [ended(pid) for pid in pids] == [0] * 8
    assert runs.read_text() == 'x' and not list((place / 'reduced').glob('.*'))


def test_eight_with_one_cold_cache(place, field):
    """Different images, and commands: crds writes into its cache when a process first uses it."""
    cache = place / 'cache'
    shutil.copytree(field / 'crds_cache', cache, copy_function=os.symlink)
    (cache / 'config' / 'jwst' / 'ref_cache_subdir_mode').unlink(missing_ok=True)
    names = [f'jw0134500100{n}_10201_00001_nrca3_rate.fits' for n in range(8)]
    for name in names:
        shutil.copy(field / 'calibrated' / RATE, place / 'calibrated' / name)
    command = [sys.executable, ROOT / 'wispsub.py', '--wisp_dir=wisps', '--scale=0.6']
    started = [subprocess.Popen([*command, name], stderr=subprocess.PIPE, text=True,
                                env=os.environ | {'CRDS_PATH': str(cache)}) for name in names]
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0] * 8, said
    for name in names:
        assert fits.getval(place / 'calibrated' / name, 'WISPSCAL') == 0.6


# --- disks and directories -----------------------------------------------------------------------------

@pytest.mark.parametrize(('script', 'options'), [(wisps, ['--scale', '0.6']), (wisps, ['--fit_scaling']), (stripes, []),
                                                 (snowballs, [])])
def test_a_limit_on_file_sizes_loses_nothing(script, options, place, capfd):
    before = content(place)
    for output in ['new'] if script is snowballs else ['calibrated', 'new']:
        def limited(output=output):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000))
            return script(*options, '--output_dir', output)
        assert ended(forked(limited)) == 1
        err = capfd.readouterr().err
        assert content(place) == before
        assert 'Traceback' not in err and DATASET in err.splitlines()[-1] and 'ERROR' in err
        assert 'File too large' in err or 'No space left' in err, err


@contextlib.contextmanager
def small_disk(directory, size):
    """A file system of its own in `directory`; skips where that needs rights that we do not have."""
    directory.mkdir(exist_ok=True)
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', directory], capture_output=True,
                          check=False) if shutil.which('mount') else None
    if not done or done.returncode:
        pytest.skip('mounting a file system needs root')
    try:
        yield directory
    finally:
        subprocess.run(['umount', directory], check=True)


@pytest.mark.parametrize(('script', 'options'), [(wisps, ['--scale', '0.6']), (stripes, ['--save_patterns'])])
def test_a_full_disk_loses_nothing(script, options, place, capfd):
    with small_disk(place / 'disk', '120m') as disk:
        shutil.copy(place / 'calibrated' / RATE, disk)
        before = content(disk)
        assert script(*options, '--input_dir', 'disk', '--output_dir', 'disk') == 1
        assert content(disk) == before and os.listdir(disk) == [RATE]
        err = capfd.readouterr().err
        assert 'Traceback' not in err and 'ot enough space' in err, err
    with small_disk(place / 'disk', '300m') as disk:                     # and with space it goes on
        shutil.copy(place / 'calibrated' / RATE, disk)
        assert script(*options, '--input_dir', 'disk', '--output_dir', 'disk') == 0


def test_a_read_only_directory_loses_nothing(place, capfd):
    with small_disk(place / 'disk', '300m') as disk:
        shutil.copy(place / 'calibrated' / RATE, disk)
        shutil.copy(place / 'uncals' / UNCAL, disk)
        before = content(disk)
        subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)
        for script, options in (wisps, ['--scale', '0.6']), (stripes, []), (snowballs, []):
            assert script(*options, '--input_dir', 'disk', '--output_dir', 'disk') == 1
            assert script(*options, '--input_dir', 'disk', '--output_dir', 'disk/new') == 1
        err = capfd.readouterr().err
        assert content(disk) == before
        assert 'Traceback' not in err and err.count('cannot write in disk') == 6
        assert wisps('--scale', '0.6', '--input_dir', 'disk') == 1       # calibrated/ holds another image
        (place / 'calibrated' / RATE).unlink()
        assert wisps('--scale', '0.6', '--input_dir', 'disk') == 0       # reading from there is fine


@pytest.mark.skipif(os.getuid() == 0, reason='permissions do not bind root; the read-only file system does')
def test_a_directory_without_write_permission_loses_nothing(place, capfd):
    (place / 'calibrated').chmod(0o555)
    before = content(place)
    assert wisps('--scale', '0.6') == 1 and stripes() == 1
    (place / 'calibrated').chmod(0o755)
    assert content(place) == before and 'cannot write in calibrated' in capfd.readouterr().err


# --- bad input -----------------------------------------------------------------------------------------

def inputs(folder):
    """All files but those of the good exposure, with size and time."""
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir()
            if DATASET not in path.name}


@pytest.mark.parametrize(('script', 'ending', 'options'), [
    ('wispsub.py', 'rate', ['--scale', '0.6', '--wisp_dir', 'wisps']), ('remstriping.py', 'rate', []),
    ('snowball_wrapper.py', 'uncal', ['--output_dir', 'reduced'])])
def test_bad_files_are_named_and_the_good_one_is_done(script, ending, options, place):
    folder = place / ('calibrated' if ending == 'rate' else 'uncals')
    cases = BAD_RATES if ending == 'rate' else BAD_UNCALS | {name: BAD_RATES[name] for name in (
        'empty', 'half', 'text', 'primary only', 'no SCI', 'another instrument', 'grism')}
    names = {case: f"bad-{case.replace(' ', '-')}_{ending}.fits" for case in cases}
    for case, (write, _) in cases.items():
        write(folder / names[case])
    (folder / f'directory_{ending}.fits').mkdir()
    bad = [*names.values(), f'directory_{ending}.fits', f'missing_{ending}.fits', 'wrong_name.fits']
    shutil.copy(folder / f'{DATASET}_{ending}.fits', folder / 'wrong_name.fits')
    before = inputs(folder)
    done = run_script(script, *bad, f'{DATASET}_{ending}.fits', *options, cwd=place)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    lines = done.stderr.splitlines()
    for name in bad:
        said = [line for line in lines if f'ERROR {name}:' in line]
        assert len(said) == 1 and 'unexpectedly' not in said[0], (name, said)
    assert f'{len(bad)} of {len(bad) + 1} files failed' in lines[-1]
    assert any(f'{RATE}: written' in line for line in lines)
    assert inputs(folder) == before and not list(place.rglob('.*'))


def test_no_flat_for_this_mode_is_said(place, capfd):
    fits.setval(place / 'calibrated' / RATE, 'FILTER', value='F150W')
    simulation.write_templates(place / 'more', filters=('F150W',))
    before = content(place)
    assert wisps('--scale', '0.6', '--wisp_dir', 'more') == stripes() == 1
    err = capfd.readouterr().err
    assert err.count('no flat field for NRCA3 F150W CLEAR') == 2 and content(place) == before


# --- mutated files ------------------------------------------------------------------------------------

NASTY = ['1000000000', '-1', '0', '99999999999999999999999', "'$(touch gotcha)'", "''", 'T', 'NaN', '1E400', "'O''x",
         '-32', '8', '64', '16', "'NRC_IMAGE'", "'NIRISS'", "'../../x'", '', '( 1, 2 )']


def mutate(data, spans, rng):
    """One mutation of the bytes of a FITS file.

    Parameters
    ----------
    data : bytearray
        Changed in place.
    spans : list of (start of header, start of data, end)
        Of the extensions.
    """
    kind = rng.choice(['header', 'header', 'card', 'card', 'card', 'data', 'tail', 'block', 'shift', 'last', 'type'])
    start, middle, end = spans[rng.integers(len(spans))]
    ranges = {'header': (start, middle, 9), 'data': (middle, end, 1000), 'last': (*spans[-1][1:], 5)}   # the ASDF tree
    first, after, most = ranges.get(kind, (0, 0, 0))
    if first < after:
        for place in rng.integers(first, after, rng.integers(1, most)):
            data[place] = rng.integers(256)
    elif kind == 'card':
        place = start + 80 * rng.integers((middle - start) // 80)
        value = NASTY[rng.integers(len(NASTY))]
        data[place + 10:place + 80] = f'{value:<20}'.ljust(70).encode()
    elif kind == 'type':
        place = data.index(b'BITPIX', start, middle) + 10
        data[place:place + 20] = f'{rng.choice([8, 16, 32, 64, -32, -64, 7]):20d}'.encode()
    elif kind == 'tail':
        del data[int(rng.integers(len(data))):]
    elif kind == 'block':
        place = 2880 * int(rng.integers(len(data) // 2880))
        data[place:place + 2880] = rng.bytes(2880) if rng.random() < 0.5 else bytes(2880)
    else:
        place = int(rng.integers(start, middle))
        data[place:place] = rng.bytes(int(rng.integers(1, 3000)))


def spans_of(path):
    with fits.open(path) as hdul:
        infos = [hdu.fileinfo() for hdu in hdul]
    return [(info['hdrLoc'], info['datLoc'], info['datLoc'] + info['datSpan']) for info in infos]


@pytest.mark.parametrize('script', [wisps, stripes, snowballs])
def test_mutated_files(script, place, quick_detector1, capfd, monkeypatch):
    """Refused in one line with nothing changed, or taken, with the untouched one kept to the byte."""
    path = place / ('uncals' if script is snowballs else 'calibrated') / (UNCAL if script is snowballs else RATE)
    pristine, spans = path.read_bytes(), spans_of(path)
    options = ['--scale', '0.6'] if script is wisps else []
    copy = path.with_name(f"{DATASET}_rate_{'prewisp' if script is wisps else 'pre1f'}.fits")
    if script is snowballs:
        true_runs, true = [1 + FUZZ // 20], snowball_wrapper.run_detector1

        def detector1(*arguments):
            true_runs[0] -= 1
            return (true if true_runs[0] >= 0 else quick_detector1)(*arguments)
        monkeypatch.setattr(snowball_wrapper, 'run_detector1', detector1)
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail('hangs'))
    refused = 0
    for number in range(FUZZ):
        for directory in path.parent, place / 'reduced':
            shutil.rmtree(directory, ignore_errors=True)
        path.parent.mkdir()
        data = bytearray(pristine)
        mutate(data, spans, np.random.default_rng([len(script.__name__), number]))
        path.write_bytes(data)
        signal.alarm(120)
        status = script(*options)
        signal.alarm(0)
        err = capfd.readouterr().err
        said = f'mutation {number}: {err}'
        assert status in (0, 1) and 'Traceback' not in err and 'unexpectedly' not in err, said
        assert not (place / 'gotcha').exists() and not list(place.rglob('.*')), said
        if status:
            refused += 1
            assert os.listdir(path.parent) == [path.name] and path.read_bytes() == data, said
            assert sum('ERROR' in line for line in err.splitlines()) == 1 and path.name in err, said
        else:
            assert (copy if copy.exists() else path).read_bytes() == data, said
    assert refused > FUZZ // 5
