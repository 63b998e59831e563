#!/usr/bin/env python
"""Run a batch: the commands of the .run files in a directory, exposure by exposure, in processes that stay warm.

Each exposure goes from its first step to its last; one that fails stops only itself. What is done is what HISTORY of
the images says, and that is left alone: a batch that was stopped, or killed, goes on when it is started again.
DIR/log/<dataset>.log holds what scripts and pipeline said, and the summary at the end names what failed, what has a
warning, and what was corrected with other settings than its line has now.

    python batch_scripts/run_batch.py night1
    python batch_scripts/run_batch.py night1 -j 8 --share 3/10

Exit status: 0 when all is done, 1 when something failed, 2 for a wrong call, 130 when stopped.
"""

import argparse
import contextlib
import functools
import logging
import math
import multiprocessing
import os
import re
import shlex
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))

from stage1 import check_environment  # noqa: E402

check_environment('psutil')

import remstriping  # noqa: E402
import snowball_wrapper  # noqa: E402
import wispsub  # noqa: E402
from stage1.command import EXISTING, Kind, new_parser, run_command, start_log  # noqa: E402
from stage1.correction import corrected, departures, header_of, made_at, made_of, undone  # noqa: E402
from stage1.exposure import DamagedError, ExposureError, exposure_header, find_input, one_line  # noqa: E402

# In the order of the steps
SCRIPTS = {'snowball_wrapper.py': snowball_wrapper, 'wispsub.py': wispsub, 'remstriping.py': remstriping}
MEMORY = {True: 2.8e9, False: 1e9}      # bytes that a process takes, with Detector1 of nine groups and without
GRACE = 5                               # seconds that a process is given to clean up when it is stopped

# One thread each. Memory is kept instead of given back and fetched again for each array (glibc only; elsewhere without
# effect). A process that was killed leaves semaphores, which is no news.
ENVIRONMENT = {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1', 'NUMEXPR_NUM_THREADS': '1',
               'NUMBA_NUM_THREADS': '1', 'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': str(2**34),
               'PYTHONWARNINGS': 'ignore:resource_tracker'}

log = logging.getLogger('nircam')


# --- the commands ------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Line:
    """One line of a .run file: words behind the script, its options and file, and when the .run file was written."""

    script: str
    words: tuple
    options: argparse.Namespace
    name: str
    written: float

    @property
    def dataset(self):
        """Name of the exposure."""
        return Path(self.name).name.rsplit('_', 1)[0]

    @property
    def raw(self):
        """Whether the line starts from a raw exposure."""
        return self.script == 'snowball_wrapper.py'

    def corrected(self, header):
        """Whether HISTORY says that the step was done."""
        return corrected(header, SCRIPTS[self.script].ENTRY)

    def departures(self, header, rateints=()):
        """How a corrected image differs from what the line says; see stage1/correction.py."""
        return departures(header, SCRIPTS[self.script].ENTRY, SCRIPTS[self.script].asked(self.options), rateints)

    def find_rate(self):
        """Path of the rate image that says whether the line is done; None when there is none yet."""
        target = Path(self.options.output_dir) / f'{self.dataset}_rate.fits'
        if target.exists():
            return target
        return None if self.raw else self.find_start()

    def find_start(self):
        """Path of the raw exposure, or of the rate image, that the line names; None when it is not there."""
        name = self.name if self.raw else Path(self.name).with_name(f'{self.dataset}_rate.fits')
        with contextlib.suppress(ExposureError):
            return find_input(name, self.options.input_dir)
        return None

    def is_of_another(self, rate, header):
        """True when the image `rate`, with this header, was made of another one than what the line names."""
        start = self.find_start()
        before = header_of(start) if start and start != rate else {}
        if not before or not self.corrected(header):
            return False
        if self.raw:
            return not snowball_wrapper.of_one_exposure(before, header)
        return not made_of(before, header, SCRIPTS[self.script].ENTRY)


