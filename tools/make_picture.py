#!/usr/bin/env python
"""Make a picture of a case: `kits-demo --out demo && python tools/make_picture.py demo` makes the README's,
`python tools/make_picture.py run data predictions picture.jpg` one of any other run.

Shows the case whose composite Dice is the median of those that were scored."""
import sys
from pathlib import Path

from kits_nb.inference.cases import load_models, prediction_path
from kits_nb.data.kits19 import find_cases
from kits_nb.evaluation.report import case_figure
from kits_nb.data.volume import read_ct, read_seg

ROOT = Path(__file__).resolve().parent.parent


def median_case(folder):
    "Id of the case in the middle of the scores of a folder of predictions"
    import pandas as pd
    scores = pd.read_csv(folder/'scores.csv', index_col='case').drop(index='mean').composite.sort_values()
    return scores.index[len(scores)//2]


def main(run, data, predictions, out):
    case = next(c for c in find_cases(data) if c.id == median_case(predictions))
    truth, pred = read_seg(case.seg), read_seg(prediction_path(predictions, case.id))
    fig = case_figure(load_models(run)[0], read_ct(case.ct), truth, pred)
    out.parent.mkdir(exist_ok=True)
    fig.savefig(out, dpi=80, facecolor='white')
    print(f'{out}: {case.id}, {out.stat().st_size//1000} kB')


if __name__ == '__main__':
    first, *rest = map(Path, sys.argv[1:])
    main(first, *rest) if rest else main(first/'run', first/'test', first/'predictions', ROOT/'nbs/images/demo.png')
