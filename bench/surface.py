#!/usr/bin/env python
"""Surface Dice and HD95 beside MONAI's, on real label maps: `KITS_DATA=... python bench/surface.py`

Each pair is a label map and its own round trip through a 2 mm grid; kidney and tumor. Both sides get the
same full-size masks. Runs are paired and interleaved; what is printed is the median of the ratios MONAI /
ours, and the largest difference of the values."""

import argparse, os, platform, subprocess, time
from pathlib import Path
import monai, numpy as np, scipy, torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from kits_nb.core import *
from kits_nb.evaluation.surface import *
from kits_nb.data.files import *
from kits_nb.data.volume import *


def ours(p, t, sp, tol):
    return surface_dice(p, t, sp, tol), hd95(p, t, sp)


def theirs(p, t, sp, tol):
    p, t = (torch.from_numpy(o)[None, None] for o in (p, t))
    return (
        float(compute_surface_dice(p, t, [tol], include_background=True, spacing=sp, use_subvoxels=True)),
        float(compute_hausdorff_distance(p, t, include_background=True, percentile=95, spacing=sp)),
    )


def timed(f, *args):
    start = time.perf_counter()
    out = f(*args)
    return time.perf_counter() - start, out


def main(cases, repeats):
    commit = subprocess.run(
        ['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True
    ).stdout.strip()
    print(
        f'{platform.machine()}, {os.cpu_count()} cores; monai {monai.__version__}, torch '
        f'{torch.__version__}, scipy {scipy.__version__}; commit {commit}'
    )
    ratios, worst = [], np.zeros(2)
    for i in cases:
        seg = read_seg(Path(os.environ['KITS_DATA']) / f'kits19/case_{i:05}/segmentation.nii.gz')
        back = resample(
            resample(seg.data, resampled_shape(seg.shape, seg.spacing, (2, 2, 2)), 'nearest'),
            seg.shape,
            'nearest',
        )
        for level, name in ((BACKGROUND, 'kidney'), (KIDNEY, 'tumor')):
            args = back > level, seg.data > level, seg.spacing, TOLERANCES[2023][name]
            pairs = [(timed(ours, *args), timed(theirs, *args)) for _ in range(repeats)]
            a, b = (np.median([p[k][0] for p in pairs]) for k in (0, 1))
            ratio = np.median([q[0] / p[0] for p, q in pairs])
            ratios.append(ratio)
            worst = np.maximum(worst, np.abs(np.subtract(pairs[0][0][1], pairs[0][1][1])))
            print(
                f'case_{i:05} {"x".join(map(str, seg.shape)):>13} {name:6}: ours {a:6.2f} s, MONAI '
                f'{b:6.2f} s, ratio {ratio:5.1f}'
            )
    print(
        f'median ratio MONAI / ours {np.median(ratios):.1f} (from {min(ratios):.1f} to '
        f'{max(ratios):.1f}); largest difference: surface Dice {worst[0]:.1e}, HD95 {worst[1]:.1e} mm'
    )


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--cases', default='3,0,15', help='numbers of label maps, with commas between')
    parser.add_argument('--repeats', type=int, default=3)
    a = parser.parse_args()
    main([int(o) for o in a.cases.split(',')], a.repeats)
