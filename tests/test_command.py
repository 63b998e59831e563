"""The command line of all three scripts: settings, options, messages."""

import os
import re
from types import SimpleNamespace

import remstriping
import snowball_wrapper
import wispsub
from conftest import CODE, RATE, ROOT, content
from hdus import rate_hdus
from stage1.command import run_each
from stage1.exposure import ExposureError

import pytest

SCRIPTS = wispsub, remstriping, snowball_wrapper

# The settings at the top of each script, by option, and a value of each that is allowed and not the default
SETTINGS = {
    wispsub: {'method': ('METHOD', 'adaptive'), 'input_dir': ('INPUTDIR', 'a b'), 'output_dir': ('OUTPUTDIR', '100%d'),
              'wisp_dir': ('WISPDIR', 'w')},
    remstriping: {'thresh': ('MASKTHRESH', 0.15), 'method': ('METHOD', 'adaptive'), 'input_dir': ('INPUTDIR', 'a'),
                  'output_dir': ('OUTPUTDIR', 'b'), 'within_rows': ('WITHIN_ROWS', False)},
    snowball_wrapper: {'input_dir': ('UNCALDIR', 'a'), 'output_dir': ('OUTPUTDIR', 'b'), 'params': ('PARAMFILE', 'p'),
                       'delinterim': ('DELINTERIM', True), 'maxcores': ('MAXCORES', 'all')}}
DEFAULTS = [(script, option, *rest) for script, settings in SETTINGS.items() for option, rest in settings.items()]


def run(script, *options):
    """Run a script on an image that is not there, with what it needs besides `options`."""
    needed = ['--scale', '1'] if script is wispsub and not options else []
    return script.main(['x_rate.fits', *needed, *options])


@pytest.mark.parametrize('script', SCRIPTS)
def test_every_setting_of_the_block_at_the_top_is_an_option(script):
    path = ROOT / f'{script.__name__}.py'
    text = path.read_text()
    assert text.startswith('#!/usr/bin/env python\n') and os.access(path, os.X_OK)      # they start alike
    block = text.split('# --- settings, each of them also an option')[1].split('\n', 2)[2].split('\n\n')[0]
    assert set(re.findall(r'^([A-Z_]+) = ', block, re.M)) == {name for name, _ in SETTINGS[script].values()}


@pytest.mark.parametrize(('script', 'option', 'name', 'value'), DEFAULTS)
def test_help_names_the_setting_of_each_option_and_its_default(script, option, name, value, monkeypatch):
    for setting in getattr(script, name), value:
        monkeypatch.setattr(script, name, setting)
        parser = script.build_parser()
        text, = (text for text in re.split(r'\n  (?=-)', parser.format_help()) if re.match(f'--{option}[ ,]', text))
        assert f'[{name} = {setting!r}]' in ' '.join(text.split())
    needed = ['--fit_scaling'] if script is wispsub else []
    assert str(getattr(parser.parse_args(['x', *needed]), option)) == str(value)
    assert option != 'params' or parser.parse_args(['x', '--params', 'None']).params is None


WRONG = [*((script, 'METHOD', value, "one of 'dr05', 'adaptive'") for script in (wispsub, remstriping)
      for value in ('adaptiv', '', None, 5, ['dr05'])),
    *((remstriping, 'MASKTHRESH', value, 'a number from 0 to 1')
      for value in (2, -0.1, 'x', '', None, True, float('nan'))),
    *((snowball_wrapper, 'MAXCORES', value, "one of 'none', 'quarter', 'half', 'all'") for value in ('two', 2, None)),
    *((script, name, value, 'True or False') for value in ('False', 'no', 0, 1, None)
      for script, name in ((snowball_wrapper, 'DELINTERIM'), (remstriping, 'WITHIN_ROWS'))),
    *((snowball_wrapper, 'PARAMFILE', value, 'the name of a file, in quotes, or None') for value in (5, '', False)),
    *((script, name, value, 'the name of a directory, in quotes') for script, _, name, _ in DEFAULTS
      if name.endswith('DIR') for value in (5, '', None))]


