#!/usr/bin/env python
"""Make the picture of the home page, `python tools/make_picture.py`: a synthetic patient that the network of
nbs/trained/tiny has never seen, what it finds, and the edges that its boundary stream sees."""
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from kits_nb.data.phantom import make_phantom
from kits_nb.data.volume import normalize_hu, resample
from kits_nb.inference.predict import PredictConfig, predict_volume
from kits_nb.inference.slabs import to_spacing
from kits_nb.inference.windows import sliding_window
from kits_nb.network.saving import load_model
from kits_nb.show import busiest_slice, show_slice

ROOT = Path(__file__).resolve().parent.parent
SEED = 1005


def edges(net, ct):
    "Probability of an edge, of either mask, on the grid of the scan"
    work = to_spacing(ct, net.meta['spacing'])
    def predict(x):
        with torch.no_grad(): return net(x)[1].sigmoid()
    x = normalize_hu(torch.from_numpy(work.data))[None]
    prob = sliding_window(predict, x, net.meta['window'], overlap=.75)
    return resample(prob.amax(0).numpy(), ct.shape)


def main(out=ROOT/'nbs/images/hero.jpg'):
    net = load_model(ROOT/'nbs/trained/tiny')
    ct, seg = make_phantom(seed=SEED)
    _, pred = predict_volume([net], ct, PredictConfig())
    edge, z = edges(net, ct), busiest_slice(seg)
    box = np.s_[z:z+1, 45:120, 20:140]
    fig, axs = plt.subplots(1, 3, figsize=(12, 2.8), layout='constrained', facecolor='white')
    for ax, title in zip(axs, ('a CT scan', 'kidneys and tumor found', 'edges learned')):
        show_slice(ct.data[box], pred.data[box] if 'found' in title else None, 0, spacing=ct.spacing, ax=ax)
        ax.set_title(title, fontsize=13)
    heat = edge[box][0]
    axs[2].imshow(heat, cmap='magma', vmin=0, vmax=1, alpha=np.clip(heat*1.5, 0, 1), interpolation='bilinear')
    fig.savefig(out, dpi=130, pil_kwargs=dict(quality=85))
    print(f'{out.relative_to(ROOT)}: {out.stat().st_size//1000} kB')


if __name__ == '__main__': main()
