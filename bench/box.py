"""How good is a model on what it never saw: synthetic patients, painted label maps, real scans without labels

    python bench/box.py                                   the package's own model, all sections but `case`
    python bench/box.py RUN RUN2 --cache DIR              several models on the same scans
    python bench/box.py RUN --sections real --no-tta --cases
    python bench/box.py RUN --cache DIR --clean reach_mm=3 min_mm3=20000     predictions are used again

Sections: `patients` (16 held-out synthetic patients with a tumor, 8 without), `painted` (CTs painted over
16 real label maps), `real` (7 unlabelled scans by the rules of plausibility); and, only when they are named,
`many` (as `patients`, four times as many) and `case` (the labelled real scan: for reports only, never to
choose a setting). `painted`, `real` and `case` need KITS_DATA.

Dice counts on the scan's own grid, as `kits-evaluate` does; its interval is a 95 % bootstrap interval of the
mean. With a cleaning, which the model asks for (`clean` of its meta) or `--clean` sets, every number is given
before and after it. A false component holds no true voxel of its kind. `--cache` keeps the scans, their
resampled volumes and each model's predictions: remove its folder `predictions` when the code that predicts
has changed."""

import argparse, hashlib, inspect, json, os, tempfile, time, warnings
from pathlib import Path
from types import SimpleNamespace
import numpy as np, torch

warnings.filterwarnings('ignore')
import kits_nb
from measure import machine
from kits_nb.core import CaseError, atomic_path, load_json, save_json
from kits_nb.data import anatomy, appearance, phantom
from kits_nb.data.anatomy import draw_patient
from kits_nb.data.appearance import draw_scanner, make_patient
from kits_nb.data.files import read_ct, read_seg, write_volume
from kits_nb.data.phantom import paint_ct
from kits_nb.data.volume import Volume
from kits_nb.evaluation.dice import mask_dice
from kits_nb.evaluation.morphometry import CleanConfig, clean_labels, components
from kits_nb.evaluation.statistics import mean_ci
from kits_nb.inference.predict import PredictConfig, common_meta, segment
from kits_nb.inference.slabs import grid_of, to_spacing
from kits_nb.network import saving
from kits_nb.network.saving import load_model

SECTIONS = ('patients', 'painted', 'real', 'many', 'case')
WITH_TUMOR, HEALTHY, MANY, FIRST_SEED = 16, 8, 4, 500_100
PAINTED = [k for k in range(60, 80) if k not in (63, 66, 68, 71)]  # those have more than 400 slices
ABOUT = 60  # mm around the kidneys that a synthetic scan shows
DICE = ('kidney', 'tumor')
COUNTS = (*DICE, 'false_parts', 'false_ml', 'false_tumor_parts', 'false_tumor_ml', 'tumor_ml')


# ---- scans, made once


def version_of(*modules):
    text = ''.join(inspect.getsource(o) for o in modules)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def affine_of(spacing):
    "Axes inferior, posterior, left"
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = (-s for s in spacing)
    affine[3, 3] = 1
    return affine


def synthetic_scan(seed):
    "(CT, labels) of a held-out patient: the scanner's whole circle, `ABOUT` mm above and below the kidneys"
    o, rng = draw_scanner(seed), np.random.default_rng([seed, 77])
    spacing = (float(rng.choice([1.5, 2, 2.5, 3, 3, 3, 4, 5])), *[2 * o['radius'] / 320] * 2)
    coarse = make_patient(seed, (120, 80, 90), (4.0, 5.0, 5.0))[1]
    z = (np.flatnonzero((coarse > 0).any(2).any(1).numpy()) - 59.5) * 4
    low, high = max(z[0] - ABOUT, o['ends'][0]), min(z[-1] + ABOUT, o['ends'][1])
    shape = (max(8, round((high - low) / spacing[0])), 320, 320)
    hu, labels = make_patient(seed, shape, spacing, ((low + high) / 2, *o['center']))
    ct = Volume(hu.short().numpy(), affine_of(spacing))
    return ct, ct.like(labels.numpy())