@pytest.mark.parametrize(('script', 'name', 'value', 'allowed'), WRONG)
def test_a_wrong_setting_is_named_with_what_is_allowed_before_any_work(script, name, value, allowed, tmp_path,
                                                                       monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, name, value)
    with pytest.raises(SystemExit) as stop:
        run(script)
    line, = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and f'the setting {name}: {value!r} is not {allowed}' in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('script', 'options', 'message'), [
    *((wispsub, [f'--scale={value}'], f'--scale: {value!r} is not a number from 0 to 10')
      for value in ('nan', 'inf', '-inf', '-0.1', '10.1', 'one', '')),
    *((remstriping, [f'--thresh={value}'], f'--thresh: {value!r} is not a number from 0 to 1')
      for value in ('nan', 'inf', '-0.1', '1.1', 'half')),
    *((script, ['--method', 'best'], "--method: 'best' is not one of 'dr05', 'adaptive'") for script in SCRIPTS[:2]),
    *((script, [option, ''], f"{option}: '' is not the name of a directory") for script in SCRIPTS
      for option in ('--input_dir', '--output_dir')),
    (wispsub, ['--wisp_dir', ''], "--wisp_dir: '' is not the name of a directory"),
    (wispsub, ['--output_dir', '$UNKNOWN/x'], "'$UNKNOWN/x': no variable $UNKNOWN is set"),
    (wispsub, ['--redo'], 'one of the arguments --fit_scaling --scale is required'),
    (wispsub, ['--scale', '1', '--fit_scaling'], 'not allowed with argument'),
    (snowball_wrapper, ['--maxcores', '3'], "--maxcores: '3' is not one of 'none', 'quarter', 'half', 'all'"),
    (snowball_wrapper, ['--params', ''], "--params: '' is not the name of a file"),
    (snowball_wrapper, ['--params', 'none.asdf'], 'none.asdf cannot be read as a parameter file')])
def test_misuse_is_a_usage_error(script, options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(script, *options)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith('usage:') and message in err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_one_bad_file_does_not_stop_the_others_but_an_interrupt_does(capsys):
    done = []

    def work(name, options):
        done.append(name + str(options.verbose))
        if name in errors:
            raise errors[name]

    errors = {'b': ExposureError('is empty'), 'c': OSError(28, 'No space left on device'), 'd': SystemExit(0),
              'e': MemoryError(), 'f': RuntimeError('two\nlines')}
    assert run_each('abcdefg', work, SimpleNamespace(verbose=False)) == 1
    err = capsys.readouterr().err
    assert done == [f'{name}False' for name in 'abcdefg'] and 'Traceback' not in err
    assert 'b: is empty' in err and 'No space left' in err and '5 of 7 files failed: b c d e f' in err
    assert run_each('ag', work, SimpleNamespace(verbose=False)) == 0
    errors['a'] = KeyboardInterrupt()
    assert run_each('ag', work, SimpleNamespace(verbose=False)) == 130 and done[-1] == 'aFalse'
    assert 'a: interrupted' in capsys.readouterr().err


def test_log_lines_hold_no_line_breaks_or_escapes(capsys):
    def fail(*_):
        raise ExposureError('a\nb\x1b[2J\x07é')
    assert run_each(['x\ny'], fail, SimpleNamespace(verbose=False)) == 1
    line, = capsys.readouterr().err.splitlines()
    assert line.endswith('ERROR x?y: a?b?[2J?é')


HOSTILE = ['$(touch gotcha)', '`touch gotcha`', "'; touch gotcha; '", '<script>x</script>', '../../../gotcha', '%s%s%n',
           '{0.__class__}', '\\x1b[2J']


@pytest.mark.parametrize('text', HOSTILE)
@pytest.mark.parametrize('keyword', ['INSTRUME', 'DETECTOR', 'FILTER', 'PUPIL', 'SUBARRAY'])
def test_header_strings_are_only_quoted(text, keyword, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rate_hdus((8, 8), **{keyword: text}).writeto('x_rate.fits')
    before = content(tmp_path)
    assert run(wispsub) == run(remstriping) == 1
    assert content(tmp_path) == before
    assert all('x_rate.fits' in line for line in capsys.readouterr().err.splitlines())


def test_nothing_is_unpickled_or_evaluated():
    for path in CODE:
        text = path.read_text()
        assert not re.search(r'allow_pickle|import pickle|\beval\(|\bexec\(|os\.system|shell=True|yaml', text), path


@pytest.mark.usefixtures('flat_of_one')
def test_odd_file_names_work(place, monkeypatch):
    monkeypatch.chdir(place / 'calibrated')
    odd = ['a space_rate.fits', 'ünïcode_rate.fits', '-dash_rate.fits', "it's $HOME_rate.fits"]
    for name in odd:
        os.link(RATE, name)
    os.remove(RATE)
    assert wispsub.main(['--scale', '0.6', '--wisp_dir', '../wisps', '--output_dir', '.', '--', *odd]) == 0
    assert sorted(os.listdir('.')) == sorted(odd + [name.replace('_rate', '_rate_prewisp') for name in odd])
