"""Crops of 176³ per second: our loader by store and number of workers, beside a bare read and the loaders
of others.

    python bench/crops.py [--nnunet PYTHON]

`--nnunet` names the interpreter of an environment with `nnunetv2`; without it that row is left out. Four
phantoms of 408 x 400 x 400 voxels are made once in `--folder` (a minute), and copied so that twelve cases
are on the disk. Every row is measured in a process of its own, the rows in turn, `--rounds` times; the
table has medians, and the median of the ratios to the bare read of the same round. Warm: the pass before
was the same. Cold: posix_fadvise(DONTNEED) has dropped the files from the page cache, after a sync and with
no process that maps them, and each crop comes from another file. Nothing is augmented: that happens on the
device, in batches. The clock starts when the first batch is there, so that starting processes does not
count; the column `whole pass` counts it. `--small` is for seeing that it runs.
"""

import argparse, json, os, platform, shutil, subprocess, sys, time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np

SIZE, SHAPE, SPACING, GRID, CASES, COPIES = (176,) * 3, (136, 400, 400), (3.0, 1.0, 1.0), (1.0,) * 3, 4, 3
SMALL = (32,) * 3, (34, 100, 100), (12.0, 4.0, 4.0), (4.0,) * 3  # to see that it runs
OURS = {f'kits_nb {s}, {w} workers': (s, w) for s in ('npy', 'blosc2') for w in (0, 1, 2)}


def make(folder):
    "Phantoms, prepared in both stores, and in nnU-Net's style"
    import blosc2
    from kits_nb.data.phantom import write_phantoms
    from kits_nb.data.store import PrepareConfig, load_prepared, prepare_folder

    write_phantoms(folder / 'data', n=CASES, shape=SHAPE, spacing=SPACING)
    for store in ('npy', 'blosc2'):
        prepare_folder(folder / 'data', folder / store, PrepareConfig(store=store, spacing=GRID))
        for k in range(CASES, CASES * COPIES):
            if not (folder / store / f'case_{k:05d}').is_dir():
                shutil.copytree(folder / store / f'case_{k%CASES:05d}', folder / store / f'case_{k:05d}')
    (folder / 'style').mkdir(exist_ok=True)
    for c in load_prepared(folder / 'npy')[1]:
        for name in ('ct', 'seg'):  # zstd at level 8, blocks of 128 kB, chunks of up to 6 MB and 1.5 crops
            path = folder / 'style' / f'{c.folder.name}-{name}.b2nd'  # a copy has the id of its original
            if not path.exists():
                blosc2.asarray(
                    np.array(getattr(c, name)),
                    urlpath=str(path),
                    chunks=(128, 128, 192),
                    blocks=(32, 32, 64),
                    cparams=dict(codec=blosc2.Codec.ZSTD, clevel=8),
                )


def drop(*folders):
    "Forget the files of these folders"
    os.sync()
    for path in (p for f in folders for p in f.rglob('*') if p.is_file()):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def crops_of(folder, store, per_case, first=None):
    from kits_nb.data.crops import CropDataset
    from kits_nb.data.store import PreparedCase

    return CropDataset(
        [PreparedCase(o) for o in sorted((folder / store).glob('case_*'))[:first]], SIZE, per_case=per_case
    )


