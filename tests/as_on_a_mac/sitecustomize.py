"""Takes away what macOS lacks, from every Python that is started with this directory in PYTHONPATH.

Users run these scripts on Linux and on macOS; Python's documentation marks what is for one of them only.
"""

import importlib
import os
import sys

LACKING = {
    'os': ('copy_file_range eventfd eventfd_read eventfd_write fdatasync getrandom getresgid getresuid getxattr '
           'listxattr memfd_create pidfd_open pipe2 posix_fadvise posix_fallocate removexattr sched_getaffinity '
           'sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setparam '
           'sched_setscheduler setns setresgid setresuid setxattr splice unshare O_DIRECT O_LARGEFILE O_NOATIME '
           'O_PATH O_RSYNC O_TMPFILE').split(),
    'resource': 'prlimit RUSAGE_THREAD'.split(),
    'select': 'epoll'.split(),
    'signal': 'pidfd_send_signal sigtimedwait sigwaitinfo SIGPOLL SIGPWR SIGRTMAX SIGRTMIN SIGSTKFLT'.split(),
    'time': 'clock_getcpuclockid pthread_getcpuclockid CLOCK_BOOTTIME CLOCK_TAI'.split(),
}
MISSING = '/proc/', '/dev/shm/', '/sys/'
HERE = os.getcwd()


def refuse(event, arguments):
    """Audit hook: there is no such file or directory, unless it is in the working directory."""
    if event in ('open', 'os.listdir', 'os.scandir', 'os.mkdir') and isinstance(arguments[0], str | bytes):
        path = os.fsdecode(arguments[0])
        if f'{path}/'.startswith(MISSING) and not path.startswith(HERE):
            raise FileNotFoundError(2, 'No such file or directory', path)


if __name__ == 'sitecustomize':
    for module_name, names in LACKING.items():
        module = importlib.import_module(module_name)
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    sys.addaudithook(refuse)
