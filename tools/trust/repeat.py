"""The same bits twice? `python tools/trust/repeat.py [smoke]` prints the table of two runs, 0 to 2 workers,
and one and two threads: fingerprints of phantoms, prepared cases, crops, weights and predictions.

Each run, with each number of threads, is a Python of its own, with its own order of sets and dictionaries;
its rows are forks of it, so that PyTorch is imported four times and not twelve. With the same number of
threads all must be equal, whatever the run and the workers. What does not depend on the order of sums
(phantoms, prepared cases, crops) must be equal for all."""
import hashlib, json, os, subprocess, sys, tempfile, traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import table

SEED = 5
FREE = 'phantoms', 'prepared', 'crops'              # of the number of threads, too


def digest(parts): return hashlib.sha256(b''.join(parts)).hexdigest()[:10]


def files(folder, pattern): return digest(o.read_bytes() for o in sorted(Path(folder).glob(pattern)))


def one(d, workers, threads):
    "Fingerprints of everything that a seed makes, with so many workers and threads"
    import numpy as np, torch
    torch.set_num_threads(threads)
    from kits_nb.data.kits19 import find_cases
    from kits_nb.data.loader import crop_dataloaders
    from kits_nb.data.phantom import write_phantoms
    from kits_nb.data.store import PrepareConfig, load_prepared, prepare_folder
    from kits_nb.inference.cases import predict_folder
    from kits_nb.inference.predict import PredictConfig
    from kits_nb.network.saving import load_model
    from kits_nb.training.recipe import get_recipe
    from kits_nb.training.run import train
    write_phantoms(d/'data', 4, SEED, shape=(24, 48, 50), spacing=(8., 7., 7.), n_workers=max(1, workers))
    prepare_folder(d/'data', d/'prepared', PrepareConfig((6.,)*3), n_workers=max(1, workers))
    cases = load_prepared(d/'prepared')[1]
    how = dict(seed=SEED, num_workers=workers, device='cpu')
    dls = crop_dataloaders(cases[:3], cases[3:], (16, 16, 16), 2, 4, **how)
    torch.manual_seed(SEED)
    crops = [t.numpy().tobytes() for b in dls.train for t in b]
    small = get_recipe('tiny').replace(epochs=2, crop=(16,)*3, bs=2, per_case=2, valid_per_case=1, n_folds=3,
                                       seed=SEED, num_workers=workers, threads=threads)
    run = train(d/'prepared', d/'run', small, echo=None, device='cpu')
    net = load_model(run)
    predict_folder([net], find_cases(d/'data')[:2], d/'out', PredictConfig(tta=False), ahead=workers > 0)
    weights = [np.ascontiguousarray(v.numpy()).tobytes() for _, v in sorted(net.state_dict().items())]
    labels = [np.asanyarray(_load(o)).tobytes() for o in sorted((d/'out').glob('prediction_*.nii.gz'))]
    return dict(phantoms=files(d/'data', 'case_*/*.nii.gz'), prepared=files(d/'prepared', 'case_*/*.npy'),
                crops=digest(crops), weights=digest(weights), predictions=digest(labels))


def _load(path):
    import nibabel as nib
    return nib.load(path).dataobj


def fork_rows(threads, all_workers):
    "A line of JSON for each number of workers, each from a fork of this process"
    import kits_nb.training.run, kits_nb.inference.cases      # what the rows share
    for workers in all_workers:
        if not os.fork():
            try:
                with tempfile.TemporaryDirectory() as d: said = json.dumps(one(Path(d), workers, threads))
                print(said, flush=True)
            except BaseException: traceback.print_exc(); os._exit(1)
            os._exit(0)
        if os.wait()[1]: sys.exit('a row failed')


def in_process(run, threads, all_workers):
    "The rows of a run in a new process"
    env = os.environ | dict(OMP_NUM_THREADS=str(threads), CUDA_VISIBLE_DEVICES='', PYTHONWARNINGS='ignore',
                            OMP_WAIT_POLICY='PASSIVE', PYTHONHASHSEED=str(1 + run))
    line = [sys.executable, __file__, 'rows', str(threads), *map(str, all_workers)]
    p = subprocess.run(line, env=env, capture_output=True, text=True, timeout=900)
    if p.returncode: raise RuntimeError(p.stderr[-1500:])
    found = [json.loads(o) for o in p.stdout.splitlines() if o.startswith('{"phantoms"')]
    return {(run, workers, threads): o for workers, o in zip(all_workers, found, strict=True)}


def settings(smoke):
    if smoke: return [(0, 1, [0]), (1, 1, [2])]
    return [(run, threads, [0, 1, 2]) for threads in (1, 2) for run in (0, 1)]


def main(smoke=False):
    with ThreadPoolExecutor(2) as ex: parts = list(ex.map(lambda o: in_process(*o), settings(smoke)))
    rows = sorted((o for part in parts for o in part.items()), key=lambda o: o[0][::-1])
    names = list(rows[0][1])
    print('run workers threads  ' + '  '.join(f'{k:10}' for k in names))
    for (run, workers, threads), got in rows:
        print(f'{run+1:3} {workers:7} {threads:7}  ' + '  '.join(f'{got[k]:10}' for k in names))
    n = dict(tried=0, equal=0, wrong=0)
    for k in names:
        groups = [rows] if k in FREE else [[o for o in rows if o[0][2] == t] for t in {o[0][2] for o in rows}]
        for group in groups:
            n['tried'] += len(group)
            differ = len({got[k] for _, got in group}) - 1
            n['wrong'] += differ
            n['equal'] += len(group) if not differ else 0
            if differ: print(f'WRONG repeatability: {k} differ')
    print(table.line('repeatability', n))
    return n


if __name__ == '__main__':
    if sys.argv[1:2] == ['rows']: sys.exit(fork_rows(int(sys.argv[2]), [int(o) for o in sys.argv[3:]]))
    sys.exit(int(main('smoke' in sys.argv)['wrong'] > 0))
