"""How many labelled scans does fine-tuning need? Painted label maps stand for the scans of another scanner

    python bench/finetune.py --cache DIR --save      the table of the book, in 25 minutes on two cores
    python bench/finetune.py --cache DIR             the same without saving; what is done is not repeated
    python bench/finetune.py --cache DIR --n 0,1 --draws 1 --steps 4 --ways free --cases 1      a quick test

For 0, 1, 2, 4 and 8 training cases the network of the package is trained further in two ways, `free` and
`frozen` (the encoder keeps its weights). `--ways` adds `scratch`: the same network from random weights, with
the learning rate of the recipe tiny. A run takes the same number of steps whatever the number of cases. Draws
share no training case; within a draw, fewer cases are the first of the more. `box` is the package's network
as it is.

The training cases are label maps of KiTS19 below 00060 with at most 200 slices. One more, always the
same, is held out by the runs, because a run needs one; it has no influence. The scores are Dice on the
scan's grid, raw and after the cleaning of the package's network, with its window, on the first of the
painted scans of box.py, which no run sees. Needs KITS_DATA. Without `--cache` all is made in a
temporary folder; in that of box.py the painted scans are used again. A run is known by its settings,
its cases and the weights that it starts from: with other weights in the package the same command
measures again what depends on them."""

import argparse, hashlib, json, math, os, shutil, tempfile, time
from pathlib import Path
import nibabel as nib, numpy as np, pandas as pd, torch

import box
from box import interval, need_data, say, store, version_of
from measure import machine
from kits_nb.core import CaseError, atomic_path, load_json, save_json
from kits_nb.data import phantom
from kits_nb.data.files import read_seg
from kits_nb.data.kits19 import fold_of
from kits_nb.data.phantom import paint_ct
from kits_nb.data.store import PrepareConfig, PreparedCase, prepare_folder
from kits_nb.evaluation.dice import mask_dice
from kits_nb.evaluation.morphometry import CleanConfig, clean_labels
from kits_nb.evaluation.statistics import mean_ci
from kits_nb.inference.predict import PredictConfig, common_meta, segment
from kits_nb.network.saving import BOX, load_model
from kits_nb.training.checkpoint import STATE
from kits_nb.training.recipe import get_recipe
from kits_nb.training.run import choose_recipe, train

WAYS = ('free', 'frozen', 'scratch')
MOST_SLICES = 200  # of a training case
BIGGEST = 8  # the most cases that a draw has
OVERLAP = 0.25  # of windows: two thirds of the time, and Dice within 0.01 of the default's
SCRATCH_LR = get_recipe('tiny').train.lr  # what a run from nothing begins with
TABLE = Path(__file__).resolve().parent.parent / 'nbs' / 'trained' / 'finetune.csv'
DICE = ('kidney', 'tumor', 'raw_kidney', 'raw_tumor')
COLUMNS = ('way', 'n', 'draw', 'case', *DICE, 'steps', 'box')


# ---- cases


def slices(path):
    return min(nib.load(path).shape)


def pool_of(seed):
    "(The case that the runs hold out, the others in random order)"
    files = {f'case_{k:05d}': need_data() / 'kits19' / f'case_{k:05d}' for k in range(60)}
    files = {k: f / 'segmentation.nii.gz' for k, f in files.items()}
    ids = [k for k, f in files.items() if f.exists() and slices(f) <= MOST_SLICES]
    held, *others = np.random.default_rng(seed).permutation(ids).tolist()
    return held, others


def cases_of(n, draw, others):
    first = BIGGEST * draw
    if len(others) < first + n:
        raise CaseError(f'{len(others)} label maps are too few for {draw + 1} draws', fix='lower --draws')
    return others[first : first + n]


def prepared_case(name, cfg, folder):
    "A painted case on the working grid, made once"
    out = folder / f'prepared-{"x".join(f"{s:g}" for s in cfg.spacing)}-{version_of(phantom)[:6]}'
    if not (out / name / 'case.json').exists():
        seg = read_seg(need_data() / 'kits19' / name / 'segmentation.nii.gz')
        scans = folder / 'scans'
        store(scans / name, paint_ct(seg, box.FIRST_SEED + int(name[-5:])), seg)
        prepare_folder(scans, out, cfg, [name])
        shutil.rmtree(scans)
        say(f'painted and prepared {name}')
    return PreparedCase(out / name).check()


