"""Faults while the commands work: `python tools/trust/faults.py [words of a name]`

Processes are ended by signals at random moments, run out of disk, memory or permission, or meet a second
command in the same folder. Each time: the exit code, a sentence and no traceback, no half-written file under
a final name, and a rerun that completes with the result that an undisturbed run has.

What a signal hits is a command as a user starts it. Undisturbed runs, reruns and what needs no new process
are forks of one that has imported PyTorch, which takes longer than all the work here. Two faults are tried at
a time."""
import hashlib, os, random, runpy, shutil, signal, subprocess, sys, tempfile, time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import table
from table import BIN, RUN, broken

QUIET = dict(OMP_NUM_THREADS='1', OMP_WAIT_POLICY='PASSIVE', CUDA_VISIBLE_DEVICES='',
             PYTHONWARNINGS='ignore')
ENV = os.environ | QUIET
WORDS = {signal.SIGTERM: 'stopped by the signal SIGTERM', signal.SIGINT: 'interrupted'}
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
FORKS = get_context('forkserver')
PRELOAD = ['kits_nb.data.store', 'kits_nb.inference.cases', 'kits_nb.evaluation.morphometry',
           'kits_nb.training.ensemble', 'kits_nb.training.distributed']
TRAIN = ('--epochs', '4', '--crop', '16', '--per-case', '2', '--n-folds', '3', '--device', 'cpu',
         '--threads', '1')
PREDICT = '--no-tta', '--device', 'cpu'


def start(*line, before=()):
    "A command as a process"
    line = [*before, BIN/line[0], *map(str, line[1:])]
    return subprocess.Popen(line, env=ENV, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, errors='replace', start_new_session=True)


def ended(p, seconds=300):
    "(exit code, what it said)"
    out, err = p.communicate(timeout=seconds)
    return p.returncode, out + err


def run(*line): return ended(start(*line))


class Forked:
    "A command in a fork of a process that has imported PyTorch; as `start` gives it, so far as it is used"
    def __init__(self, *line):
        self.file = tempfile.NamedTemporaryFile('r', errors='replace')
        line = [str(o) for o in line]
        if not line[0].endswith('.py'): line[0] = str(BIN/line[0])
        self.process = FORKS.Process(target=_become, args=(line, self.file.name))
        self.process.start()
        self.pid, self.returncode = self.process.pid, None

    def poll(self): return self.process.exitcode
    def communicate(self, timeout=None):
        self.process.join(timeout)
        self.returncode = self.process.exitcode
        return self.file.read(), ''


def _become(line, file):
    fd = os.open(file, os.O_WRONLY | os.O_APPEND)
    for o in (1, 2): os.dup2(fd, o)
    sys.argv = line
    runpy.run_path(line[0], run_name='__main__')


def quick(*line): return ended(Forked(*line))


def half_written(folder):
    "Files under a final name that cannot be read; hidden ones are leftovers"
    for o in sorted(Path(folder).rglob('*')):
        if o.is_file() and not any(k.startswith('.') for k in o.relative_to(folder).parts):
            if why := broken(o): return f'half-written: {o.name} ({why})'
    return ''


def leftovers(folder): return [o.name for o in Path(folder).rglob('.*')]