def tumor_ml(seg):
    return float(np.count_nonzero(seg.data == 2) * seg.voxel_mm3 / 1000)


def fits(ct, seg, healthy):
    ml = np.count_nonzero(seg.data) * seg.voxel_mm3 / 1000
    return ml > 40 and (tumor_ml(seg) == 0 if healthy else tumor_ml(seg) > 0.3)


def store(folder, ct, seg):
    for name, v in (('imaging', ct), ('segmentation', seg)):
        write_volume(folder / f'{name}.nii.gz', v)


def check_version(cache, name, now):
    path = cache / name / 'version.json'
    if path.exists() and load_json(path) != now:
        old = f'{cache / name} and {cache / "predictions"}'
        say(f'! the {name} scans of the cache are of an earlier generator: remove {old}')
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_json(path, now)


def patients(cache, limit, times=1):
    "Seeds from `FIRST_SEED` on: the first with a tumor, the first without one"
    check_version(cache, 'patients', version_of(anatomy, appearance))
    path = cache / 'patients' / 'seeds.json'
    seeds = load_json(path) if path.exists() else dict(tumor=[], healthy=[])
    for kind, most in (('tumor', times * WITH_TUMOR), ('healthy', times * HEALTHY)):
        wanted = min(most, limit or most)
        seed = max(seeds[kind], default=FIRST_SEED - 1)
        while len(seeds[kind]) < wanted:
            seed += 1
            if bool(draw_patient(seed).tumors) != (kind == 'tumor'):
                continue
            pair = synthetic_scan(seed)
            if fits(*pair, kind == 'healthy'):
                store(cache / 'patients' / str(seed), *pair)
                seeds[kind].append(seed)
                save_json(path, seeds)
                say(f'made patient {seed}')
        for seed in seeds[kind][:wanted]:
            f = cache / 'patients' / str(seed)
            yield scan_of(str(seed), kind, f, f / 'imaging.nii.gz', f / 'segmentation.nii.gz')


def many(cache, limit):
    "The same and the next ones, four times as many"
    yield from patients(cache, limit, MANY)


def painted(cache, limit):
    check_version(cache, 'painted', version_of(phantom))
    for k in PAINTED[:limit]:
        name, f = f'case_{k:05d}', cache / 'painted' / f'case_{k:05d}'
        if not (f / 'segmentation.nii.gz').exists():
            seg = read_seg(need_data() / 'kits19' / name / 'segmentation.nii.gz')
            store(f, paint_ct(seg, FIRST_SEED + k), seg)
            say(f'painted {name}')
        yield scan_of(name, 'painted', f, f / 'imaging.nii.gz', f / 'segmentation.nii.gz')


def real(cache, limit):
    for file in sorted(need_data().glob('real_unlabelled/*/imaging.nii.gz'))[:limit]:
        yield scan_of(file.parent.name, 'real', cache / 'real' / file.parent.name, file)


def case(cache, limit):
    f = need_data() / 'kits19_real' / 'case_00000'
    here = cache / 'case' / f.name
    yield scan_of(f.name, 'case', here, f / 'imaging.nii.gz', f / 'segmentation.nii.gz')


def need_data():
    if not (d := os.environ.get('KITS_DATA')):
        raise CaseError('there is no real data', fix='set KITS_DATA, or name other --sections')
    return Path(d)


def scan_of(name, kind, folder, ct, seg=None):
    return SimpleNamespace(name=name, kind=kind, folder=folder, ct=ct, seg=seg)


def working_copy(scan, spacing):
    "(The scan on the model's grid, its own grid); resampled once"
    path = scan.folder / f'work_{"x".join(f"{s:g}" for s in spacing)}.npz'
    if not path.exists():
        ct = read_ct(scan.ct)
        w = to_spacing(ct, spacing)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as tmp, open(tmp, 'wb') as f:
            np.savez(f, data=w.data, affine=w.affine, shape=ct.shape, own=ct.affine)
    o = np.load(path)
    grid = grid_of(Volume(np.broadcast_to(np.uint8(0), tuple(o['shape'].tolist())), o['own']))
    return Volume(o['data'], o['affine']), grid


