"""A table of bad inputs: what is written, what is called, and the exact outcome.

An `Entry` has a name, a kind (a heading of the table), a function that writes the input into a folder, what
to run on it, and the outcome: `Accepted` with the value, or `Refused` with words that stand in the sentence:
the file, what was found, what to do. `run_table` runs entries and prints what is wrong.

    Entry('a folder instead of a file', 'whose fault is it', lambda d: (d/'a.nii').mkdir(),
          lambda d: read_ct(d/'a.nii'), Refused('a.nii', 'is a folder', 'NIfTI'))
    Entry('two scans, one broken', 'whose fault is it', write_two,
          Command('kits-predict', RUN, '{d}/scans', '{d}/out', '--no-tta'),
          Refused('b.nii.gz', 'ends early', 'copy or download it again', makes=['out/prediction_a.nii.gz']))

A function is called with the folder. `CaseError` and `ValueError` are refusals; any other exception is a
traceback and wrong. A command runs in this process (importing PyTorch takes seconds), or as a process of its
own (`process=True`); a refusal is exit code 1 or 2 with words on stderr, and without a traceback. Afterwards
no file below the folder may be half-written, and no temporary file may be left. `makes` are patterns of what
must have been made below the folder, `only` says that nothing else may have been."""
import contextlib, fnmatch, gzip, io, json, os, re, runpy, subprocess, sys
import tempfile, time, traceback, warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = ROOT/'nbs'/'trained'/'tiny'      # a small trained model
BIN = Path(sys.executable).parent
SECONDS = 300                          # a process that takes longer hangs


class Command:
    "A command line; `{d}` in an argument becomes the folder"
    def __init__(self, *argv, process=False, env=None):
        self.argv, self.process, self.env = [str(o) for o in argv], process, env or {}

    def __call__(self, folder):
        argv = [o.replace('{d}', str(folder)) for o in self.argv]
        return self._process(argv, folder) if self.process else self._here(argv)

    def _process(self, argv, folder):
        env = os.environ | dict(PYTHONWARNINGS='ignore') | self.env
        try: p = subprocess.run([BIN/argv[0], *argv[1:]], cwd=folder, env=env, timeout=SECONDS, text=True,
                                stdin=subprocess.DEVNULL, capture_output=True, errors='replace')
        except subprocess.TimeoutExpired: return Said(None, '', f'did not end within {SECONDS} s')
        return Said(p.returncode, p.stdout, p.stderr)

    def _here(self, argv):
        out, err, before, code = io.StringIO(), io.StringIO(), sys.argv, 0
        sys.argv = [str(BIN/argv[0]), *argv[1:]]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _environment(self.env):
                try: runpy.run_path(sys.argv[0], run_name='__main__')
                except SystemExit as e:
                    code = e.code if isinstance(e.code, int) else int(e.code is not None)
                    if isinstance(e.code, str): print(e.code, file=sys.stderr)
                except BaseException: code = 1; traceback.print_exc()
        finally: sys.argv = before
        return Said(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _environment(env):
    before = os.environ.copy()
    os.environ.update(env)
    try: yield
    finally: os.environ.clear(); os.environ.update(before)


@dataclass
class Said:
    "What a command printed, and its exit code (None: it did not end)"
    code: int
    out: str
    err: str

    @property
    def text(self): return self.out + self.err


class Accepted:
    """The call returns `value` (arrays and numbers: nearly equal), or `value` is a function that the result
    must pass. Of a command, `value` is a function of the `Said`, or words that its output must contain"""
    def __init__(self, value=None, makes=(), only=False):
        self.value, self.makes, self.only = value, makes, only

    def wrong(self, result, error):
        if error is not None: return f'refused or broken: {type(error).__name__}: {error}'
        if isinstance(result, Said) and result.code != 0: return f'exit {result.code}: {result.text[-500:]}'
        if callable(self.value):
            try: right = self.value(result)
            except Exception as e: return f'the check of the result fails with {type(e).__name__}: {e}'
            return '' if right is None or np.all(right) else f'the result is {_short(result)}'
        if isinstance(result, Said):
            missing = [o for o in _words(self.value) if o.lower() not in _flat(result.text)]
            return f'missing words {missing} in: {result.text[-600:]}' if missing else ''
        return '' if self.value is None or _equal(result, self.value) else f'the result is {_short(result)}'


class Refused:
    "A sentence (or several) that contains all `words`, whatever their case; a command's exit code is not 0"
    def __init__(self, *words, makes=(), only=True, longest=2000):
        self.words, self.makes, self.only, self.longest = words, makes, only, longest

    def wrong(self, result, error):
        if isinstance(result, Said):
            if result.code == 0: return f'accepted: {result.text[-500:]}'
            text = result.text
        elif error is None: return f'accepted: {_short(result)}'
        else: text = str(error)
        missing = [o for o in self.words if o.lower() not in _flat(text)]
        if missing: return f'missing words {missing} in: {text[-700:]}'
        return f'{len(text)} characters: {text[:200]} ...' if len(text) > self.longest else ''


@dataclass
class Entry:
    "A bad (or odd, but good) input and what must come of it"
    name: str          # What is wrong with the input
    kind: str          # Heading
    write: object      # Function of a folder that writes the input there; None for nothing
    run: object        # Function of the folder, or a `Command`
    outcome: object    # `Accepted` or `Refused`
    needs: str = ''    # A module without which the entry is left out
    tags: tuple = field(default=())   # For the owner's own use


def _words(value): return [value] if isinstance(value, str) else list(value or ())
def _flat(text): return re.sub(r'\s+', ' ', text).lower()
def _short(o): return repr(o)[:300]


def _equal(a, b):
    if isinstance(b, (tuple, list)): return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(b, (float, np.ndarray)):
        return np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-5, atol=1e-6)
    return a == b


