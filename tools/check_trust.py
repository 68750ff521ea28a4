#!/usr/bin/env python
"""Bad inputs, hostile files and faults, each with its exact outcome: `python tools/check_trust.py [NAME]`

Each section is a module of tools/trust with a function `main()` that returns counts (a dictionary: 'tried',
'wrong' and what else it counts). Prints a line a section and a total; the exit code is 1 if anything is
wrong."""
import importlib, os, sys, time, traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ.setdefault(name, '1')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')
sys.path.insert(0, str(Path(__file__).resolve().parent/'trust'))
import table

SECTIONS = ['fuzz', 'inputs_scans', 'inputs_labels', 'downloads', 'inputs_models']    # two at a time
BOTH_CORES = ['faults', 'repeat']                                                    # use two by themselves


def run_section(name):
    "Counts of a section; one that cannot run is wrong"
    start = time.time()
    try: n = Counter(importlib.import_module(name).main())
    except Exception:
        traceback.print_exc()
        n = Counter(wrong=1)
    n['seconds'] = time.time() - start
    print('=== ' + table.line(name, n), flush=True)
    return n


def main(names):
    if unknown := set(names) - {*SECTIONS, *BOTH_CORES}:
        sys.exit(f'there is no section {", ".join(unknown)}, only {", ".join(SECTIONS + BOTH_CORES)}')
    start = time.time()
    few, long = ([o for o in part if o in names or not names] for part in (SECTIONS, BOTH_CORES))
    with ProcessPoolExecutor(2, get_context('spawn')) as ex: counts = list(ex.map(run_section, few))
    total = sum(counts + [run_section(o) for o in long], Counter())
    total['seconds'] = time.time() - start
    total.setdefault('wrong', 0)
    print('=== ' + table.line('total', total))
    return int(total['wrong'] > 0 or not total['tried'])


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