def share(cases, cfg, folder):
    "A prepared folder of these cases alone; the files are shared, not copied"
    for c in cases:
        if not (folder / c.id).exists():
            with atomic_path(folder / c.id, folder=True) as tmp:
                shutil.copytree(c.folder, tmp, copy_function=os.link, dirs_exist_ok=True)
    save_json(folder / 'prepared.json', cfg.to_dict())
    return folder


def fold_with(held, ids):
    "(fold, number of folds) that hold out this case and no other"
    n = next(n for n in range(2, 10_000) if fold_of(held, n) not in [fold_of(o, n) for o in ids])
    return fold_of(held, n), n


# ---- runs


def lengths(steps, bs, n, most):
    "(epochs, crops of each case in an epoch): the same number of crops for every number of cases"
    unit = math.lcm(bs, most)
    if steps * bs % unit or most % n:
        raise CaseError(f'{steps} steps of {bs} crops cannot be shared by {n} and {most} cases',
                        fix=f'choose numbers of cases that divide {most}, and steps of {unit // bs}, '
                            f'{2 * unit // bs}, {3 * unit // bs} and so on')
    units = steps * bs // unit
    epochs = max(e for e in range(1, 7) if units % e == 0)  # each ends with a checkpoint
    return epochs, steps * bs // (epochs * n)


def recipe_of(way, n, held, ids, a):
    epochs, per_case = lengths(a.steps, a.bs, n, max(a.n))
    fold, n_folds = fold_with(held, ids)
    r = choose_recipe('', init='box', crop=(a.crop,) * 3, bs=a.bs, epochs=epochs, per_case=per_case,
                      fold=fold, n_folds=n_folds, num_workers=0, threads=a.threads)
    if a.lr:
        r = r.replace(lr=a.lr)
    if way == 'scratch':
        return r.replace(init='', lr=SCRATCH_LR)
    return r.replace(freeze=way == 'frozen')


def digest(*facts):
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:10]


def trained(way, n, draw, a, net, folder):
    "The network of a run, which is trained or resumed if it is not there"
    held, others = pool_of(a.seed)
    ids = cases_of(n, draw, others)
    cfg = PrepareConfig(spacing=common_meta([net])[0])
    cases = [prepared_case(k, cfg, folder) for k in (*ids, held)]
    recipe = recipe_of(way, n, held, ids, a)
    settings = recipe.to_dict()
    settings['train'].pop('threads')
    start = '' if way == 'scratch' else a.box
    prints = [c.fingerprint for c in cases]
    run = folder / 'runs' / f'{way}-{n}-{draw}-{digest(settings, start, prints)}'
    if not (run / 'trained.json').exists():
        begin = time.perf_counter()
        sets = share(cases, cfg, folder / 'sets' / digest(prints))
        train(sets, run, recipe, echo=say if a.verbose else None, device='cpu', resume=True)
        save_json(run / 'trained.json', dict(seconds=time.perf_counter() - begin, cases=ids, held_out=held))
        shutil.rmtree(run / 'best', ignore_errors=True)
        (run / STATE).unlink()
    return load_model(run), run


# ---- scores


def scores_of(net, run, scans, cfg, clean):
    "(Case, Dice on its own grid), one after the other; each is written as soon as it is known"
    path = run / f'scores-{digest(cfg.to_dict(), clean.to_dict())}.json'
    found = load_json(path) if path.exists() else {}
    net.requires_grad_(False)
    for scan in scans:
        if scan.name not in found:
            work, grid = box.working_copy(scan, common_meta([net])[0])
            raw, seg = segment([net], work, grid, cfg)['labels'], read_seg(scan.seg).data
            preds = (clean_labels(raw, clean)[0].data, raw.data)
            dice = (mask_dice(p >= k, seg >= k) for p in preds for k in (1, 2))
            found[scan.name] = dict(zip(DICE, dice))
            save_json(path, found)
        yield scan.name, found[scan.name]


