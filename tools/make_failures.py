#!/usr/bin/env python
"""Draw where the network in the package fails: `python tools/make_failures.py --cache DIR`

Writes nbs/images/failures.jpg: of the held-out synthetic patients of bench/box.py (DIR is its cache, filled
with the scans and predictions if it is not) the largest tumor that is missed, the most false tumor, and the
worst outline of the kidneys; prints what the model card says of them."""
import argparse, sys
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


def judged(cache):
    "(Scan, prediction, scores) of each held-out patient"
    net = load_model(BOX).requires_grad_(False)
    cfg, clean = PredictConfig(), CleanConfig.from_dict(dict(net.meta.get('clean') or {}))
    folder = cache/'predictions'/box.model_key('', net, cfg)
    for scan in box.patients(cache, None):
        pred = clean_labels(box.prediction(scan, net, cfg, folder), clean)[0]
        yield scan, pred, box.against(pred, read_seg(scan.seg))


def draw(ax, scan, pred, mask, title):
    "The slice with most of a mask"
    ct, seg = read_ct(scan.ct), read_seg(scan.seg)
    z = int(mask.sum((1, 2)).argmax())
    rows, columns = (np.flatnonzero((ct.data[z] > -200).any(axis))[[0, -1]] for axis in (1, 0))
    at = np.s_[z:z+1, rows[0]:rows[1], columns[0]:columns[1]]
    show_slice(ct.data[at], seg.data[at], 0, spacing=ct.spacing, ax=ax, pred=pred.data[at])
    ax.set_title(title, fontsize=12)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--cache', type=Path, required=True, help="bench/box.py's folder")
    p.add_argument('--out', type=Path, default=ROOT/'nbs/images/failures.jpg')
    a = p.parse_args()
    rows = list(judged(a.cache))
    tumors = [o for o in rows if o[2]['tumor'] is not None]
    missed = max((o for o in tumors if o[2]['tumor'] < .1), key=lambda o: o[2]['true_tumor_ml'], default=None)
    missed = missed or min(tumors, key=lambda o: o[2]['tumor'])
    false = max(rows, key=lambda o: o[2]['false_tumor_ml'])
    worst = min(rows, key=lambda o: o[2]['kidney'])
    seg = {id(o): read_seg(o[0].seg).data for o in (missed, false, worst)}
    wrong = (worst[1].data > 0) != (seg[id(worst)] > 0)
    extra = (false[1].data == 2) & (seg[id(false)] != 2)
    masks = [(missed, seg[id(missed)] == 2, f"missed: {missed[2]['true_tumor_ml']:.0f} ml of tumor"),
             (false, extra, f"false: {false[2]['false_tumor_ml']:.0f} ml of tumor"),
             (worst, wrong, f"worst kidneys: Dice {worst[2]['kidney']:.2f}")]
    fig, axs = plt.subplots(1, 3, figsize=(12, 3.1), layout='constrained', facecolor='white')
    for ax, (o, mask, title) in zip(axs, masks):
        draw(ax, o[0], o[1], mask, title)
        numbers = {k: v if v is None else round(v, 3) for k, v in o[2].items()}
        print(f'{title}; patient {o[0].name}, {o[0].kind}: {numbers}')
    fig.savefig(a.out, dpi=130, pil_kwargs=dict(quality=80))
    print(f'{a.out}: {a.out.stat().st_size//1000} kB')


if __name__ == '__main__': main()
