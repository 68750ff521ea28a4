#!/usr/bin/env python
"""Train the networks of the book's chapters, on synthetic patients alone: `python tools/train_book.py WORK`

Writes nbs/trained/: `tiny/` is the network of the recipe `tiny` (weights in float16, settings, log, and what
it predicted for one held-out patient after each epoch), and `scores.csv` has the Dice of twelve held-out
patients for one network, the same with eight mirror images, and an ensemble of five. WORK keeps patients and
runs; a call that was interrupted resumes. About seven minutes for each of the six networks on one core.
"""
import argparse, json, shutil, sys
from pathlib import Path
import numpy as np, pandas as pd, torch
from fastai.basics import Callback
from safetensors.torch import load_file, save_file
from kits_nb.data.files import read_ct, read_seg
from kits_nb.data.kits19 import find_cases
from kits_nb.data.phantom import write_phantoms
from kits_nb.data.store import prepare_folder
from kits_nb.demo import TEST_SEED
from kits_nb.evaluation.scores import evaluate_folder, mask_dice
from kits_nb.inference.cases import PredictConfig, load_models, predict_folder
from kits_nb.inference.predict import predict_volume
from kits_nb.show import busiest_slice
from kits_nb.training.ensemble import train_folds
from kits_nb.training.recipe import RECIPES
from kits_nb.training.run import train

ROOT = Path(__file__).resolve().parent.parent
FOLDS = 5


class Watch(Callback):
    "Predict a held-out patient after each epoch, and keep the slice with most foreground"
    order = 80

    def __init__(self, case, meta, path):
        self.ct, self.truth = read_ct(case.ct), read_seg(case.seg)
        self.z, self.meta, self.path = busiest_slice(self.truth), meta, path

    def after_epoch(self):
        net = self.learn.model.eval()
        net.meta = self.meta
        _, pred = predict_volume([net], self.ct, PredictConfig(tta=False))
        dice = [[mask_dice(pred.data >= k, self.truth.data >= k) for k in (1, 2)]]
        old = dict(pred=np.empty((0, *pred.shape[1:]), np.uint8), dice=np.empty((0, 2)))
        if self.epoch and self.path.exists(): old = dict(np.load(self.path))
        new = dict(pred=pred.data[None, self.z], dice=dice)
        new = {k: np.concatenate([old[k][:self.epoch], v]) for k, v in new.items()}
        same = dict(ct=self.ct.data[self.z], truth=self.truth.data[self.z], spacing=self.ct.spacing[1:])
        np.savez_compressed(self.path, **same, **new)


def make_data(work, recipe, n, n_test):
    for name, k, seed in (('train', n, 0), ('test', n_test, TEST_SEED)):
        done = len(find_cases(work/name)) if (work/name).exists() else 0
        if done < k: write_phantoms(work/name, k, seed, n_workers=2)
    prepare_folder(work/'train', work/'prepared', recipe.prepare, n_workers=2)


def score(work, name, models, **kwargs):
    "Dice of the held-out patients under one setting"
    predict_folder(models, find_cases(work/'test'), work/name, PredictConfig(**kwargs), overwrite=True)
    table, problems = evaluate_folder(work/name, work/'test')
    assert not problems, problems
    table = table.drop(index='mean')[['kidney', 'tumor', 'composite']].rename_axis('case').reset_index()
    return table.assign(setting=name)[['setting', 'case', 'kidney', 'tumor', 'composite']]


def keep(run, out):
    "Copy what a chapter needs of a run folder, weights in float16"
    out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half() for k, v in load_file(run/'model.safetensors').items()}, out/'model.safetensors')
    for name in ('config.json', 'log.csv'): shutil.copy(run/name, out/name)
    facts = json.loads((run/'run.json').read_text())
    facts['command'] = ['tools/train_book.py']      # without the folders of this machine
    (out/'run.json').write_text(json.dumps(facts, indent=2) + '\n')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('work', type=Path, help='folder for patients and runs')
    p.add_argument('--n', type=int, default=96, help='patients to learn from')
    p.add_argument('--n-test', type=int, default=12, help='held-out patients')
    p.add_argument('--epochs', type=int, default=10)
    p.add_argument('--only', choices=['tiny', 'ensemble'], help='one of the two halves')
    p.add_argument('--out', type=Path, default=ROOT/'nbs/trained')
    args = p.parse_args()
    recipe = RECIPES['tiny'].replace(epochs=args.epochs)
    make_data(args.work, recipe, args.n, args.n_test)
    if args.only != 'ensemble':
        meta = dict(spacing=recipe.prepare.spacing, window=recipe.train.crop)
        watch = Watch(find_cases(args.work/'test')[0], meta, args.work/'epochs.npz')
        settings = recipe.replace(n_folds=max(3, args.n//2))
        train(args.work/'prepared', args.work/'tiny', settings, resume=True, cbs=[watch])
        keep(args.work/'tiny', args.out/'tiny')
        shutil.copy(args.work/'epochs.npz', args.out/'tiny/epochs.npz')
    if args.only != 'tiny':
        train_folds(args.work/'prepared', args.work/'folds', recipe.replace(n_folds=FOLDS), resume=True)
        one, five = load_models(args.work/'folds/fold_0'), load_models(args.work/'folds')
        table = pd.concat([score(args.work, 'single', one, tta=False), score(args.work, 'single + TTA', one),
                           score(args.work, 'ensemble + TTA', five)])
        table.round(4).to_csv(args.out/'scores.csv', index=False)
        print(table.groupby('setting', sort=False)[['kidney', 'tumor', 'composite']].mean().round(4))


if __name__ == '__main__': sys.exit(main())