def plan_of(ds):
    "The boxes of the data set's crops, moved into the volume: (case, slices)"
    from kits_nb.data.crops import crop_center

    for i in range(len(ds)):
        case = ds.cases[ds.order[i] % len(ds.cases)]
        center, _ = crop_center(case, np.random.default_rng([ds.seed, ds.epoch, i]), ds.probs)
        yield case, tuple(
            slice(s, s + k)
            for s, k in ((min(max(0, c - k // 2), n - k), k) for c, n, k in zip(center, case.shape, SIZE))
        )


class Style:
    """A data set over blosc2 files as nnU-Net stores them, opened for each crop as it does; int16 and uint8
    stay so"""

    def __init__(self, folder, ds):
        self.files, self.boxes = folder, [(c.folder.name, b) for c, b in plan_of(ds)]

    def __len__(self):
        return len(self.boxes)

    def __getitem__(self, i):
        import blosc2, torch

        case, box = self.boxes[i]
        blosc2.set_nthreads(1)
        return tuple(
            torch.from_numpy(blosc2.open(str(self.files / f'{case}-{o}.b2nd'), mode='r', mmap_mode='r')[box])[
                None
            ]
            for o in ('ct', 'seg')
        )


def monai_data(folder, per_case, persistent):
    """A cached data set whose random crops are drawn by class from stored positions; two cases, because
    each needs 0.7 GB"""
    from monai.data import CacheDataset, PersistentDataset
    from monai.transforms import Compose, EnsureTyped, FgBgToIndicesd, Lambdad, RandCropByPosNegLabeld
    import torch

    files = [
        dict(ct=str(o / 'ct.npy'), seg=str(o / 'seg.npy'))
        for o in sorted((folder / 'npy').glob('case_*'))[:2]
    ] * per_case
    tfms = [
        Lambdad(('ct', 'seg'), lambda p: np.load(p)[None]),
        EnsureTyped(('ct', 'seg'), dtype=(torch.int16, torch.uint8), track_meta=False),
    ]
    if not persistent:
        tfms.append(FgBgToIndicesd('seg'))
    keys = {} if persistent else dict(fg_indices_key='seg_fg_indices', bg_indices_key='seg_bg_indices')
    tfms.append(
        RandCropByPosNegLabeld(
            ('ct', 'seg'), 'seg', SIZE, pos=9, neg=1, num_samples=1, allow_smaller=True, **keys
        )
    )
    if persistent:
        return PersistentDataset(files, Compose(tfms), folder / 'monai')

    class Repeated(CacheDataset):  # every file once in memory, as `per_case` items
        def __len__(self):
            return 2 * per_case

        def _transform(self, i):
            return super()._transform(i % 2)

    return Repeated(files[:2], Compose(tfms), progress=False)


def nnunet(folder, n, workers):
    "nnU-Net's own storage, data set, loader and multi-process augmenter, without transforms"
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    out = folder / 'nnunet'
    for case in sorted((folder / 'npy').glob('case_*'))[:CASES]:
        if (out / f'{case.name}.pkl').exists():
            continue
        out.mkdir(exist_ok=True)
        ct, seg = np.load(case / 'ct.npy')[None], np.load(case / 'seg.npy')[None]
        at = {
            k: np.stack([np.zeros_like(p[0])] + list(p), 1)
            for k, p in ((1, np.nonzero(seg[0] > 0)), (2, np.nonzero(seg[0] == 2)))
        }
        at = {k: p[np.random.default_rng(0).permutation(len(p))[:10000]] for k, p in at.items()}
        blocks, chunks = comp_blosc2_params(ct.shape, SIZE, 4)
        how = dict(chunks=chunks, blocks=blocks, chunks_seg=chunks, blocks_seg=blocks)
        nnUNetDatasetBlosc2.save_case(
            (ct / 1000).astype(np.float32),
            seg.astype(np.int8),
            dict(class_locations=at),
            str(out / case.name),
            **how,
        )
    labels = SimpleNamespace(all_labels=[0, 1, 2], has_ignore_label=False)
    dl = nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(out)),
        1,
        SIZE,
        SIZE,
        labels,
        oversample_foreground_percent=0.9,
        probabilistic_oversampling=True,
    )
    stream = (
        NonDetMultiThreadedAugmenter(dl, None, workers, num_cached=max(2, workers), wait_time=0.002)
        if workers
        else dl
    )
    return (next(stream) for _ in range(n))


def batches(row, folder, n, cold):
    "The crops of one pass, and the function that must be called after it"
    import torch

    per_case, first = (1, None) if cold else (n // CASES, CASES)
    if row == 'nnU-Net, 2 workers':
        return nnunet(folder, n, 2)
    if row.startswith('MONAI'):
        data = monai_data(folder, 6, 'Persistent' in row)  # twelve crops: each takes long
        return lambda: torch.utils.data.DataLoader(data, 1, num_workers=2)
    ds = crops_of(folder, OURS[row][0] if row in OURS else 'npy', per_case, first)
    if row in OURS:
        from kits_nb.data.loader import CropDL

        return CropDL(ds, bs=1, num_workers=OURS[row][1])
    if row == 'PyTorch DataLoader, npy, 2 workers':
        return torch.utils.data.DataLoader(ds, 1, num_workers=2)
    if row == 'blosc2 in nnU-Net\'s style, 2 workers':
        return torch.utils.data.DataLoader(Style(folder / 'style', ds), 1, num_workers=2)
    boxes = [(c.folder, b) for c, b in plan_of(ds)]
    names = ('ct.npy', 'seg.npy') if 'labels' in row else ('ct.npy',)
    if cold:
        return ([np.array(np.load(f / o, mmap_mode='r')[b]) for o in names] for f, b in boxes)
    maps = {f: [np.load(f / o, mmap_mode='r') for o in names] for f, _ in boxes}
    return lambda: ([np.array(m[b]) for m in maps[f]] for f, b in boxes)


def clock(it):
    "(seconds a crop after the first, seconds a crop of the whole pass)"
    start, n = time.perf_counter(), 0
    for n, _ in enumerate(it):
        if not n:
            first = time.perf_counter()
    end = time.perf_counter()
    return (end - first) / n, (end - start) / (n + 1)


def pss():
    """Megabytes of this process and its children that are theirs: private, shared, mapped files (each page
    counted once)"""
    me, total = os.getpid(), dict(Pss_Anon=0, Pss_Shmem=0, Pss_File=0)
    kids = [int(o) for o in Path(f'/proc/{me}/task/{me}/children').read_text().split()]
    for pid in [me, *kids]:
        try:
            lines = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
        except ProcessLookupError:
            continue  # a reader that has just finished
        for line in lines:
            k, *v = line.split()
            if k[:-1] in total:
                total[k[:-1]] += int(v[0]) / 1024
    return [round(o) for o in total.values()]


def memory(folder, workers, epochs):
    "Memory while the last batch of each epoch is held"
    from kits_nb.data.loader import CropDL

    ds = crops_of(folder, 'npy', 8, CASES)
    dl, out = CropDL(ds, bs=1, num_workers=workers), []
    for e in range(epochs):
        ds.set_epoch(e)
        for i, b in enumerate(dl):
            if i == len(dl) - 8:
                out.append(pss())  # the readers are still at work
    return out


def one(row, folder, n):
    "All that one process measures, as a line of JSON"
    if row.startswith('memory'):
        return memory(folder, int(row.split()[-1]), 6)
    out = {}
    if row in OURS or row.startswith(('bare CT', 'blosc2')):
        drop(folder / 'npy', folder / 'blosc2', folder / 'style')
        out['cold'] = clock(batches(row, folder, n, True))[0]
    it = batches(row, folder, n, False)
    if row.startswith('nnU-Net'):
        out['warm'], out['whole'] = clock(it)
        return out  # an endless stream: no passes
    for _ in range(1 + (not row.startswith('MONAI'))):
        out['warm'], out['whole'] = clock(it() if callable(it) else it)
    return out


def run(row, args, python=sys.executable):
    small = ['--small'] if args.small else []
    r = subprocess.run(
        [python, __file__, '--one', row, '--folder', args.folder, '--n', str(args.n), *small],
        capture_output=True,
        text=True,
        env=os.environ | dict(PYTHONWARNINGS='ignore', OMP_NUM_THREADS='1'),
    )
    if r.returncode:
        sys.exit(f'{row}: {r.stderr[-2000:]}')
    return json.loads(r.stdout.strip().splitlines()[-1])


def head():
    model = next(
        (
            o.split(':')[1].strip()
            for o in Path('/proc/cpuinfo').read_text().splitlines()
            if o.startswith('model name')
        ),
        platform.machine(),
    )
    commit = subprocess.run(
        ['git', '-C', str(Path(__file__).parent), 'rev-parse', '--short', 'HEAD'],
        capture_output=True,
        text=True,
    ).stdout.strip()
    packages = ', '.join(f'{o} {version(o)}' for o in ('torch', 'numpy', 'blosc2', 'monai'))
    return f'{model}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}; commit {commit}'


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--folder', default='/tmp/kits_nb_bench_crops')
    p.add_argument('--nnunet', default='')
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--n', type=int, default=168)
    p.add_argument('--one', default='', help='used by itself')
    p.add_argument('--rows', default='', help='only rows whose name starts so, after the bare read')
    p.add_argument('--small', action='store_true', help='small phantoms and crops of 32³')
    args = p.parse_args()
    global SIZE, SHAPE, SPACING, GRID
    if args.small:
        SIZE, SHAPE, SPACING, GRID = SMALL
    folder = Path(args.folder)
    if args.one:
        return print(json.dumps(one(args.one, folder, args.n)))
    make(folder)
    rows = [
        'bare CT',
        'bare CT and labels',
        *OURS,
        'PyTorch DataLoader, npy, 2 workers',
        "blosc2 in nnU-Net's style, 2 workers",
        'MONAI CacheDataset, 2 workers',
        'MONAI PersistentDataset, 2 workers',
    ]
    python = dict.fromkeys(rows, sys.executable) | (
        {'nnU-Net, 2 workers': args.nnunet} if args.nnunet else {}
    )
    got = {r: [] for r in python if r.startswith(args.rows) or r.startswith('bare')}
    for k in range(args.rounds):
        for r in got:
            if not (k and r.startswith('MONAI')):
                got[r].append(run(r, args, python[r]))  # minutes: once is enough
    print(
        head(),
        f'\n{args.n} crops of {SIZE[0]}³ a pass, {args.rounds} rounds; crops/s, and their ratio to the '
        f'bare read of the CT\n',
    )
    print(f'{"":38s} {"warm":>7s} {"ratio":>6s} {"whole pass":>11s} {"cold":>7s} {"ratio":>6s}')
    for r, v in got.items():
        rate = lambda k: f'{1/median(o[k] for o in v):7.1f}' if k in v[0] else ' ' * 7
        ratio = lambda k: (
            f'{median(b[k]/o[k] for o,b in zip(v, got["bare CT"])):6.2f}' if k in v[0] else ' ' * 6
        )
        print(f'{r:38s} {rate("warm")} {ratio("warm")} {rate("whole"):>11s} {rate("cold")} {ratio("cold")}')
    print(
        '\nMB on disk, per case:',
        {
            o: round(
                sum(f.stat().st_size for f in (folder / o).rglob('*') if f.is_file())
                / 1e6
                / (CASES if o == 'nnunet' else CASES * COPIES)
            )
            for o in ('npy', 'blosc2', 'style', 'nnunet')
            if (folder / o).is_dir()
        },
    )
    print('MB of all processes after each of 6 epochs (private, shared, mapped pages of the cache):')
    for w in (0, 1, 2):
        print(f'  {w} workers', run(f'memory {w}', args))


if __name__ == '__main__':
    main()