# ---- predictions


def model_of(name):
    "The model of a run folder, or the package's own"
    return load_model(name or getattr(saving, 'BOX', 'box'))


def model_key(name, net, cfg):
    "What a prediction depends on, as a short name"
    meta = {k: v for k, v in net.meta.items() if k != 'clean'}
    h = hashlib.sha256(json.dumps([net.cfg.to_dict(), meta, cfg.to_dict()], default=str).encode())
    for k, v in sorted(net.state_dict().items()):
        h.update(k.encode() + v.detach().float().cpu().numpy().tobytes())
    return f'{Path(name or "box").resolve().name}-{h.hexdigest()[:10]}'


def prediction(scan, net, cfg, folder):
    "Labels on the scan's own grid, before cleaning"
    path = folder / f'{scan.kind}-{scan.name}.npz'
    work, grid = working_copy(scan, common_meta([net])[0])
    if path.exists():
        return grid.like(np.load(path)['labels'])
    labels = segment([net], work, grid, cfg)['labels']
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as tmp, open(tmp, 'wb') as f:
        np.savez_compressed(f, labels=labels.data)
    return labels


# ---- what is measured


def without(mask, truth, spacing):
    "(Number, ml) of the components of a mask that hold nothing true"
    parts = [p.ml for p in components(mask, spacing) if not truth[p.index].any()]
    return len(parts), float(sum(parts))


def against(pred, seg):
    "Scores of a prediction beside true labels"
    fg, tumor = seg.data > 0, seg.data == 2
    p, t = pred.data > 0, pred.data == 2
    row = dict(kidney=mask_dice(p, fg), tumor=mask_dice(t, tumor) if tumor.any() else None)
    row['false_parts'], row['false_ml'] = without(p, fg, seg.spacing)
    row['false_tumor_parts'], row['false_tumor_ml'] = without(t, tumor, seg.spacing)
    return row | dict(tumor_ml=tumor_ml(pred), true_tumor_ml=tumor_ml(seg))


def plausible(pred):
    "The two largest components on both sides, 70 to 350 ml each; all else, and all tumor, below 30 ml"
    parts = components(pred.data > 0, pred.spacing)
    two = parts[:2]
    apart = abs(two[0].center[2] - two[1].center[2]) * pred.spacing[2] if len(two) == 2 else 0.0
    other, tumor = float(sum(p.ml for p in parts[2:])), tumor_ml(pred)
    good = apart > 70 and all(70 <= p.ml <= 350 for p in two)
    row = dict(ml=[p.ml for p in two], other_ml=other, other_parts=max(0, len(parts) - 2), tumor_ml=tumor)
    return row | dict(apart_mm=apart, ok=bool(good and other < 30 and tumor < 30))


def measured(scan, pred, clean):
    seg = read_seg(scan.seg) if scan.seg else None
    judge = (lambda p: against(p, seg)) if seg else plausible
    row = dict(name=scan.name, kind=scan.kind, raw=judge(pred))
    row['clean'] = judge(clean_labels(pred, clean)[0]) if clean != CleanConfig() else row['raw']
    return row


# ---- what is printed


def say(text):
    print(text, flush=True)


def interval(m, low, high):
    return f'{m:.3f} ({low:.3f} to {high:.3f})' if np.isfinite(low) else f'{m:.3f}'


def summary(rows):
    "Means over scans, raw and cleaned"
    out = {}
    for when in ('raw', 'clean'):
        have = {k: [r[when][k] for r in rows if r[when][k] is not None] for k in COUNTS}
        out[when] = {k: mean_ci(v) if k in DICE else (float(np.mean(v)), float(max(v)))
                     for k, v in have.items() if v}
    return out


def both(row, f):
    "A number before > after cleaning, or alone where nothing is cleaned"
    raw, clean = f(row['raw']), f(row['clean'])
    return raw if row['clean'] is row['raw'] else f'{raw} > {clean}'