def read_batch(directory):
    """Read all .run files of a directory: {dataset: its lines in the order of the steps}, in the order of the files.

    ExposureError, which names file and line, when one is not one command of the scripts for one file, or comes twice.
    """
    paths, found = sorted(directory.glob('*.run')), {}
    if not paths:
        raise ExposureError(f'{directory} holds no .run files: give the directory that make_batch.py wrote')
    for path in paths:
        for number, text in enumerate(path.read_text('utf-8', 'surrogateescape').splitlines(), 1):
            try:
                line = read_line(text, path.stat().st_mtime)
                if line and line.script in found.setdefault(line.dataset, {}):
                    raise ExposureError(f'a second line of {line.script} for {line.dataset}')
            except ExposureError as error:
                raise ExposureError(f'{path}, line {number}: {error}') from None
            if line:
                found[line.dataset][line.script] = line
    return {dataset: [lines[script] for script in SCRIPTS if script in lines] for dataset, lines in found.items()}


def read_line(text, written):
    """One line of a .run file as a `Line`; None when it is empty or a comment."""
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise ExposureError(f'{error}: {text}') from None
    if not words:
        return None
    if words[0] != 'python' or len(words) < 2 or words[1] not in SCRIPTS:
        raise ExposureError(f"is not a command 'python {'|'.join(SCRIPTS)} ...': {text}")
    script, words = words[1], words[2:]
    options = strict_parser(script).parse_args(words)
    raw = script == 'snowball_wrapper.py'
    names, endings = (options.uncals, ('_uncal.fits',)) if raw else (options.images, ('_rate.fits', '_rateints.fits'))
    if len(names) != 1 or not names[0].endswith(endings):
        raise ExposureError(f"does not name one file *{' or *'.join(endings)}: {text}")
    return Line(script, tuple(words), options, names[0], written)


@functools.cache
def strict_parser(script):
    """The parser of a script, which raises ExposureError instead of ending the program."""
    def refuse(message):
        raise ExposureError(message)
    parser = SCRIPTS[script].build_parser()
    parser.error, parser.print_help = refuse, lambda: refuse('--help does nothing to an image')
    return parser


# --- what is done already ----------------------------------------------------------------------------

@dataclass
class Exposure:
    """One exposure: its commands that are left, and remarks: differences from the record, warnings."""

    dataset: str
    commands: list = field(default_factory=list)
    differences: list = field(default_factory=list)
    warnings: list = field(default_factory=list)
    failure: str = ''


def look_up(dataset, lines, redo):
    """Find out what is left to do of an exposure, from the headers of its rate image alone.

    What is left begins with the first line that is not done; the scripts leave alone what is done after it. The
    first gets `--redo` when it has to start from the untouched copy: the image is damaged, its settings differ from
    those on record (and `redo` is asked for), or a later correction was made before it.
    """
    exposure = Exposure(dataset)
    for number, line in enumerate(lines):
        rate = line.find_rate()
        whole = [rate.with_name(Path(line.name).name)] if rate and line.name.endswith('_rateints.fits') else []
        header, damaged = record(rate, whole)
        done, rest = is_done(line, header) and not line.is_of_another(rate, header), lines[number + 1:]
        other = line.departures(header, whole) if line.corrected(header) else ''
        if not done or (other and redo):
            late = not line.raw and any(is_done(later, header) for later in rest)
            again = ['--redo'] * (done or damaged or late)
            exposure.commands = [(line.script, (*again, *line.words)), *((later.script, later.words) for later in rest)]
            if line.script == 'remstriping.py' and 'WISPWARN' in header:
                exposure.warnings = [str(header['WISPWARN'])]
            return exposure
        if other:
            exposure.differences.append(f'{line.script}: corrected {other}')
    exposure.warnings = [str(header[key]) for key in ('WISPWARN', 'STRPWARN') if key in header]
    return exposure


def record(path, whole=()):
    """Primary header of a rate image, {} when there is none; and whether it, or its integrations, are damaged."""
    try:
        for integrations in filter(Path.exists, whole):
            exposure_header(integrations, 'rateints')
        return exposure_header(path, 'rate') if path else {}, False
    except ExposureError as error:
        return {}, isinstance(error, DamagedError)      # what is wrong otherwise, the script will say


def is_done(line, header):
    """True when a header says that a line is done; one with `--redo`, when that was after it was written."""
    if not header:
        return False
    if line.script == 'wispsub.py' and not wispsub.starts_again(header, line.options) and not wispsub.to_be_corrected(
            header, line.options.method, line.options.wisp_dir):
        return True
    if line.options.redo:
        made = made_at(header, SCRIPTS[line.script].ENTRY)
        return made is not None and made >= math.floor(line.written)
    return line.corrected(header)


