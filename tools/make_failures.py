#!/usr/bin/env python
"""Draw where the network in the package fails: `python tools/make_failures.py --cache DIR`

Writes nbs/images/failures.jpg: of the held-out synthetic patients of bench/box.py (DIR is its cache, filled
with the scans and predictions if it is not) the largest tumor that is missed, the most false tumor, and the
worst outline of the kidneys in another patient. Where KITS_DATA is set, nbs/images/real.jpg too: the best and
the worst slice of the labelled real scan, and the one with most of its tumor. Prints what the model card says
of them."""
import argparse, os, sys
from pathlib import Path

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'bench'))
import box
from kits_nb.data.files import read_ct, read_seg
from kits_nb.evaluation.morphometry import CleanConfig, clean_labels
from kits_nb.inference.predict import PredictConfig
from kits_nb.network.saving import BOX, load_model
from kits_nb.show import show_slice


def judged(scans, cache):
    "(Scan, prediction, scores) of each"
    net = load_model(BOX).requires_grad_(False)
    cfg, clean = PredictConfig(), CleanConfig.from_dict(dict(net.meta.get('clean') or {}))
    folder = cache/'predictions'/box.model_key('', net, cfg)
    for scan in scans:
        pred = clean_labels(box.prediction(scan, net, cfg, folder), clean)[0]
        yield scan, pred, box.against(pred, read_seg(scan.seg))


def busiest(mask): return int(mask.sum((1, 2)).argmax())


def draw(ax, scan, pred, z, title):
    ct, seg = read_ct(scan.ct), read_seg(scan.seg)
    rows, columns = (np.flatnonzero((ct.data[z] > -200).any(axis))[[0, -1]] for axis in (1, 0))
    at = np.s_[z:z+1, rows[0]:rows[1], columns[0]:columns[1]]
    show_slice(ct.data[at], seg.data[at], 0, spacing=ct.spacing, ax=ax, pred=pred.data[at])
    ax.set_title(title, fontsize=12)


def save(fig, path):
    fig.savefig(path, dpi=130, bbox_inches='tight', pil_kwargs=dict(quality=80))
    print(f'{path}: {path.stat().st_size//1000} kB')


def draw_failures(rows, path):
    tumors = [o for o in rows if o[2]['tumor'] is not None]
    missed = max((o for o in tumors if o[2]['tumor'] < .1), key=lambda o: o[2]['true_tumor_ml'], default=None)
    missed = missed or min(tumors, key=lambda o: o[2]['tumor'])
    false = max(rows, key=lambda o: o[2]['false_tumor_ml'])
    worst = min((o for o in rows if o is not missed), key=lambda o: o[2]['kidney'])
    seg = {id(o): read_seg(o[0].seg).data for o in (missed, false, worst)}
    wrong = (worst[1].data > 0) != (seg[id(worst)] > 0)
    extra = (false[1].data == 2) & (seg[id(false)] != 2)
    masks = [(missed, seg[id(missed)] == 2, f"missed: {missed[2]['true_tumor_ml']:.0f} ml of tumor"),
             (false, extra, f"false: {false[2]['false_tumor_ml']:.0f} ml of tumor"),
             (worst, wrong, f"worst kidneys: Dice {worst[2]['kidney']:.2f}")]
    fig, axs = plt.subplots(1, 3, figsize=(12, 3.1), layout='constrained', facecolor='white')
    for ax, (o, mask, title) in zip(axs, masks):
        draw(ax, o[0], o[1], busiest(mask), title)
        numbers = {k: v if v is None else round(v, 3) for k, v in o[2].items()}
        print(f'{title}; patient {o[0].name}, {o[0].kind}: {numbers}')
    save(fig, path)


def slice_dice(pred, truth, least=100):
    "Dice of kidney with tumor in each axial slice; not a number where both have fewer pixels than `least`"
    both = ((pred.data > 0) & (truth.data > 0)).sum((1, 2))
    p, t = ((o.data > 0).sum((1, 2)) for o in (pred, truth))
    return np.where(np.maximum(p, t) < least, np.nan, 2*both/np.maximum(p + t, 1))


def draw_real(row, path):
    scan, pred, numbers = row
    truth = read_seg(scan.seg)
    dice = slice_dice(pred, truth)
    print(f'{scan.name}: { {k: v if v is None else round(v, 3) for k, v in numbers.items()} }')
    fig, axs = plt.subplots(1, 3, figsize=(12, 3.1), layout='constrained', facecolor='white')
    for ax, z, what in zip(axs, (np.nanargmax(dice), busiest(truth.data == 2), np.nanargmin(dice)),
                           ('best slice', 'its tumor', 'worst slice')):
        draw(ax, scan, pred, int(z), f'{what}: kidney Dice {dice[z]:.2f}')
        print(f'{what}: {z} of {len(dice)}, {dice[z]:.3f}')
    save(fig, path)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--cache', type=Path, required=True, help="bench/box.py's folder")
    p.add_argument('--out', type=Path, default=ROOT/'nbs/images', help='folder of the pictures')
    a = p.parse_args()
    draw_failures(list(judged(box.patients(a.cache, None), a.cache)), a.out/'failures.jpg')
    if os.environ.get('KITS_DATA'):
        draw_real(next(judged(box.case(a.cache, None), a.cache)), a.out/'real.jpg')


if __name__ == '__main__': main()
