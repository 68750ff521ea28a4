#!/usr/bin/env python
"""Make the picture of the home page: `python tools/make_picture.py`

The synthetic patient of `kits-demo`, what the network in the package finds, and the edges that its boundary
stream sees."""
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from kits_nb.data.volume import normalize_hu, resample
from kits_nb.demo import BOX_SEED, clinic_scan
from kits_nb.inference.predict import PredictConfig, predict_volume
from kits_nb.inference.slabs import to_spacing
from kits_nb.inference.windows import sliding_window
from kits_nb.network.saving import BOX, load_model
from kits_nb.show import busiest_slice, show_slice

ROOT = Path(__file__).resolve().parent.parent


def edges(net, ct):
    "Probability of an edge, of either mask, on the grid of the scan"
    work = to_spacing(ct, net.meta['spacing'])
    def predict(x):
        with torch.no_grad(): return net(x)[1].sigmoid()
    x = normalize_hu(torch.from_numpy(work.data))[None]
    prob = sliding_window(predict, x, net.meta['window'], overlap=.5)
    return resample(prob.amax(0).numpy(), ct.shape)


def main(out=ROOT/'nbs/images/hero.jpg'):
    net = load_model(BOX)
    ct, seg = clinic_scan(BOX_SEED)
    _, pred = predict_volume([net], ct, PredictConfig())
    edge, z = edges(net, ct), busiest_slice(seg)
    rows, columns = (np.flatnonzero((ct.data[z] > -200).any(axis))[[0, -1]] for axis in (1, 0))
    box = np.s_[z:z+1, rows[0]:rows[1], columns[0]:columns[1]]
    fig, axs = plt.subplots(1, 3, figsize=(12, 3.1), layout='constrained', facecolor='white')
    for ax, title in zip(axs, ('a CT scan', 'kidneys and tumor found', 'edges learned')):
        show_slice(ct.data[box], pred.data[box] if 'found' in title else None, 0, spacing=ct.spacing, ax=ax)
        ax.set_title(title, fontsize=13)
    heat = edge[box][0]
    axs[2].imshow(heat, cmap='magma', vmin=0, vmax=1, alpha=np.clip(heat*1.5, 0, 1), interpolation='bilinear')
    fig.savefig(out, dpi=130, pil_kwargs=dict(quality=80))
    print(f'{out.relative_to(ROOT)}: {out.stat().st_size//1000} kB')


if __name__ == '__main__': main()