# --- in a worker process -----------------------------------------------------------------------------

def begin():
    """Prepare a worker process, which ends with the one that started it."""
    start_log()
    sys.stdout.reconfigure(errors='backslashreplace')
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # Ctrl-C reaches all processes: that one decides
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    """Wait for the end of the process that started this one, and end too."""
    multiprocessing.parent_process().join()
    os._exit(1)


def interrupt(*_):
    """Handler of a signal: the script that runs cleans up, undisturbed by further signals, and returns 130."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def work(commands, path):
    """Run the commands, (script, words), of one exposure until one fails; all output goes to the log `path`.

    Returns what was added to the log, and the exit status of the last command.
    """
    with open(path, 'ab') as file:
        start = file.seek(0, os.SEEK_END)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    status = 0
    signal.signal(signal.SIGTERM, interrupt)
    for script, words in commands:
        sys.stdout.write(f'# {datetime.now():%Y-%m-%d %H:%M:%S} on {socket.gethostname()}, process {os.getpid()}\n'
                         f'python {shlex.join((script, *words))}\n')
        sys.stdout.flush()
        try:
            status = SCRIPTS[script].main(('--verbose', *words))
        except SystemExit as error:
            status = error.code
        sys.stdout.flush()
        if status == 130:
            os._exit(130)
        if status:
            break
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with open(path, encoding='utf-8', errors='replace') as file:
        file.seek(start)
        return file.read(), status


# --- all of them -------------------------------------------------------------------------------------

def run(exposures, jobs, directory):
    """Work through the exposures with commands, and show how it goes: a bar on a terminal, else a line for each."""
    from tqdm import tqdm
    os.environ.update(ENVIRONMENT)
    mine, pools = threading.local(), []         # each thread has a process: one that is killed takes no other along

    def do(exposure):
        if not hasattr(mine, 'process'):
            mine.process = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), begin)
            pools.append(mine.process)
        try:
            said, status = mine.process.submit(work, exposure.commands, directory / f'{exposure.dataset}.log').result()
        except BrokenProcessPool:
            del mine.process
            exposure.failure = 'the process was killed, or memory ran out'
        except Exception as error:
            exposure.failure = one_line(error)
        else:
            warnings = [without_name(text, exposure) for text in messages(said, 'WARNING')]
            settled = [] if status else [undone(script) for script, _ in exposure.commands]     # that ran afterwards
            exposure.warnings += [text for text in warnings if text not in settled]
            if status:
                exposure.failure = (messages(said, 'ERROR') or said.splitlines())[-1]
        return exposure

    threads, start, terminal = ThreadPoolExecutor(jobs), time.monotonic(), sys.stderr.isatty()
    try:
        finished = as_completed([threads.submit(do, exposure) for exposure in exposures])
        bar = tqdm(finished, total=len(exposures), unit='exposure', disable=not terminal)
        for number, future in enumerate(bar, 1):
            exposure, left = future.result(), (time.monotonic() - start) * (len(exposures) / number - 1)
            how = f'FAILED: {exposure.failure}' if exposure.failure else 'done'
            if not terminal:
                log.info('[%d/%d, %s left] %s: %s', number, len(exposures), tqdm.format_interval(left),
                         exposure.dataset, how)
            elif exposure.failure:
                tqdm.write(f'{exposure.dataset}: {how}', sys.stderr)
    finally:                        # the processes have nothing to do any more, or are told to stop
        threads.shutdown(wait=False, cancel_futures=True)
        stop(multiprocessing.active_children())
    for pool in pools:              # Python, at its end, would else wake them, and may find their pipes closed
        pool.shutdown()


def messages(said, level):
    """The messages of a level in a log of the scripts."""
    return re.findall(rf'^\d\d:\d\d:\d\d {level} (.*)', said, re.MULTILINE)


def without_name(message, exposure):
    """A message without the name of the file that it begins with."""
    return re.sub(rf'^{re.escape(exposure.dataset)}_(uncal|rate|rateints)\.fits: ', '', message)


def stop(processes):
    """End processes: by a signal that lets them clean up, and if that takes long by one that does not."""
    for process in processes:
        process.terminate()
    end = time.monotonic() + GRACE
    for process in processes:
        process.join(max(end - time.monotonic(), 0))
        process.kill()


def default_jobs(exposures):
    """As many processes as there are cores that we may use, or fewer when memory is short."""
    import psutil
    snowballs = any(exposure.commands[0][0] == 'snowball_wrapper.py' for exposure in exposures)
    return max(min(cores(), int(psutil.virtual_memory().available / MEMORY[snowballs])), 1)


def cores():
    """Number of processor cores that we may use."""
    import psutil
    own = psutil.Process()
    return len(own.cpu_affinity()) if hasattr(own, 'cpu_affinity') else os.cpu_count()     # not on macOS


def summary(exposures, todo, directory):
    """What was done and what was not, as text."""
    warned, failed = {}, {}
    for exposure in exposures:
        for text in dict.fromkeys(exposure.warnings):
            warned.setdefault(text, []).append(exposure.dataset)
        if exposure.failure:
            alike = failed.setdefault(without_name(exposure.failure, exposure), [])
            alike.append(f'{directory / exposure.dataset}.log: {exposure.failure}')
    parts = {
        'Failed (the later steps of these were not run; start again to try again):': [
            text for alike in failed.values() for text in (
                *alike[:5], *[f'and {len(alike) - 5} more that failed alike'] * (len(alike) > 5))],
        'Left alone, though the line says something else (--redo starts these again, and undoes a review):': [
            f'{exposure.dataset}: {text}' for exposure in exposures for text in exposure.differences],
        'With a warning:': [f"{text}: {', '.join(names[:5])}{f' and {len(names) - 5} more' * (len(names) > 5)}"
                            for text, names in warned.items()]}
    number = sum(map(len, failed.values()))
    lines = [f'{len(todo) - number} done, {len(exposures) - len(todo)} left alone, {number} failed, '
             f'{sum(bool(exposure.warnings) for exposure in exposures)} with a warning']
    for title, members in parts.items():
        lines += [title, *(f'  {member}' for member in members)] if members else []
    return '\n'.join(lines)


# --- the command line --------------------------------------------------------------------------------

def in_words(error):
    """What is wrong: in our words, or the file and what the operating system says of it."""
    return f'{error.filename}: {error.strerror}' if getattr(error, 'filename', None) else str(error)


def share(text):
    """'I/N' as (I, N), the I-th of N shares, 1 to N."""
    which, number = map(int, text.split('/'))
    if not 1 <= which <= number:
        raise ValueError
    return which, number


def positive(text):
    """A whole number from 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


