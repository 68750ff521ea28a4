#!/usr/bin/env python
"""Make the README's picture out of a demonstration: `kits-demo --out demo && python tools/make_picture.py demo`

Shows the case whose composite Dice is the median of those that were scored."""
import sys
from pathlib import Path

from kits_nb.inference import load_models, prediction_path
from kits_nb.kits19 import find_cases
from kits_nb.report import case_figure
from kits_nb.volume import read_ct, read_seg

ROOT = Path(__file__).resolve().parent.parent


def median_case(folder):
    "Id of the case in the middle of the scores"
    import pandas as pd
    scores = pd.read_csv(folder/'predictions/scores.csv', index_col='case').drop(index='mean').composite.sort_values()
    return scores.index[len(scores)//2]


def main(folder, out=ROOT/'nbs/images/demo.png'):
    case = next(c for c in find_cases(folder/'test') if c.id == median_case(folder))
    truth, pred = read_seg(case.seg), read_seg(prediction_path(folder/'predictions', case.id))
    fig = case_figure(load_models(folder/'run')[0], read_ct(case.ct), truth, pred)
    out.parent.mkdir(exist_ok=True)
    fig.savefig(out, dpi=80, facecolor='white')
    print(f'{out}: {case.id}, {out.stat().st_size//1000} kB')


if __name__ == '__main__': main(Path(sys.argv[1]))