def content(folder):
    "{file: fingerprint} of what must be the same in two runs; times and records are not"
    from safetensors import safe_open
    out = {}
    for o in sorted(Path(folder).rglob('*')):
        if not o.is_file() or o.suffix in ('.json', '.csv'): continue
        data = o.read_bytes()
        if o.name == 'state.safetensors':
            with safe_open(o, 'np') as f: data = b''.join(f.get_tensor(k).tobytes() for k in sorted(f.keys())
                                                          if not k.startswith('rng'))
        out[str(o.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return out


class Place:
    "Phantoms, prepared cases, and the results of undisturbed commands"
    def __init__(self, d):
        from kits_nb.data.phantom import write_phantoms
        self.d = d
        write_phantoms(d/'data', 4, shape=(24, 56, 60), spacing=(8., 6., 6.))
        self.commands = dict(prepare=('kits-prepare', d/'data', '{out}', '--spacing', '4'),
                             train=('kits-train', d/'right'/'prepare', '{out}', *TRAIN, '--resume'),
                             predict=('kits-predict', RUN, d/'data', '{out}', *PREDICT))
        self.right = {}
        for name in self.commands:
            code, said = quick(*self.line(name, d/'right'/name))
            assert code == 0, said
            self.right[name] = content(d/'right'/name)

    def line(self, name, out): return [str(o).replace('{out}', str(out)) for o in self.commands[name]]

    def completes(self, name, out):
        "'' or what is wrong with a rerun"
        code, said = quick(*self.line(name, out))
        if code: return f'the rerun ends with {code}: {said[-300:]}'
        if left := leftovers(out): return f'left behind: {left[:3]}'
        return '' if content(out) == self.right[name] else 'the rerun has another result'


def watch(p, out, seconds):
    "Wait until a process has begun its work and to write, and a random time more"
    import psutil
    while p.poll() is None and psutil.Process(p.pid).memory_info().rss < 200e6: time.sleep(.01)    # imports
    while p.poll() is None and not (Path(out).exists() and any(Path(out).iterdir())): time.sleep(.01)
    time.sleep(seconds)


def signalled(place, name, sig, times=3):
    "A command that gets a signal again and again, then completes: ('' or what is wrong, signals that hit)"
    out, hits, rng = place.d/'signals'/f'{name}{sig}', 0, random.Random(f'{name} {sig}')
    for _ in range(times):
        p = start(*place.line(name, out))
        watch(p, out, rng.random()*1.5)
        hit = p.poll() is None
        if hit: os.killpg(p.pid, sig)
        code, said = ended(p)
        hits += hit and code != 0
        if wrong := half_written(out) if out.exists() else '': return wrong, hits
        if 'Traceback' in said: return f'a traceback: {said[-600:]}', hits
        if hit and code and sig != signal.SIGKILL:
            if leftovers(out): return f'left behind after {sig.name}: {leftovers(out)[:3]}', hits
            done = content(out) == place.right[name]           # it was hit when all was written
            said_so = WORDS[sig] in said and code == CODES[sig]
            if not said_so and not done: return f'exit {code}, no word: {said[-200:]}', hits
    return place.completes(name, out), hits


EARLY = """import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]: os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv[0] = 'kits-predict'
import kits_nb.cli"""


def early():
    "Ctrl-C while a command still imports what it needs to read its options"
    for name in ('fastcore.script', 'kits_nb.core', 'concurrent.futures'):
        p = subprocess.run([sys.executable, '-c', EARLY, name], env=ENV, capture_output=True, text=True)
        if (p.returncode, p.stderr) != (130, 'interrupted\n'):
            return f'at {name}: exit {p.returncode}, {p.stderr}'
    return ''


# Disk, permissions, memory, company

def small_files(place, name):
    "No file may grow beyond a limit, as on a full disk"
    out, most = place.d/'full'/name, 1000 if name == 'predict' else 20_000
    if not shutil.which('prlimit'): return None
    code, said = ended(start(*place.line(name, out), before=['prlimit', f'--fsize={most}']))
    return refused(code, said, out, 'full', 'large', 'written') or place.completes(name, out)


def locked(place, name):
    "An output that may not be written to"
    folder = place.d/'locked'/name
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    root = os.geteuid() == 0
    drop = ['setpriv', '--bounding-set=-dac_override', '--inh-caps=-dac_override'] if root else []
    if drop and not shutil.which('setpriv'): return None
    code, said = ended(start(*place.line(name, folder/'out'), before=drop))
    folder.chmod(0o755)
    wrong = refused(code, said, folder, 'permission', 'allowed', 'may not')
    return wrong or place.completes(name, folder/'out')


def refused(code, said, out, *words):
    if code == 0: return 'it was accepted'
    if 'Traceback' in said: return f'a traceback: {said[-600:]}'
    if code < 0: return f'it was killed by signal {-code}'
    if not any(o in said for o in words): return f'no word on the reason: {said[-400:]}'
    if not out.exists(): return ''
    return half_written(out) or (f'left behind: {leftovers(out)[:3]}' if leftovers(out) else '')


def company(place, name):
    "A second command with the same output, while the first works"
    out = place.d/'company'/name
    first = Forked(*place.line(name, out))
    watch(first, out, 0)
    os.kill(first.pid, signal.SIGSTOP)                   # so that it is surely still at work
    try: code, said = quick(*place.line(name, out))
    finally: os.kill(first.pid, signal.SIGCONT)
    if ended(first)[0] or code == 0: return f'exit codes {first.returncode} and {code}: {said[-300:]}'
    if 'another command is writing' not in said or 'Traceback' in said: return said[-400:]
    return half_written(out) or place.completes(name, out)


MEMORY = """import sys, torch
from kits_nb.network import model
room, seen, forward = int(sys.argv.pop(1)), [], model.BoundaryNet.forward
def narrow(self, x):
    seen.append(len(x))
    if len(x) > room: torch.empty(2**60, dtype=torch.uint8)       # what PyTorch says when memory runs out
    return forward(self, x)
model.BoundaryNet.forward = narrow
from kits_nb.network import fast
for o in vars(fast).values():
    if isinstance(o, type) and issubclass(o, model.BoundaryNet) and 'forward' in vars(o): o.forward = narrow
from kits_nb.cli import kits_predict
try: kits_predict()
finally: print('windows at once', sorted(set(seen)))"""


def no_memory(place, room):
    "A network whose memory holds so many windows; prediction goes on with fewer, or says what to do"
    out = place.d/'memory'/str(room)
    script = place.d/f'memory{room}.py'
    script.write_text(MEMORY.replace('kits_predict()', "sys.argv[0] = 'kits-predict'; kits_predict()"))
    code, said = quick(script, room, *place.line('predict', out)[1:], '--batch-size', '8')
    if not room: return refused(code, said, out, 'memory ran out')
    if code: return said[-600:]
    if 'windows at once [1, 2, 4, 8]' not in said and 'windows at once [2, 4, 8]' not in said:
        return f'the batch did not shrink: {said[-200:]}'
    return '' if same_labels(out, place.d/'right'/'predict') else 'other labels'


def same_labels(a, b):
    import nibabel as nib, numpy as np
    names = sorted(o.name for o in b.glob('prediction_*.nii.gz'))
    def labels(o): return np.asanyarray(nib.load(o).dataobj)
    return names == sorted(o.name for o in a.glob('prediction_*.nii.gz')) and all(
        np.mean(labels(a/o) != labels(b/o)) < 1e-4 for o in names)      # sums in another order


def one_of_two(place):
    "One of two training processes is killed, then both are interrupted: all end, with the reason, and resume"
    import psutil
    def line(name): return ['kits-train', place.d/'right'/'prepare', place.d/'two'/name, *TRAIN, '--bs', '1',
                            '--resume', '--processes', '2']
    code, said = quick(*line('right'))
    if code: return said[-500:]
    out, last = place.d/'two'/'stopped', 0
    state = out/'state.safetensors'
    for sig in (signal.SIGKILL, signal.SIGINT):
        p = Forked(*line('stopped'))
        while p.poll() is None and not (state.exists() and state.stat().st_mtime_ns > last): time.sleep(.02)
        last, launcher = state.stat().st_mtime_ns, psutil.Process(p.pid)
        workers = [o for o in launcher.children(recursive=True) if 'kits-train' in ' '.join(o.cmdline())]
        for o in workers[-1:] if sig == signal.SIGKILL else [*workers, launcher]: o.send_signal(sig)
        code, said = ended(p)
        if wrong := refused(code, said, out, WORDS.get(sig, 'SIGKILL')): return wrong
        words = [o for o in said.splitlines() if 'epoch' not in o]
        if code != CODES.get(sig, 1) or len(words) != 1: return f'exit {code}: {words}'
    code, said = quick(*line('stopped'))
    if code: return said[-500:]
    return '' if content(out) == content(place.d/'two'/'right') else 'the rerun has another result'


# A folder of fifty

def fifty(place, kills=3):
    "Fifty small scans, ten of them broken in different ways, killed three times: all right at the end"
    import nibabel as nib, numpy as np
    from kits_nb.data.phantom import write_phantoms
    d = place.d/'fifty'
    write_phantoms(d/'src', 1, seed=100, shape=(16, 32, 32), spacing=(12., 10., 10.))
    scans = d/'scans'
    scans.mkdir()
    img = nib.load(d/'src'/'case_00000'/'imaging.nii.gz')
    x, y, z = (np.arange(40)*k % n for k, n in ((1, 20), (7, 20), (3, 6)))           # parts of 12 cm
    for i, (x, y, z) in enumerate(zip(x, y, z)):
        part = img.slicer[z:z+10, y:y+12, x:x+12]
        nib.save(part, scans/f's{i:02d}.nii.gz')
    names = break_ten(scans)
    line = ['kits-predict', RUN, scans, d/'out', *PREDICT]
    hits = 0
    for _ in range(kills):
        n = len(list((d/'out').glob('prediction_*'))) if (d/'out').exists() else 0
        p = start(*line)
        while p.poll() is None and len(list((d/'out').glob('prediction_*'))) < n + 5: time.sleep(.02)
        if p.poll() is None: os.killpg(p.pid, signal.SIGKILL); hits += 1
        p.communicate()
        if wrong := half_written(d/'out'): return wrong, hits
    code, said = run(*line)
    found = sorted(o.name for o in (d/'out').glob('prediction_*.nii.gz'))
    if code != 1 or 'Traceback' in said: return f'exit {code}: {said[-300:]}', hits
    if found != [f'prediction_s{i:02d}.nii.gz' for i in range(40)]: return f'{len(found)} predictions', hits
    if missing := [o for o in names if o not in said]: return f'not named: {missing}', hits
    if leftovers(d/'out'): return f'left behind: {leftovers(d/"out")[:3]}', hits
    whole = d/'whole'
    quick('kits-predict', RUN, scans, whole, *PREDICT)
    return ('' if content(whole) == content(d/'out') else 'other labels than in one go'), hits


def break_ten(scans):
    "Ten files that are no scans, each in another way; their names"
    import nibabel as nib, numpy as np
    good = (scans/'s00.nii.gz').read_bytes()
    img = nib.load(scans/'s00.nii.gz')
    x = np.asanyarray(img.dataobj)
    def save(name, x, affine=img.affine): nib.save(nib.Nifti1Image(x, affine), scans/name)
    (scans/'b0_empty.nii.gz').write_bytes(b'')
    (scans/'b1_cut.nii.gz').write_bytes(good[:len(good)//2])
    (scans/'b2_page.nii.gz').write_bytes(b'<html>not found</html>')
    (scans/'b3_zip.nii.gz').write_bytes(b'PK\3\4' + good)
    (scans/'b4_noise.nii.gz').write_bytes(random.Random(0).randbytes(5000))
    save('b5_plane.nii.gz', x[0])
    save('b6_nan.nii.gz', np.where(x > 0, np.nan, x).astype(np.float32))
    save('b7_flat.nii.gz', x, np.diag([900., 1, 1, 1]))
    (scans/'b8_longer.nii.gz').write_bytes(good + b'more bytes')
    save('b9_grey.nii.gz', ((x - x.min())/(np.ptp(x) or 1)).astype(np.float32))
    return [o.name.removesuffix('.nii.gz') for o in sorted(scans.glob('b*'))]


def all_jobs(place):
    "{name: function}; the long ones first"
    jobs = {'two processes, one killed, both interrupted': lambda: one_of_two(place),
            'fifty scans, ten broken, killed three times': lambda: fifty(place)}
    jobs |= {f'{sig.name} while {name} works': lambda name=name, sig=sig: signalled(place, name, sig)
             for name in place.commands for sig in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)}
    for f in (small_files, locked, company):
        jobs |= {f'{f.__name__.replace("_", " ")}: {name}': lambda f=f, name=name: f(place, name)
                 for name in place.commands}
    return jobs | {'SIGINT during the first imports': early,
                   'memory for two windows': lambda: no_memory(place, 2),
                   'memory for no window': lambda: no_memory(place, 0)}


def main():
    words = sys.argv[1:] if Path(sys.argv[0]).name == 'faults.py' else []
    n = Counter(tried=0, survived=0, signals=0, wrong=0)
    n['left out'] = 0
    os.environ |= QUIET
    FORKS.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as d, ThreadPoolExecutor(2) as ex:
        place = Place(Path(d).resolve())
        jobs = all_jobs(place)
        wanted = [o for o in jobs if ' '.join(words) in o]
        for name, result in zip(wanted, ex.map(lambda o: jobs[o](), wanted)):
            wrong, hits = result if isinstance(result, tuple) else (result, 0)
            n['signals'] += hits
            n['tried'] += wrong is not None
            n['left out' if wrong is None else 'wrong' if wrong else 'survived'] += 1
            if wrong: print(f'WRONG {name}: {wrong}', flush=True)
            elif sys.stdout.isatty(): print(f'ok {name}', flush=True)
    print(table.line('faults', n))
    return n


if __name__ == '__main__': sys.exit(int(main()['wrong'] > 0))
