"""The command line of all scripts, also those of batch_scripts: log, settings and options, one file after the other."""

import argparse
import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stage1.exposure import ExposureError, one_line

VARIABLE = re.compile(r'\$\w+|\$\{[^}]*\}')

log = logging.getLogger('nircam')


# --- settings and options ----------------------------------------------------------------------------

def new_parser(doc, files='', what=''):
    """Parser of a command with this docstring, for some `files` if any: 'images', each, in words, a 'rate image'."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if files:
        parser.add_argument(files, nargs='+', metavar=files[:-1].upper(),
                            help=f'{what}: its path, or its name in --input_dir')
    return parser


@dataclass(frozen=True)
class Kind:
    """What a setting may be; an argument type for `argparse`."""

    allowed: str            # in words, to follow 'is not'
    metavar: str            # in the help
    make: Callable          # returns the value that is meant, or raises ValueError or TypeError

    def __call__(self, text):
        try:
            return self.make(text)
        except (TypeError, ValueError):
            raise argparse.ArgumentTypeError(f'{text!r} is not {self.allowed}') from None


def add_setting(parser, option, name, value, kind, help_text):
    """Add an option, '--thresh', whose default is a setting, 'MASKTHRESH', with its `value` at the top of a script.

    Both are checked alike; a wrong setting ends the program with status 2, without the usage, which would not help. A
    `SWITCH` has an opposite, `--no-x`.
    """
    try:
        default = kind(value)
    except argparse.ArgumentTypeError as error:
        parser.exit(2, f'{parser.prog}: error: the setting {name}: {error}\n')
    shown = repr(value).replace('%', '%%')
    how = {'action': argparse.BooleanOptionalAction} if kind is SWITCH else {'type': kind, 'metavar': kind.metavar}
    parser.add_argument(option, default=default, help=f'{help_text} [{name} = {shown}]', **how)


def add_shared(parser, input_name, input_dir, output_dir, redo):
    """Add what every script has: two directories, the first by the setting `input_name`, `--redo` and `--verbose`."""
    add_setting(parser, '--input_dir', input_name, input_dir, DIRECTORY, 'where bare file names are looked for')
    add_setting(parser, '--output_dir', 'OUTPUTDIR', output_dir, DIRECTORY, 'for the products')
    parser.add_argument('--redo', action='store_true', help=redo)
    parser.add_argument('--verbose', action='store_true', help='show what the pipeline logs')


def number_in(low, high):
    """Kind of a setting: a finite number from `low` to `high`."""
    def number(value):
        if isinstance(value, bool) or not low <= float(value) <= high:  # also NaN
            raise ValueError
        return float(value)
    return Kind(f'a number from {low:g} to {high:g}', 'NUMBER', number)


def choice(*words):
    """Kind of a setting: one of some words."""
    return Kind(f"one of {', '.join(map(repr, words))}", '|'.join(words), lambda value: words[words.index(value)])


def expanded(text):
    """A path in which ~ and $NAME stand for what they do in a shell; astropy and jwst would take them so."""
    if not isinstance(text, str | Path) or not str(text):
        raise ValueError
    path = Path(os.path.expandvars(os.path.expanduser(text)))
    unknown = VARIABLE.search(str(path))
    if unknown and not path.exists():
        raise argparse.ArgumentTypeError(f'{str(text)!r}: no variable {unknown[0]} is set')
    return path


def present(text):
    """The path of a directory that is there."""
    path = expanded(text)
    if not path.is_dir():
        raise ValueError
    return path


def true_or_false(value):
    """The value itself, when it is one of these: 0 and 1 are not."""
    if not isinstance(value, bool):
        raise ValueError
    return value


SWITCH = Kind('True or False', '', true_or_false)
DIRECTORY = Kind('the name of a directory, in quotes', 'DIR', expanded)
EXISTING = Kind('a directory that is there', 'DIR', present)
FILE = Kind('the name of a file', 'FILE', expanded)
FILE_OR_NONE = Kind('the name of a file, in quotes, or None', 'FILE',
                    lambda value: None if value in (None, 'None') else expanded(value))


# --- log and files -----------------------------------------------------------------------------------

class LineFormatter(logging.Formatter):
    """One line for each message: names and headers may hold line breaks and terminal escapes."""

    def format(self, record):
        return ''.join(c if c.isprintable() else '?' for c in super().format(record))


def start_log(verbose=False):
    """Send our log lines to standard error, those of the pipeline as well if `verbose`."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter('%(asctime)s %(levelname)s %(message)s', '%H:%M:%S'))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    warnings.simplefilter('ignore')  # of packages, about code and odd headers; the log says what matters


def run_each(names, process, options):
    """Call `process(name, options)` for every file; one that fails does not stop the others.

    `names` are paths, or file names in `options.input_dir`; `process` may raise ExposureError, or anything else.
    Returns the exit status: 0 when all were done or rightly left alone, 1 when any failed, 130 after Ctrl-C.
    """
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm
    start_log(options.verbose)
    failed = []
    show = len(names) > 1 and sys.stderr.isatty()
    with logging_redirect_tqdm([log]) if show else contextlib.nullcontext():
        for name in tqdm(names, unit='file', disable=not show):
            try:
                process(name, options)
            except KeyboardInterrupt:
                log.error('%s: interrupted', name)
                return 130
            except (Exception, SystemExit) as error:
                log.error('%s: %s', name, explanation(error, name))
                failed.append(name)
    if failed and len(names) > 1:
        log.error('%d of %d files failed: %s', len(failed), len(names), ' '.join(map(str, failed)))
    return 1 if failed else 0


def run_command(main):
    """Run `main` and end with its exit status, without a traceback when it is stopped or nobody reads what it says."""
    sys.stdout = sys.stdout or open(os.devnull, 'w')            # where the shell has closed it
    sys.stdout.reconfigure(errors='backslashreplace')           # of names that it cannot write
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        log.error('stopped')
        os._exit(130)               # waits for no process that it may have started
    except OSError as error:
        log.error('%s', one_line(error))
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # for what Python writes at its end
        status = 1
    sys.exit(status)


def explanation(error, name):
    """What to tell the user when the file `name` failed with `error`."""
    if isinstance(error, ExposureError):
        return str(error).removeprefix(f'{name} ')
    return one_line(error) if isinstance(error, OSError) else f'stopped unexpectedly ({one_line(error)})'