def line(name, cells, widths):
    say(f'  {name:20} ' + ' '.join(f'{c:>{w}}' for c, w in zip(cells, widths)))


def table(title, rows, cases):
    say(f'\n{title}')
    if cases:
        widths = (15, 15, 15, 15, 15, 8)
        line('', ('kidney', 'tumor', 'false ml', 'false tumor ml', 'tumor ml', 'true ml'), widths)
        for r in rows:
            f = lambda k, d: both(r, lambda o: '–' if o[k] is None else f'{o[k]:.{d}f}')
            cells = [f(k, 3) for k in DICE] + [f(k, 1) for k in ('false_ml', 'false_tumor_ml', 'tumor_ml')]
            line(r['name'], [*cells, f'{r["raw"]["true_tumor_ml"]:.1f}'], widths)
    s = summary(rows)
    when = ('raw', 'clean') if any(r['clean'] is not r['raw'] for r in rows) else ('raw',)
    names = dict(kidney='kidney Dice', tumor='tumor Dice', false_parts='false components',
                 false_ml='  their ml', false_tumor_parts='false tumors', false_tumor_ml='  their ml')
    line('', [dict(raw='raw', clean='cleaned')[w] for w in when], (26, 26))
    for k, name in names.items():
        if k in s['raw']:
            f = interval if k in DICE else (lambda m, top: f'{m:.1f}, most {top:.1f}')
            line(name, [f(*s[w][k]) for w in when], (26, 26))
    return s


def real_table(rows):
    say(f'\nreal: {len(rows)} unlabelled scans')
    widths = (11, 22, 14, 14, 14)
    line('', ('', 'two largest, ml', 'others', 'their ml', 'tumor ml'), widths)
    for r in rows:
        f = lambda k: both(r, lambda o: f'{o[k]:.0f}')
        ok = both(r, lambda o: 'ok' if o['ok'] else 'BAD')
        two = both(r, lambda o: ' '.join(f'{v:.0f}' for v in o['ml']) or 'none')
        line(r['name'], (ok, two, *(f(k) for k in ('other_parts', 'other_ml', 'tumor_ml'))), widths)
    good = dict(plausible=lambda o: o['ok'], less_than_10_ml_of_tumor=lambda o: o['tumor_ml'] < 10)
    out = {k: {w: sum(f(r[w]) for r in rows) for w in ('raw', 'clean')} for k, f in good.items()}
    same = all(r['clean'] is r['raw'] for r in rows)
    for k, v in out.items():
        number = v['raw'] if same else f'{v["raw"]} > {v["clean"]}'
        say(f'  {k.replace("_", " ")}: {number} of {len(rows)}')
    return out


def report(section, rows, cases):
    if section == 'real':
        return real_table(rows)
    if section in ('patients', 'many'):
        kinds = [[r for r in rows if r['kind'] == k] for k in ('tumor', 'healthy')]
        names = 'with a tumor', 'without a tumor'
        return {k: table(f'patients: {len(r)} {k}', r, cases) for k, r in zip(names, kinds)}
    title = dict(painted=f'painted: {len(rows)} real label maps with painted CTs',
                 case='case: the labelled real scan, for reports only, never to choose a setting')[section]
    return table(title, rows, cases or section == 'case')


# ---- the command


def settings(pairs):
    "key=value as a dict; values as in JSON"
    out = {}
    for o in pairs:
        k, _, v = o.partition('=')
        try:
            out[k] = json.loads(v)
        except ValueError:
            raise SystemExit(f'{o}: write a number, true, false or null after the equals sign, as reach_mm=3')
    return out


