"""What the tests of batches stand on: small files, and steps that only note that they ran."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from hdus import rate_hdus, uncal_hdus
from stage1.correction import STRIPING, WISPS, replace_rate
from stage1.exposure import ExposureError, primary_header
from stage1.files import workspace

SNOW, WISP, STRIPE = 'snowball_wrapper.py', 'wispsub.py', 'remstriping.py'
ENTRIES = {SNOW: 'Snowballs: flags grown', WISP: WISPS, STRIPE: STRIPING}
ROOT = Path(__file__).resolve().parent.parent

STAND_INS = {'PYTHONPATH': os.pathsep.join([str(ROOT / 'tests'), os.environ.get('PYTHONPATH', '')])}

TINY = {'SUBARRAY': 'TINY'}          # of no size that a header tells: nothing in a batch looks at pixels


def write(path, hdus):
    """Write a file, and the directory for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hdus.writeto(path, overwrite=True)
    return path


def write_uncal(path, detector='NRCA3', filter_='F200W', **cards):
    return write(path, uncal_hdus((1, 5, 8, 8), DETECTOR=detector, FILTER=filter_, **TINY | cards))


def write_rate(path, detector='NRCA3', filter_='F200W', history=(), **cards):
    return write(path, rate_hdus((8, 8), history, DETECTOR=detector, FILTER=filter_, **TINY | cards))


def write_top(top):
    """Write a top level whose scripts have their own command lines, but do no more than `process` below."""
    (top / 'batch_scripts').mkdir(parents=True)
    (top / 'stage1').symlink_to(ROOT / 'stage1')
    shutil.copy(ROOT / 'batch_scripts' / 'run_batch.py', top / 'batch_scripts')
    for script in ENTRIES:
        text = (ROOT / script).read_text('utf-8')
        text += f'\nimport functools, stand_ins\nprocess = functools.partial(stand_ins.process, {script!r})\n'
        (top / script).write_text(text, 'utf-8')
    return top


def process(script, name, options):
    """What `process` of a script does, without the pixels: note the step in $STAND_INS/done, and in HISTORY.

    $STAND_INS/fails and $STAND_INS/killed name what is to fail, and where the process dies; a step takes $STEP_SECONDS.
    """
    dataset, notes = Path(name).name.rsplit('_', 1)[0], Path(os.environ['STAND_INS'])
    entry, rate, this = ENTRIES[script], Path(options.output_dir) / f'{dataset}_rate.fits', f'{script} {dataset}'
    with workspace(rate.parent, dataset) as work:
        header = primary_header(rate) if rate.exists() else {}
        history = [str(card) for card in header.get('HISTORY', ())]
        if any(entry in card for card in history) and not options.redo:
            return
        with open(notes / 'begun', 'a') as file:
            file.write(f'{this}\n')
        time.sleep(float(os.environ.get('STEP_SECONDS', 0)))
        if told(notes / 'fails') == this:
            raise ExposureError('no good')
        if told(notes / 'killed') == this:
            os.kill(os.getpid(), signal.SIGKILL)
        void = list(ENTRIES.values())[list(ENTRIES).index(script):]         # this step, and those after it
        keep = [card for card in history if not any(other in card for other in void)]
        settings = {'WISPSCAL': options.scale, 'WISPMETH': 'fixed'} if script == WISP else {
            'STRPTHR': options.thresh, 'STRPMETH': options.method} if script == STRIPE else {}
        kept = {key: header[key] for key in ('WISPSCAL', 'WISPMETH') if len(keep) > 1 and key in header}
        write_rate(work / rate.name, history=[*keep, f'{entry}; {script} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}'],
                   **kept | settings)
        replace_rate(work, rate, [rate.name], (), primary_header(work / rate.name))
    with open(notes / 'done', 'a') as file:
        file.write(f'{this}{" --redo" * options.redo}\n')


def told(path):
    """Text of a file, '' when there is none."""
    return path.read_text() if path.exists() else ''


# .run files: script and options
FILES = {'detector1_and_snowballs': (SNOW, ()), 'wisp_subtraction': (WISP, ('--scale', '0.5')),
         'remstriping': (STRIPE, ())}


class Batch:
    """A batch of stand-in steps."""

    def __init__(self, top, directory, names, wisps=()):
        self.top, self.notes, self.directory = top, directory, directory / 'my A&A {} batch'
        self.directory.mkdir()
        for step in FILES:
            self.write(step, wisps if step == 'wisp_subtraction' else names)

    def write(self, step, names, *options):
        """Write the lines of a step."""
        script, how = FILES[step]
        ending = 'uncal' if script == SNOW else 'rate'
        lines = [shlex.join(('python', script, *how, *options, '--output_dir', f'{self.notes}/o',
                             f'{self.notes}/o/{name}_{ending}.fits')) + '\n' for name in names]
        (self.directory / f'{step}.run').write_text(''.join(lines))

    def start(self, *options, run=subprocess.Popen, **environment):
        """Start the batch as a user does."""
        return run([sys.executable, self.top / 'batch_scripts' / 'run_batch.py', self.directory, *options],
                   env=os.environ | STAND_INS | {'STAND_INS': str(self.notes)} | environment, text=True,
                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd='/')

    def run(self, *options, **environment):
        """Run the batch, and forget what was done before; returns exit status, summary and progress."""
        self.trace()
        done = self.start(*options, run=subprocess.run, **environment)
        assert 'Traceback' not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    def trace(self, name='done'):
        """What was done, or begun, in order; forgets it."""
        path = self.notes / name
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def wait_for(self, name, number=1):
        """Wait until so many steps have been begun, or done."""
        path, end = self.notes / name, time.monotonic() + 60
        while not path.exists() or len(path.read_text().splitlines()) < number:
            assert time.monotonic() < end
            time.sleep(0.05)


def lines_of(*names, wisps=()):
    """All lines of some exposures, as `Batch.trace` gives them, in any order."""
    return Counter(f'{script} {name}' for name in names for script in (SNOW, WISP, STRIPE)
                   if script != WISP or name in wisps)