SHARE, PROCESSES = Kind('a share, like 3/10', 'I/N', share), Kind('a number of processes', 'N', positive)


def build_parser():
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument('directory', metavar='DIR', type=EXISTING, help='where the .run files are')
    parser.add_argument('-j', dest='jobs', type=PROCESSES, metavar=PROCESSES.metavar,
                        help='processes, of one thread each; by default as many as cores and memory allow')
    parser.add_argument('--share', type=SHARE, default=(1, 1), metavar=SHARE.metavar, help='only the I-th of N shares')
    parser.add_argument('--redo', action='store_true',
                        help='start again what was corrected with other settings than its line has now')
    return parser


def main(argv=None):
    """Run the command; returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(argv)
    start_log()
    directory = options.directory.resolve() / 'log'
    try:
        batch = read_batch(options.directory.resolve())
        directory.mkdir(exist_ok=True)
    except (ExposureError, OSError) as error:
        parser.error(in_words(error))
    if 'CRDS_PATH' in os.environ:
        os.environ['CRDS_PATH'] = os.path.abspath(os.environ['CRDS_PATH'])
    os.chdir(TOP)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        mine = list(batch.items())[options.share[0] - 1::options.share[1]]
        exposures = [look_up(dataset, lines, options.redo) for dataset, lines in mine]
        todo = [exposure for exposure in exposures if exposure.commands]
        if todo:
            jobs = min(options.jobs or default_jobs(todo), len(todo))
            log.info('%s: %d of %d exposures to do, %d at a time', options.directory, len(todo), len(exposures), jobs)
            run(todo, jobs, directory)
    except KeyboardInterrupt:
        log.error('stopped; start again to go on')
        os._exit(130)   # a thread may wait for a process that began just now; that ends with this one
    sys.stdout.write(summary(exposures, todo, directory) + '\n')
    return 1 if any(exposure.failure for exposure in todo) else 0


if __name__ == '__main__':
    run_command(main)
