"""Which choice makes a network of synthetic patients better: one change at a time, at the same budget

    python bench/steps.py --cache DIR                     train and score all; can be stopped and resumed
    python bench/steps.py --cache DIR --steps base,mask   some of them
    python bench/steps.py --cache DIR --crops 4 --limit 1 --sections patients      a quick try

Each step is the recipe `box` from nothing, with the changes that its name stands for in `STEPS`, trained on
the same number of voxels: `--crops` crops of 96 x 96 x 96 or as many of another size as hold the same. Its
network is scored as `box.py` does, without cleaning: `--sections` patients, painted, real. The labelled real
scan is never asked. Rows go to DIR/steps.json as they are done; with other settings or another generator a
row is made anew. Meant for comparison only: the budget is a small part of what a good network needs."""

import argparse, hashlib, json, time, warnings
from pathlib import Path

warnings.filterwarnings('ignore')
import torch
import box
from measure import machine
from kits_nb.core import CaseError, load_json, save_json
from kits_nb.data import anatomy, appearance
from kits_nb.evaluation.morphometry import CleanConfig
from kits_nb.inference.predict import PredictConfig
from kits_nb.network.saving import load_model
from kits_nb.training.recipe import get_recipe
from kits_nb.training.run import train

SIDE, PER_CASE = 96, 4
STEPS = dict(
    base=dict(),
    mask=dict(boundary=False),  # no boundary stream, no edge losses
    mask_edges_off=dict(weights=(1.0, 0.0, 0.0)),  # the stream is there, and nothing rewards it
    small_crop=dict(crop=(48, 48, 48), bs=16),
    coarse=dict(spacing=(4.0, 4.0, 4.0)),
    plain=dict(variety='plain'),
    wild=dict(variety='wide'),
    still=dict(deform=(0.0, 0.0, 0.0)),
    eight=dict(filters=8),
    more_tumors=dict(probs=(0.8, 0.1, 0.1)),
)


def recipe_of(changes, crops, threads, seed):
    "The recipe `box` on a CPU with these changes, at the budget"
    base = dict(crop=(SIDE,) * 3, bs=2, per_case=PER_CASE, lr=8e-4, num_workers=0, threads=threads, seed=seed)
    r = get_recipe('box').replace(**base | changes)
    n = crops * SIDE**3 // (r.train.crop[0] ** 3)  # as many voxels
    epochs = max(1, min(10, n // (4 * PER_CASE)))
    return r.replace(epochs=epochs, patients=max(1, n // (PER_CASE * epochs)), held_out=8)


def digest(*facts):
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]


def score(run, a, cache):
    "Summaries of box.py's sections"
    net = load_model(run).requires_grad_(False)
    cfg, out = PredictConfig(tta=False), {}
    for section in a.sections:
        rows = []
        for scan in getattr(box, section)(cache, a.limit):
            pred = box.prediction(scan, net, cfg, cache / 'predictions' / box.model_key(str(run), net, cfg))
            rows.append(box.measured(scan, pred, CleanConfig()))
        out[section] = box.without_nan(box.report(section, rows, False))
    return out


def made(name, a, cache):
    "The row of a step, from the file if it is there"
    path = cache / 'steps.json'
    rows = load_json(path) if path.exists() else {}
    recipe = recipe_of(STEPS[name], a.crops, a.threads, a.seed)
    trained = digest(recipe.to_dict(), box.version_of(anatomy, appearance))
    label = f'{name}-{digest(trained, sorted(a.sections), a.limit)}'
    if label in rows:
        return rows[label]
    run, start = cache / 'steps' / f'{name}-{trained}', time.perf_counter()
    train(None, run, recipe, resume=True, echo=box.say)
    seconds = time.perf_counter() - start
    row = dict(recipe=recipe.to_dict(), crops=a.crops, seconds=seconds, machine=machine())
    row['scores'] = score(run, a, cache)
    save_json(path, (load_json(path) if path.exists() else {}) | {label: row})
    return row


def numbers(row):
    "(Kidney, tumor of patients; false tumor of healthy ones; kidney, tumor painted; plausible) or None"
    s = row['scores']
    out = {}
    for kind, keys in (('with a tumor', ('kidney', 'tumor')), ('without a tumor', ('false_tumor_ml',))):
        raw = (s.get('patients') or {}).get(kind, {}).get('raw', {})
        out |= {f'{k}, {kind}': raw[k][0] for k in keys if k in raw}
    raw = (s.get('painted') or {}).get('raw', {})
    out |= {f'{k}, painted': raw[k][0] for k in ('kidney', 'tumor') if k in raw}
    if real := s.get('real'):
        out['plausible'] = real['plausible']['raw']
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--cache', required=True, type=Path, help='folder of scans, runs and rows')
    p.add_argument('--steps', default=','.join(STEPS), help='default: all')
    p.add_argument('--crops', type=int, default=240, help=f'budget, crops of {SIDE} voxels a side')
    p.add_argument('--sections', default='patients,real', help='of patients,painted,real')
    p.add_argument('--limit', type=int, help='only the first scans of each kind')
    p.add_argument('--threads', type=int, default=0)
    p.add_argument('--seed', type=int, default=0)
    a = p.parse_args()
    a.sections = a.sections.split(',')
    if wrong := set(a.steps.split(',')) - set(STEPS):
        p.error(f'there is no step {", ".join(sorted(wrong))}; choose of {", ".join(STEPS)}')
    if wrong := set(a.sections) - {'patients', 'painted', 'real'}:
        p.error(f'there is no section {", ".join(sorted(wrong))}')
    if a.threads:
        torch.set_num_threads(a.threads)
    try:
        rows = {name: made(name, a, a.cache) for name in a.steps.split(',')}
    except CaseError as e:
        raise SystemExit(f'steps.py: {e}')
    box.say(f'\n{machine()}; {a.crops} crops')
    for name, row in rows.items():
        text = '  '.join(f'{k} {v:.3g}' for k, v in numbers(row).items())
        box.say(f'{name:16} {row["seconds"]:6.0f} s  {text}')


if __name__ == '__main__':
    main()