# What was written

def files_of(folder):
    "{path below the folder: (size, time of change)}"
    out = {}
    for p in sorted(Path(folder).rglob('*')):
        with contextlib.suppress(OSError):
            if p.is_file(): out[str(p.relative_to(folder))] = (p.stat().st_size, p.stat().st_mtime_ns)
    return out


def broken(path):
    "What is wrong with a written file, or ''"
    path = Path(path)
    try:
        if path.name.endswith(('.nii', '.nii.gz')):
            import nibabel as nib
            np.asanyarray(nib.load(path).dataobj)
            if path.suffix == '.gz':
                with gzip.open(path) as f:
                    while f.read(1 << 20): pass
        elif path.suffix == '.npy': np.load(path, allow_pickle=False)
        elif path.suffix in ('.npz',): [v for v in np.load(path, allow_pickle=False).values()]
        elif path.suffix == '.json': json.loads(path.read_text())
        elif path.suffix == '.safetensors':
            from safetensors import safe_open
            with safe_open(path, 'np') as f: [f.get_slice(k) for k in f.keys()]
        elif path.suffix == '.zip':
            import zipfile
            with zipfile.ZipFile(path) as z: return z.testzip() or ''
        elif path.suffix == '.b2nd':
            import blosc2
            blosc2.open(str(path), mode='r')[...]
        elif path.stat().st_size == 0: return 'empty'
    except Exception as e: return f'{type(e).__name__}: {e}'
    return ''


def check_written(folder, before, outcome):
    "What is wrong with the files that a call has left"
    after = files_of(folder)
    new = [k for k, v in after.items() if before.get(k) != v]
    for k in new:
        if any(o.startswith('.') for o in Path(k).parts): return f'a temporary file is left: {k}'
        if why := broken(Path(folder)/k): return f'half-written: {k} ({why})'
    if gone := [k for k in before if k not in after]: return f'the input is gone: {gone[:3]}'
    for o in outcome.makes:
        if not any(fnmatch.fnmatch(k, o) for k in new): return f'{o} was not made; made: {new[:5]}'
    extra = [k for k in new if not any(fnmatch.fnmatch(k, o) for o in outcome.makes)]
    return f'made, too: {extra[:5]}' if outcome.only and extra else ''


# Running

def refusals():
    "Exceptions that are a sentence for a caller"
    from kits_nb.core import CaseError
    return CaseError, ValueError


def run_entry(entry, folder):
    "'' or what is wrong"
    folder = Path(folder)
    if entry.write: entry.write(folder)
    before, result, error = files_of(folder), None, None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: result = entry.run(folder)
        except refusals() as e: error = e
        except Exception: return 'a traceback:\n' + traceback.format_exc(limit=-4)
    if isinstance(result, Said):
        if result.code is None: return result.err
        if 'Traceback' in result.text: return f'a traceback:\n{result.text[-1500:]}'
        if result.code < 0 or result.code > 2: return f'exit {result.code}: {result.text[-500:]}'
        if result.code and not result.text.strip(): return 'an exit code without a word'
    return entry.outcome.wrong(result, error) or check_written(folder, before, entry.outcome)


def run_table(entries, title='', only='', echo=print):
    "Counts: tried, refused, accepted, wrong, left out; each wrong entry is printed"
    n, start = Counter(tried=0, refused=0, accepted=0, wrong=0), time.time()
    names = [e.name for e in entries]
    assert len(set(names)) == len(names), 'two entries have one name'
    for e in entries:
        if only not in e.name: continue
        if e.needs and not _installed(e.needs): n['left out'] += 1; continue
        with tempfile.TemporaryDirectory(prefix='trust-') as d:
            wrong = run_entry(e, Path(d).resolve())
            for p in Path(d).rglob('*'):            # folders that an entry has locked
                with contextlib.suppress(OSError): p.is_symlink() or p.is_dir() and p.chmod(0o755)
        n['tried'] += 1
        n['wrong' if wrong else 'refused' if isinstance(e.outcome, Refused) else 'accepted'] += 1
        if wrong: echo(f'WRONG {e.kind}: {e.name}: {wrong}')
    n['seconds'] = time.time() - start
    if title: echo(line(title, n))
    return n


def _installed(module):
    import importlib.util
    return importlib.util.find_spec(module) is not None


def line(title, n):
    "One line of counts"
    said = [f'{v} {k}' for k, v in n.items() if k != 'seconds' and (v or k == 'wrong')]
    return f'{title}: {", ".join(said)}' + (f' ({n["seconds"]:.0f} s)' if 'seconds' in n else '')


def kinds(entries):
    "How many entries each kind has"
    return Counter(e.kind for e in entries)


def main(entries, title):
    "For a module of entries: `python tools/trust/NAME.py [words of a name]`; returns the counts"
    return run_table(entries, title, ' '.join(sys.argv[1:]) if _is_script(title) else '')


def _is_script(title): return Path(sys.argv[0]).name != 'check_trust.py'