def measure(a, cache):
    "Rows of the table"
    folder, net = cache / 'finetune', load_model(BOX)
    scans = list(box.painted(cache, a.cases))
    cfg = PredictConfig(window=common_meta([net])[1], overlap=OVERLAP)
    clean = CleanConfig.from_dict(dict(net.meta.get('clean') or {}))
    plan = [('box', 0, 0)] if 0 in a.n else []
    plan += [(way, n, draw) for draw in range(a.draws) for n in a.n if n for way in a.ways]
    for way, n, draw in plan:
        begin = time.perf_counter()
        if way == 'box':
            tuned, run = net, folder / 'runs' / f'box-{a.box[:10]}'
        else:
            tuned, run = trained(way, n, draw, a, net, folder)
        rows = [dict(way=way, n=n, draw=draw, case=k, **o, steps=a.steps if n else 0, box=a.box[:12])
                for k, o in scores_of(tuned, run, scans, cfg, clean)]
        kidney, tumor = (np.mean([o[k] for o in rows]) for k in ('kidney', 'tumor'))
        seconds = time.perf_counter() - begin
        say(f'{way:8} n {n}  draw {draw}: kidney {kidney:.3f}  tumor {tumor:.3f}   {seconds:.0f} s')
        yield from rows


def report(table):
    "Means over draws and test cases"
    say(f'\n{"":8} {"n":>2}  {"kidney Dice":24} tumor Dice')
    for (way, n), rows in table.groupby(['way', 'n'], sort=False):
        kidney, tumor = (interval(*mean_ci(rows[k])) for k in ('kidney', 'tumor'))
        say(f'{way:8} {n:2}  {kidney:24} {tumor}')


def numbers(text):
    return sorted({int(o) for o in text.split(',')})


def main():
    plain = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    p.add_argument('--cache', default='', help='folder of scans and runs; default: a temporary one')
    p.add_argument('--n', type=numbers, default=numbers('0,1,2,4,8'), help='numbers of training cases')
    p.add_argument('--draws', type=int, default=2, help='how often cases are drawn')
    p.add_argument('--ways', default='free,frozen', help=f'of {",".join(WAYS)}')
    p.add_argument('--cases', type=int, default=5, help='painted scans that are scored')
    p.add_argument('--steps', type=int, default=32, help='training steps of a run')
    p.add_argument('--bs', type=int, default=1, help='crops in a step')
    p.add_argument('--crop', type=int, default=96, help='voxels along a side of a crop')
    p.add_argument('--lr', type=float, default=0.0, help="of free and frozen; default: the recipe's")
    p.add_argument('--seed', type=int, default=0, help='of the draws')
    p.add_argument('--threads', type=int, default=0)
    p.add_argument('--verbose', action='store_true', help='a line for each epoch')
    p.add_argument('--save', action='store_true', help=f'also write {TABLE.name} for the book')
    a = p.parse_args()
    a.ways = a.ways.split(',')
    if wrong := set(a.ways) - set(WAYS):
        p.error(f'there is no way {", ".join(sorted(wrong))}; choose of {", ".join(WAYS)}')
    if min(a.n) < 0 or max(a.n) > BIGGEST:
        p.error(f'--n takes numbers from 0 to {BIGGEST}')
    a.box = load_json(BOX / 'config.json')['sha256']
    if a.threads:
        torch.set_num_threads(a.threads)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as tmp:
        try:
            say(machine())
            table = pd.DataFrame(measure(a, Path(a.cache or tmp)), columns=COLUMNS)
        except CaseError as e:
            raise SystemExit(f'finetune.py: {e}')
    report(table)
    say(f'\n{(time.perf_counter() - begin) / 60:.1f} min')
    if a.save:
        table.to_csv(TABLE, index=False, float_format='%.4f')
        say(f'written: {TABLE}')


if __name__ == '__main__':
    main()
