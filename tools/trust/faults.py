"""Faults while the commands work: `python tools/trust/faults.py [words of a name]`

Real processes are ended by signals at random moments, run out of disk, memory or permission, or meet a second
command in the same folder. Each time: the exit code, a sentence and no traceback, no half-written file under
a final name, and a rerun that completes with the result that an undisturbed run has."""
import hashlib, json, os, random, resource, shutil, signal, subprocess, sys, tempfile, time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import table
from table import BIN, RUN, broken

ENV = os.environ | dict(OMP_NUM_THREADS='1', OMP_WAIT_POLICY='PASSIVE', CUDA_VISIBLE_DEVICES='',
                        PYTHONWARNINGS='ignore')
TRAIN = ('--epochs', '6', '--crop', '16', '--per-case', '2', '--n-folds', '3', '--device', 'cpu',
         '--threads', '1')
PREDICT = '--no-tta', '--device', 'cpu'


def start(*line, **kwargs):
    "A command as a process"
    line = [BIN/line[0], *map(str, line[1:])]
    return subprocess.Popen(line, env=ENV, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, errors='replace', start_new_session=True, **kwargs)


def ended(p, seconds=300):
    "(exit code, what it said)"
    out, err = p.communicate(timeout=seconds)
    return p.returncode, out + err


def run(*line, **kwargs): return ended(start(*line, **kwargs))


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
            code, said = run(*self.line(name, d/'right'/name))
            assert code == 0, said
            self.right[name] = content(d/'right'/name)

    def line(self, name, out): return [str(o).replace('{out}', str(out)) for o in self.commands[name]]

    def completes(self, name, out):
        "'' or what is wrong with a rerun"
        code, said = run(*self.line(name, out))
        if code: return f'the rerun ends with {code}: {said[-300:]}'
        if left := leftovers(out): return f'left behind: {left[:3]}'
        return '' if content(out) == self.right[name] else 'the rerun has another result'


def watch(p, out, seconds):
    "Wait until a process has begun its work and to write, and a random time more"
    import psutil
    while p.poll() is None and psutil.Process(p.pid).memory_info().rss < 200e6: time.sleep(.01)    # imports
    while p.poll() is None and not (Path(out).exists() and any(Path(out).iterdir())): time.sleep(.01)
    time.sleep(seconds)


def signalled(place, name, sig, rng, times=3):
    "A command that gets a signal again and again, then completes: ('' or what is wrong, signals that hit)"
    out, hits = place.d/'signals'/f'{name}{sig}', 0
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
            if 'stopped' not in said and not done: return f'no word: {said[-200:]}', hits
    return place.completes(name, out), hits


# Disk, permissions, memory, company

def small_files(place, name):
    "No file may grow beyond a limit, as on a full disk"
    out, most = place.d/'full'/name, 1000 if name == 'predict' else 20_000
    def limit(): resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    code, said = run(*place.line(name, out), preexec_fn=limit)
    return refused(code, said, out, 'full', 'large', 'written') or place.completes(name, out)


