"""What the pipeline says: each step and download in a line, each warning once, and all of it as text."""

import contextlib
import io
import logging
import re
import time
import warnings

from stage1.exposure import one_line

log = logging.getLogger('nircam')


class Listener(logging.Handler):
    """Handler that keeps what the pipeline logs, and passes on what a user wants to see at once.

    Parameters
    ----------
    name : str
        Of the file that is worked on, for log lines.
    steps : bool
        Log each step when it ends.

    Attributes
    ----------
    text : StringIO
        Everything, with time, name and level of each message.
    warnings : list of str
        Without those of Python: divisions by zero and the like.
    """

    def __init__(self, name, steps=False):
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter('%(asctime)s %(name)s %(levelname)s %(message)s'))
        self.file_name, self.steps, self.text, self.warnings = name, steps, io.StringIO(), []
        self.started, self.skipped = time.monotonic(), False

    def emit(self, record):
        self.text.write(f'{self.format(record)}\n')
        message = ' '.join(record.getMessage().split())
        log.debug('%s: %s: %s', self.file_name, record.name, message)
        if record.levelno >= logging.WARNING:
            if record.name != 'py.warnings' and message not in self.warnings:
                self.warnings.append(message)
        elif message.startswith('Fetching '):
            log.info('%s: CRDS: %s', self.file_name, message)
        elif self.steps:
            self.follow(message)

    def follow(self, message):
        """Log a step when it ends."""
        if re.match(r'Step \w+ running with args', message):
            self.started, self.skipped = time.monotonic(), False
        elif message == 'Step skipped.':
            self.skipped = True
        elif (done := re.fullmatch(r'Step ([a-z]\w+) done\.?', message)) and not self.skipped:
            log.info('%s: %s, %.1f s', self.file_name, done[1], time.monotonic() - self.started)

    def reason(self, error):
        """Why a call into the pipeline failed, in one line; on some failures crds just ends the process."""
        if not isinstance(error, SystemExit):
            return one_line(error)
        fatal = [line for line in self.text.getvalue().splitlines() if 'FAILED' in line]
        return fatal[-1].split('(FATAL)')[-1].strip() if fatal else 'CRDS found neither a server nor a cache'

    @contextlib.contextmanager
    def listening(self):
        """Hear what jwst and crds print, log and warn, and keep it off the terminal."""
        with warnings.catch_warnings(), contextlib.redirect_stderr(self.text), contextlib.redirect_stdout(self.text):
            warnings.simplefilter('ignore')
            import crds.core.log  # noqa: F401  brings a handler of its own for the terminal; so does stpipe
            import stpipe  # noqa: F401
            # CRDS does not pass on to the root logger; stpipe of jwst 1.7.2 does, and writes to the terminal besides.
            handlers = {'': [self], 'CRDS': [self], 'stpipe': []}
            loggers = {logging.getLogger(name): new for name, new in handlers.items()}
            before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
            try:
                for logger, new in loggers.items():
                    logger.handlers[:] = new
                    logger.setLevel(logging.INFO)
                yield
            finally:
                for logger, old, level in before:
                    logger.handlers[:] = old
                    logger.setLevel(level)
