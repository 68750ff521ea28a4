"""What the benchmarks share: time, memory, workers that are processes of their own, and a line about the
machine"""

import ctypes, gc, json, os, platform, subprocess, sys, time
from importlib.metadata import version
from pathlib import Path


def status(key):
    "Bytes of a line of /proc/self/status: VmRSS now, VmHWM the most so far"
    return int(next(l for l in open('/proc/self/status') if l.startswith(key)).split()[1]) * 1024


def peak(f):
    "(Result, bytes that the call took beyond what was there before). Linux only"
    gc.collect()
    ctypes.CDLL('libc.so.6').malloc_trim(0)
    start = status('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')
    out = f()
    return out, status('VmHWM') - start


def timed(f):
    "(Result, seconds)"
    gc.collect()
    start = time.perf_counter()
    out = f()
    return out, time.perf_counter() - start


def median(xs):
    return sorted(xs)[len(xs) // 2]


class Worker:
    "A process that gets one value of JSON a line, and gives one back. It is in `serve`"

    def __init__(self, *cmd, env=()):
        env = os.environ | dict(PYTHONWARNINGS='ignore') | dict(env)
        self.p = subprocess.Popen(
            [sys.executable, *cmd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.read()  # it is ready

    def read(self):
        while line := self.p.stdout.readline():  # libraries may print lines of their own
            if line.startswith('> '):
                return json.loads(line[2:])
        raise SystemExit(f'the worker ended with code {self.p.wait()}')

    def ask(self, what=None):
        print(json.dumps(what), file=self.p.stdin, flush=True)
        return self.read()

    def finish(self):
        "What it says at its end"
        self.p.stdin.close()
        last = self.read()
        self.p.wait()
        return last


def serve(reply, at_end=lambda: None):
    """In a `Worker`'s process: say that it is ready, then give `reply` of each value that comes in, and
    `at_end()`"""

    def say(what):
        print('>', json.dumps(what), flush=True)

    say('ready')
    for line in sys.stdin:
        say(reply(json.loads(line)))
    say(at_end())


def versions(*names):
    "name version, name version, for what is installed"
    out = []
    for n in names:
        try:
            out.append(f'{n} {version(n)}')
        except ImportError:
            pass
    return ', '.join(out)


def cpu_name():
    lines = open('/proc/cpuinfo') if os.path.exists('/proc/cpuinfo') else []
    return next((l.split(':')[1].strip() for l in lines if l.startswith('model name')), platform.machine())


def commit_of(folder):
    "The commit of a checkout, with -dirty where it was changed since"
    cmd = ['git', '-C', str(folder), 'describe', '--always', '--dirty']
    return subprocess.run(cmd, capture_output=True, text=True).stdout.strip() or 'unknown'


def machine(*names):
    "A line: processor, cores, versions, commit"
    return (
        f'{cpu_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {versions("torch", *names)}; '
        f'commit {commit_of(Path(__file__).parent)}'
    )


def batch(n, bs, device='cpu'):
    "A training batch: noise, and a box of kidney with a box of tumor in it"
    import torch

    g = torch.Generator().manual_seed(0)
    x = torch.randn(bs, 1, n, n, n, generator=g).clamp(-1, 1)
    labels = torch.zeros(bs, n, n, n, dtype=torch.uint8)
    labels[:, n // 4 : n // 2, n // 4 : n // 2, n // 4 : 3 * n // 4] = 1
    labels[:, n // 3 : n // 2, n // 3 : n // 2, n // 3 : n // 2] = 2
    return x.to(device), labels.to(device)