def locked(place, name):
    "An output that may not be written to"
    folder = place.d/'locked'/name
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    root = os.geteuid() == 0
    drop = ['setpriv', '--bounding-set=-dac_override', '--inh-caps=-dac_override'] if root else []
    if drop and not shutil.which('setpriv'): return None
    line = place.line(name, folder/'out')
    p = subprocess.run([*drop, BIN/line[0], *line[1:]], env=ENV, capture_output=True, text=True, timeout=300)
    folder.chmod(0o755)
    wrong = refused(p.returncode, p.stdout + p.stderr, folder, 'permission', 'allowed', 'may not')
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
    first = start(*place.line(name, out))
    watch(first, out, 0)
    os.kill(first.pid, signal.SIGSTOP)                   # so that it is surely still at work
    try: code, said = run(*place.line(name, out))
    finally: os.kill(first.pid, signal.SIGCONT)
    if first.wait() or code == 0: return f'exit codes {first.returncode} and {code}: {said[-300:]}'
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
    script = place.d/'memory.py'
    script.write_text(MEMORY.replace('kits_predict()', "sys.argv[0] = 'kits-predict'; kits_predict()"))
    line = [sys.executable, script, str(room), *place.line('predict', out)[1:], '--batch-size', '8']
    p = subprocess.run(line, env=ENV, capture_output=True, text=True, timeout=300)
    said = p.stdout + p.stderr
    if not room: return refused(p.returncode, said, out, 'memory ran out')
    if p.returncode: return said[-600:]
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
    "One of two training processes is killed: both end, with the reason; a rerun has the same result"
    import psutil
    prepared = place.d/'right'/'prepare'
    line = ['kits-train', prepared, '{out}', *TRAIN, '--bs', '1', '--resume', '--processes', '2']
    def of(out): return [str(o).replace('{out}', str(out)) for o in line]
    code, said = run(*of(place.d/'two'/'right'))
    if code: return said[-500:]
    out = place.d/'two'/'killed'
    p = start(*of(out))
    while p.poll() is None and not (out/'state.safetensors').exists(): time.sleep(.02)
    there = psutil.Process(p.pid).children(recursive=True)
    workers = [o for o in there if 'kits-train' in ' '.join(o.cmdline())]
    if workers: workers[-1].kill()
    code, said = ended(p)
    if workers and (wrong := refused(code, said, out, 'SIGKILL')): return wrong
    code, said = run(*of(out))
    if code: return said[-500:]
    return '' if content(out) == content(place.d/'two'/'right') else 'the rerun has another result'


# A folder of fifty

def fifty(place, kills=3):
    "Fifty small scans, ten of them broken in different ways, killed three times: all right at the end"
    from kits_nb.data.phantom import write_phantoms
    d = place.d/'fifty'
    write_phantoms(d/'src', 40, seed=100, shape=(16, 32, 32), spacing=(12., 10., 10.))
    scans = d/'scans'
    scans.mkdir()
    for i, o in enumerate(sorted((d/'src').glob('case_*'))):
        shutil.copy(o/'imaging.nii.gz', scans/f's{i:02d}.nii.gz')
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
    run('kits-predict', RUN, scans, whole, *PREDICT)
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


def main():
    words = sys.argv[1:] if Path(sys.argv[0]).name == 'faults.py' else []
    n = Counter(tried=0, survived=0, signals=0, wrong=0)
    n['left out'] = 0
    with tempfile.TemporaryDirectory() as d:
        place, rng = Place(Path(d).resolve()), random.Random(1)
        jobs = {f'{sig.name} while {name} works': lambda name=name, sig=sig: signalled(place, name, sig, rng)
                for name in place.commands for sig in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)}
        for f in (small_files, locked, company):
            jobs |= {f'{f.__name__.replace("_", " ")}: {name}': lambda f=f, name=name: f(place, name)
                     for name in place.commands}
        jobs |= {'memory for two windows': lambda: no_memory(place, 2),
                 'memory for no window': lambda: no_memory(place, 0),
                 'one of two processes is killed': lambda: one_of_two(place),
                 'fifty scans, ten broken, killed three times': lambda: fifty(place)}
        for name, f in jobs.items():
            if words and ' '.join(words) not in name: continue
            result = f()
            wrong, hits = result if isinstance(result, tuple) else (result, 0)
            n['signals'] += hits
            n['tried'] += wrong is not None
            n['left out' if wrong is None else 'wrong' if wrong else 'survived'] += 1
            if wrong: print(f'WRONG {name}: {wrong}', flush=True)
            elif sys.stdout.isatty(): print(f'ok {name}', flush=True)
    print(table.line('faults', n))
    return n


if __name__ == '__main__': sys.exit(int(main()['wrong'] > 0))