def evaluate(name, a, cache):
    net = model_of(name)
    net.requires_grad_(False)
    cfg = PredictConfig.from_dict(settings(a.predict) | (dict(tta=False) if a.no_tta else {}))
    asked = settings(a.clean) if a.clean is not None else dict(net.meta.get('clean') or {})
    clean = CleanConfig.from_dict(asked)
    key = model_key(name, net, cfg)
    spacing = common_meta([net])[0]
    flips = (net.meta.get('flips') or 'all 8') if cfg.tta else 'none'
    say(f'\n=== {name or "box"}: {sum(p.numel() for p in net.parameters())/1e6:.2f} M weights, '
        f'{"x".join(f"{s:g}" for s in spacing)} mm; flips: {flips}; '
        f'cleaning: {clean.to_dict() if clean != CleanConfig() else "none"}')
    out = dict(model=str(name or 'box'), key=key, meta=net.meta, settings=cfg.to_dict(),
               clean=clean.to_dict(), sections={})
    for section in a.sections:
        rows, start = [], time.perf_counter()
        for scan in globals()[section](cache, a.limit):
            pred = prediction(scan, net, cfg, cache / 'predictions' / key)
            rows.append(measured(scan, pred, clean))
        if rows:
            found = report(section, rows, a.cases)
            out['sections'][section] = dict(summary=found, scans=rows, seconds=time.perf_counter() - start)
            say(f'  {time.perf_counter() - start:.0f} s')
    return out


def without_nan(o):
    "JSON has no NaN: an interval of one scan is null"
    if isinstance(o, dict):
        return {k: without_nan(v) for k, v in o.items()}
    if isinstance(o, (list, tuple)):
        return [without_nan(v) for v in o]
    return None if isinstance(o, float) and np.isnan(o) else o


def save_scores(found):
    "Put the summaries into the package, beside those of other sections"
    path = Path(kits_nb.__file__).parent / 'box' / 'box.json'
    facts = load_json(path)
    new = {k: without_nan(o['summary']) for k, o in found['sections'].items()}
    facts['scores'] = facts.get('scores', {}) | new | dict(settings=found['settings'], clean=found['clean'])
    save_json(path, facts)
    say(f'\nscores saved in {path}')


def fill(a, cache):
    "Only make the scans, and resample them"
    for section in a.sections:
        for scan in globals()[section](cache, a.limit):
            for mm in a.fill:
                working_copy(scan, (mm,) * 3)
            say(f'{section} {scan.name}')


def main():
    plain = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    own = 'run folders; default: the model of the package'
    p.add_argument('models', nargs='*', default=[''], metavar='MODEL', help=own)
    p.add_argument('--sections', default='patients,painted,real', help=f'of {",".join(SECTIONS)}')
    p.add_argument('--cache', default='', help='folder of scans and predictions; default: a temporary one')
    p.add_argument('--out', default='box.json')
    pair = dict(nargs='*', metavar='KEY=VALUE')
    p.add_argument('--clean', **pair, help='of CleanConfig; without any pair: no cleaning')
    p.add_argument('--predict', **pair, default=[], help='of PredictConfig, as overlap=0.25')
    p.add_argument('--no-tta', action='store_true', help='no flips')
    p.add_argument('--cases', action='store_true', help='a row for each scan')
    p.add_argument('--limit', type=int, help='only the first scans of each kind')
    p.add_argument('--save', action='store_true', help='also into the package: box.json of its own model')
    p.add_argument('--threads', type=int, default=0)
    p.add_argument('--fill', nargs='+', type=float, metavar='MM', help='only make and resample the scans')
    a = p.parse_args()
    a.sections = a.sections.split(',')
    if wrong := set(a.sections) - set(SECTIONS):
        p.error(f'there is no section {", ".join(sorted(wrong))}; choose of {", ".join(SECTIONS)}')
    if a.save and (a.models != [''] or a.limit):
        p.error('--save is for the model of the package and for all scans: leave MODEL and --limit out')
    if a.threads:
        torch.set_num_threads(a.threads)
    with tempfile.TemporaryDirectory() as tmp:
        cache = Path(a.cache or tmp)
        try:
            if a.fill:
                return fill(a, cache)
            say(machine())
            found = [evaluate(m, a, cache) for m in a.models]
        except CaseError as e:
            raise SystemExit(f'box.py: {e}')
    save_json(a.out, dict(machine=machine(), first_seed=FIRST_SEED, models=found))
    if a.save:
        save_scores(found[0])
    say(f'\nwritten: {a.out}')


if __name__ == '__main__':
    main()
