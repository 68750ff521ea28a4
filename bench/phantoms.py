"""Synthetic patients per second: `make_patient` at several sizes, on one core or on a GPU.

    python bench/phantoms.py                      # one core
    python bench/phantoms.py --device cuda
    python bench/phantoms.py --variety wide --rounds 9

Each row is the median over `--rounds` patients with different seeds, after one that is not counted; `share`
is the part of it that draws the patient's numbers. Memory is kept between patients, as in training."""

import argparse, statistics, time
import torch
from measure import machine
from kits_nb.data.anatomy import draw_patient
from kits_nb.data.appearance import make_patient
from kits_nb.network.device import keep_memory

SIZES = [((128,) * 3, (2.0,) * 3), ((96,) * 3, (2.5,) * 3), ((64, 96, 96), (3.0,) * 3), ((176,) * 3, (1.0,) * 3)]


def seconds(f, device):
    if device != 'cpu': torch.cuda.synchronize()
    start = time.perf_counter()
    f()
    if device != 'cpu': torch.cuda.synchronize()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--variety', default='clinic')
    parser.add_argument('--region', default='kidney')
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    keep_memory()
    print(machine())
    print(f'{"voxels":>14}  {"mm":>4}  {"seconds":>8}  {"low":>6}  {"high":>6}  {"share":>6}')
    for shape, spacing in SIZES:
        make = lambda s: make_patient(s, shape, spacing, a.region, a.device, a.variety)
        make(99)
        times = [seconds(lambda: make(s), a.device) for s in range(a.rounds)]
        draw = statistics.median(seconds(lambda: draw_patient(s, a.variety), 'cpu') for s in range(a.rounds))
        t = statistics.median(times)
        size = 'x'.join(map(str, shape))
        print(f'{size:>14}  {spacing[0]:4.1f}  {t:8.3f}  {min(times):6.3f}  {max(times):6.3f}  {draw/t:6.0%}')


if __name__ == '__main__':
    main()
