"""Synthetic patients per second: `make_patient` at several sizes, on one core or on a GPU.

    python bench/phantoms.py                      # one core
    python bench/phantoms.py --device cuda
    python bench/phantoms.py --variety wide --rounds 9

Each row is the median over `--rounds` patients with different seeds, after one that is not counted; `share`
is the part of it that draws the patient's numbers, and `busy` the processor's own time, which other
processes disturb less. Memory is kept between patients, as in training."""

import argparse, statistics, time
import torch
from measure import machine
from kits_nb.data.anatomy import draw_patient
from kits_nb.data.appearance import make_patient
from kits_nb.network.device import keep_memory

SIZES = [((128, 128, 128), 2.0), ((96, 96, 96), 2.5), ((64, 96, 96), 3.0), ((176, 176, 176), 1.0)]


def seconds(f, device):
    "(Seconds, seconds of this process on its cores)"
    if device != 'cpu':
        torch.cuda.synchronize()
    start, busy = time.perf_counter(), time.process_time()
    f()
    if device != 'cpu':
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - busy


def main():
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--variety', default='clinic')
    parser.add_argument('--region', default='kidney')
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    keep_memory()
    print(machine())
    print(f'{"voxels":>14}  {"mm":>4}  {"seconds":>8}  {"low":>6}  {"high":>6}  {"busy":>6}  {"share":>6}')
    for shape, spacing in SIZES:
        make = lambda s: make_patient(s, shape, (spacing,) * 3, a.region, a.device, a.variety)
        make(99)
        times = [seconds(lambda: make(s), a.device) for s in range(a.rounds)]
        draw = lambda s: draw_patient(s, a.variety)
        share = statistics.median(seconds(lambda: draw(s), 'cpu')[1] for s in range(a.rounds))
        wall, busy = zip(*times)
        t, cpu = statistics.median(wall), statistics.median(busy)
        size = 'x'.join(map(str, shape))
        span = f'{min(wall):6.3f}  {max(wall):6.3f}'
        print(f'{size:>14}  {spacing:4.1f}  {t:8.3f}  {span}  {cpu:6.3f}  {share / cpu:6.0%}')


if __name__ == '__main__':
    main()
