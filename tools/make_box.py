#!/usr/bin/env python
"""Put a trained network into the package: `python tools/make_box.py RUN --note TEXT`

Writes kits_nb/box/: the weights of the run folder RUN in float16, its settings with the weights' SHA-256, and
box.json, which says how they came about: commit, seed, recipe, device, log. `--commit` names the commit where
the run folder could not know it. A run that began with the package's network (`kits-train run --recipe box
--init box`) keeps the facts of that one, as it was at the run's commit, as `before`. Scores are added by
`python bench/box.py --save`."""
import argparse, csv, json, subprocess
from pathlib import Path
from kits_nb.core import load_json, save_json
from kits_nb.network.saving import load_model, save_model

ROOT = Path(__file__).resolve().parent.parent
BOX = ROOT/'kits_nb'/'box'
KEEP = 'spacing', 'window', 'flips', 'epoch', 'clean', 'sure'   # what prediction needs, no place


def number(text):
    try: return float(text)
    except ValueError: return text


def package_facts(commit):
    "box.json as it was at a commit"
    command = ['git', '-C', str(ROOT), 'show', f'{commit}:kits_nb/box/box.json']
    shown = subprocess.run(command, capture_output=True, text=True)
    if shown.returncode: raise SystemExit(f'make_box.py: {shown.stderr.strip()}')
    return json.loads(shown.stdout)


def facts_of(run):
    "What is known of a run folder, and in `before` of those that it started from"
    told = load_json(run/'run.json')
    facts = {k: told[k] for k in ('commit', 'started', 'device', 'versions', 'recipe', 'cases', 'inputs')}
    with open(run/"log.csv", newline="") as f:
        facts['log'] = [{k: number(v) for k, v in row.items()} for row in csv.DictReader(f)]
    train = facts['recipe']['train']
    if init := train['init']:
        last = package_facts(facts['commit']) if init == 'box' else facts_of(Path(init))
        facts['before'] = [*last.pop('before', []), last]
        train['init'] = Path(init).name         # no place of this machine
    return facts


def main():
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument('run', type=Path)
    parser.add_argument('--note', default='', help='what the settings do not say')
    parser.add_argument('--commit', default='', help='by default the one in run.json')
    size = 'voxels a side that prediction sees at once; by default the crop'
    parser.add_argument('--window', type=int, help=size)
    parser.add_argument('--clean', default='', help='postprocessing as JSON, such as {"kidneys": true}')
    sure = 'least mean probability of kidney in a tumor, for drop_doubtful'
    parser.add_argument('--sure', type=float, help=sure)
    a = parser.parse_args()
    net, facts = load_model(a.run), facts_of(a.run) | dict(note=a.note)
    if a.commit: facts['commit'] = a.commit
    meta = net.meta | (dict(clean=json.loads(a.clean)) if a.clean else {})
    if a.window: meta['window'] = [a.window]*3
    if a.sure: meta['sure'] = a.sure
    save_model(BOX, net, {k: meta[k] for k in KEEP if k in meta}, half=True)
    save_json(BOX/'box.json', facts)
    size = (BOX/'model.safetensors').stat().st_size
    print(f'{BOX}: {size/1e6:.2f} MB, sha256 {load_json(BOX/"config.json")["sha256"]}')


if __name__ == '__main__':
    main()
