#!/usr/bin/env python
"""Bad inputs, hostile files and faults, each with its exact outcome: `python tools/check_trust.py [NAME]`

Each section is a module of tools/trust with a function `main()` that returns counts (a dictionary: 'tried',
'wrong' and what else it counts). Prints a line a section and a total; the exit code is 1 if anything is
wrong."""
import importlib, os, sys, time, traceback
from collections import Counter
from pathlib import Path

for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'): os.environ.setdefault(name, '1')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')
sys.path.insert(0, str(Path(__file__).resolve().parent/'trust'))
import table

SECTIONS = ['inputs_scans', 'inputs_labels', 'inputs_models', 'fuzz', 'faults', 'downloads', 'repeat']


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
    there = [o for o in SECTIONS if (Path(__file__).resolve().parent/'trust'/f'{o}.py').exists()]
    if unknown := set(names) - set(there):
        sys.exit(f'there is no section {", ".join(unknown)}, only {", ".join(there)}')
    total = sum((run_section(o) for o in names or there), Counter())
    total.setdefault('wrong', 0)
    print('=== ' + table.line('total', total))
    return int(total['wrong'] > 0 or not total['tried'])


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
