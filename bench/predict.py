"""Predicting a whole scan, beside MONAI and nnU-Net's resampling

    python bench/predict.py                      every comparison, on a painted scan and the real one
    python bench/predict.py growth [--plot F]    time and memory against voxels, over a thirtyfold range
    python bench/predict.py large                512 x 512 x 1059 at 0.5 mm

Every run is a fresh process, so that its peak is its own. The network is tiny, and its forward passes are
timed and taken off: what is compared is everything else. Each contender starts from an int16 array with an
affine and ends with uint8 labels on the scan's own grid; files are read and written outside of the clock.
"""

import argparse, json, os, subprocess, sys, tempfile, time, warnings
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
from measure import machine, median, status
from kits_nb.network.model import BoundaryNet, NetConfig
from kits_nb.inference.predict import PredictConfig, make_predictor, memory_bound, segment
from kits_nb.inference.slabs import grid_of, join_slabs, sliding_slabs, to_spacing, AIR
from kits_nb.data.files import read_ct
from kits_nb.data.volume import Volume, resampled_shape
from kits_nb.inference.windows import window_weights

warnings.filterwarnings('ignore')
WINDOW, GOAL, BATCH = (96,) * 3, (1.0, 1.0, 1.0), 2


class Net(torch.nn.Module):
    """A network whose forward passes are timed: 'voxel' scales every voxel, 'trivial' is one 3x3x3
    convolution, others are NetConfig presets"""

    def __init__(self, kind='trivial'):
        super().__init__()
        torch.manual_seed(0)
        if kind == 'voxel':
            self.net = lambda x: torch.cat([x * 20 - 1, x * 20 - 3], 1)
        else:
            self.net = (
                torch.nn.Conv3d(1, 2, 3, padding=1)
                if kind == 'trivial'
                else BoundaryNet(NetConfig.preset(kind))
            )
        if kind == 'trivial':
            self.net.weight.data.abs_().mul_(8)
            self.net.bias.data[:] = torch.tensor([-1.0, -3.0])  # air is background
        self.eval().requires_grad_(False)
        self.seconds, self.calls, self.meta = 0, 0, dict(spacing=GOAL, window=WINDOW)

    def forward(self, x):
        start = time.perf_counter()
        y = self.net(x)
        self.seconds += time.perf_counter() - start
        self.calls += len(x)
        return y if isinstance(y, tuple) else (y, None)


def affine_of(spacing):
    return np.diag([*spacing, 1.0])


def painted(shape, spacing):
    "A body of lumps in air, int16, on a grid of any size"
    torch.manual_seed(0)
    small = F.interpolate(torch.randn(1, 1, 10, 16, 16), (48, 64, 64), mode='trilinear') * 150
    z, y, x = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in (48, 64, 64)], indexing='ij')
    small = torch.where(((y / 0.6) ** 2 + (x / 0.8) ** 2 < 1)[None, None], small, torch.tensor(-1000.0))
    out = np.empty(shape, np.int16)
    from kits_nb.inference.slabs import resample_slabs

    for s, v in resample_slabs(small[0], shape):
        out[s] = (v[0] + 15 * torch.randn(v[0].shape)).round_().clamp_(-1000, 2000).numpy()
    return Volume(out, affine_of(spacing))


# MONAI's `scale_extent` moves its grid the wrong way along an axis whose voxels grow:
# the grids agree only where all voxels shrink
SCANS = dict(
    whole=((96, 256, 256), (3.0, 1.5, 1.5)),
    thick=((97, 512, 512), (3.0, 0.797, 0.797)),
    fine=((611, 512, 512), (0.5, 0.92, 0.92)),
)


def load(name):
    if name == 'real':
        return read_ct(Path(os.environ['KITS_DATA']) / 'kits19_real/case_00000/imaging.nii.gz')
    if name in SCANS:
        return painted(*SCANS[name])
    shape, spacing = name.split('@')
    return painted(tuple(map(int, shape.split('x'))), tuple(map(float, spacing.split('x'))))


def ours(box, net, skip, stages):
    "`box` holds the scan, and nobody else does, so that it can be let go"
    cfg = PredictConfig(WINDOW, 0.5, False, BATCH, 'float32', skip_air=skip)
    ct = box.pop()
    work, grid = to_spacing(ct, GOAL), grid_of(ct)
    stages['to 1 mm'] = time.perf_counter()
    del ct
    return segment([net], work, grid, cfg)['labels'].data


def monai_windows(x, net, own_weights=False):
    from monai.inferers import sliding_window_inference

    kw = dict(roi_weight_map=window_weights(WINDOW)) if own_weights else {}
    return sliding_window_inference(
        x[None],
        WINDOW,
        BATCH,
        lambda w: net(w)[0].sigmoid(),
        0.5,
        mode='gaussian',
        sigma_scale=0.125,
        cval=-1,
        **kw,
    )[0]


def monai(box, net, skip, stages, nnunet=False):
    "MONAI's transforms and inferer; with `nnunet` the two resamplings are nnU-Net's"
    ct = box.pop()
    from monai.data import MetaTensor
    from monai.transforms import ScaleIntensityRange, Spacing

    aff = torch.from_numpy(affine_of(ct.spacing))
    there = Spacing(pixdim=GOAL, mode='bilinear', scale_extent=True, padding_mode='border')
    with torch.inference_mode():
        x = MetaTensor(torch.from_numpy(ct.data)[None].float(), affine=aff)
        if nnunet:
            work = torch.from_numpy(
                np.asarray(
                    nn_resample(x.numpy(), resampled_shape(ct.shape, ct.spacing, GOAL), ct.spacing, GOAL, 3)
                )
            )
        else:
            work = there(x)
        stages['to 1 mm'] = time.perf_counter()
        work = ScaleIntensityRange(-1000, 1000, -1, 1, clip=True)(work)
        prob = monai_windows(work.as_subclass(torch.Tensor), net)
        stages['windows'] = time.perf_counter()
        if nnunet:
            back = torch.from_numpy(np.asarray(nn_resample(prob.numpy(), ct.shape, GOAL, ct.spacing, 1)))
        else:
            back = there.inverse(
                MetaTensor(prob, affine=work.affine, applied_operations=work.applied_operations)
            ).as_tensor()
        return ((back[0] > 0.5).byte() + ((back[0] > 0.5) & (back[1] > 0.5)).byte()).numpy()


def nn_resample(x, shape, spacing, new, order):
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    return resample_data_or_seg_to_shape(
        x, shape, spacing, new, is_seg=False, order=order, order_z=0, force_separate_z=None
    )


WAYS = {
    'ours': ours,
    'ours, every window': lambda b, n, s, t: ours(b, n, False, t),
    'MONAI': monai,
    'MONAI, nnU-Net resampling': lambda b, n, s, t: monai(b, n, s, t, True),
}


def one(way, scan, kind):
    "One run, in this process; prints JSON"
    warm = painted((20, 128, 128), (2.0, 1.0, 1.0))
    WAYS[way]([warm], Net(), True, {})
    box = [load(scan)]
    net = Net(kind)
    n, shape, spacing = box[0].data.size, box[0].shape, box[0].spacing
    held = box[0].data.nbytes
    stages = {}
    start_rss = status('VmRSS') - held
    Path('/proc/self/clear_refs').write_text('5')
    start = time.perf_counter()
    labels = WAYS[way](box, net, True, stages)
    total = time.perf_counter() - start
    out = dict(
        total=total,
        forward=net.seconds,
        outside=total - net.seconds,
        windows=net.calls,
        peak=status('VmHWM') - start_rss,
        rss=status('VmHWM'),
        there=stages['to 1 mm'] - start,
        voxels=n,
        work=int(np.prod(resampled_shape(shape, spacing, GOAL))),
        positive=float((labels > 0).mean()),
        bound=memory_bound(shape, spacing, GOAL, WINDOW, PredictConfig(tta=False, batch_size=BATCH)),
    )
    np.save(os.environ['LABELS'], labels) if os.environ.get('LABELS') else None
    print(json.dumps(out))


def fresh(way, scan, kind='trivial', labels=''):
    r = subprocess.run(
        [sys.executable, __file__, 'one', way, scan, kind],
        capture_output=True,
        text=True,
        env=os.environ | dict(LABELS=labels),
    )
    if r.returncode:
        raise SystemExit(r.stderr[-2000:])
    return json.loads(r.stdout.splitlines()[-1])


def compare(scan, ways, rounds, kind='trivial'):
    tmp = tempfile.mkdtemp()
    runs = {w: [] for w in ways}
    for i in range(rounds):
        for j, w in enumerate(ways):
            runs[w].append(fresh(w, scan, kind, f'{tmp}/{j}.npy'))
    base = runs.get('MONAI')
    r = runs[ways[0]][0]
    print(
        f'\n{scan}: {r["voxels"]/1e6:.0f} Mvoxel, {r["work"]/1e6:.0f} at 1 mm; network {kind}, windows '
        f'{WINDOW[0]}^3, overlap 0.5, batch {BATCH}, float32'
    )
    print(f'{"":28} windows  total s  outside forward s   of MONAI   peak MiB   of MONAI')
    m = lambda w, k: median([o[k] for o in runs[w]])
    for w in ways:
        rel = lambda k: f'{m(w,k)/m("MONAI",k):8.2f}' if base else ''
        print(
            f'{w:28} {m(w,"windows"):7} {m(w,"total"):8.2f} {m(w,"outside"):12.2f} {rel("outside"):>16} '
            f'{m(w,"peak")/2**20:10.0f} {rel("peak"):>10}'
        )
    a = np.load(f'{tmp}/0.npy')
    for j, w in list(enumerate(ways))[1:]:
        print(f'labels of {w} that differ from ours: {(np.load(f"{tmp}/{j}.npy") != a).mean():.2e}')
    return runs


def agreement():
    "Probabilities on one and the same 1 mm grid, and labels where everybody's grids agree"
    ct = load('whole')
    net = Net()
    work = to_spacing(ct, GOAL)
    from monai.data import MetaTensor
    from monai.transforms import Spacing

    m = Spacing(pixdim=GOAL, mode='bilinear', scale_extent=True, padding_mode='border')(
        MetaTensor(torch.from_numpy(ct.data)[None].float(), affine=torch.from_numpy(ct.affine))
    )
    print(
        f'\n1 mm grid of MONAI {tuple(m.shape[1:])}, ours {work.shape}; largest difference '
        f'{np.abs(m[0].numpy() - work.data).max():.2f} HU (ours are whole numbers)'
    )
    with torch.inference_mode():
        hu = m.as_tensor().round().short()
        predict = make_predictor([net], PredictConfig(precision='float32', tta=False))
        p = join_slabs(sliding_slabs(predict, hu, WINDOW, 0.5, BATCH, fill=AIR), hu.shape[1])
        for own in (True, False):
            q = monai_windows((hu.float() / 1000).clamp(-1, 1), net, own)
            inner = tuple(slice(12, -12) for _ in range(3))
            print(
                f'probabilities on MONAI\'s grid, '
                f'{"our weights" if own else "its own (clamped) weights"}: largest difference '
                f'{(p-q).abs().max():.1e}, 12 voxels off the faces '
                f'{(p-q)[(slice(None), *inner)].abs().max():.1e}'
            )


def growth(plot=None, rounds=3):
    shapes = [(n, 320, 320) for n in (24, 50, 100, 200, 400, 720)]
    runs = [
        [fresh('ours', f'{"x".join(map(str, s))}@1.5x.8x.8', 'voxel') for s in shapes] for _ in range(rounds)
    ]
    rows = [{k: median([o[k] for o in r]) for k in r[0]} for r in zip(*runs)]
    x = np.array([o['voxels'] for o in rows]) / 1e6
    print('\nMvoxel   outside forward s   peak MiB   bound MiB')
    for o in rows:
        print(f'{o["voxels"]/1e6:6.1f} {o["outside"]:14.2f} {o["peak"]/2**20:14.0f} {o["bound"]/2**20:11.0f}')
    fits = {}
    for k, unit in (('outside', 1), ('peak', 2**20)):
        y = np.array([o[k] for o in rows]) / unit
        a = (x @ y) / (x @ x)
        slope, start = np.polyfit(x, y, 1)
        r2 = lambda fit: 1 - ((y - fit) ** 2).sum() / ((y - y.mean()) ** 2).sum()
        print(
            f'{k}: {a:.3f} per Mvoxel through the origin, R^2 {r2(a*x):.4f}; {slope:.3f} per Mvoxel from '
            f'{start:.1f}, R^2 {r2(slope*x+start):.4f}; over a {x.max()/x.min():.0f}-fold range'
        )
        fits[k] = (x, y, a, 0) if k == 'outside' else (x, y, slope, start)  # memory has a constant part
    if plot:
        draw(fits, np.array([o['bound'] for o in rows]) / 2**20, plot)


def draw(fits, bound, path):
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    fig, axs = plt.subplots(1, 2, figsize=(7.4, 2.8), dpi=80, layout='constrained')
    for ax, (k, (x, y, a, b)), label in zip(
        axs, fits.items(), ('seconds outside the network', 'peak memory (MiB)')
    ):
        ax.plot(
            [0, x.max()],
            [b, a * x.max() + b],
            color='#0072B2',
            lw=1,
            label=f'{a:.2g} per million voxels' + (f', and {b:.0f}' if b else ''),
        )
        ax.plot(x, y, 'o', color='#D55E00', label='measured')
        if k == 'peak':
            ax.plot(x, bound, 's--', ms=3, lw=0.8, color='.5', label='memory_bound')
        ax.set(xlabel='voxels of the scan (million)', ylabel=label, xlim=(0, None), ylim=(0, None))
        ax.legend(fontsize=7)
    fig.savefig(path)


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('what', nargs='?', default='all')
    p.add_argument('args', nargs='*')
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--net', default='trivial')
    p.add_argument('--plot')
    p.add_argument('--scans', default='whole,real,fine')
    a = p.parse_args()
    if a.what == 'one':
        return one(*a.args)
    print(machine('monai', 'nnunetv2'))
    if a.what == 'growth':
        return growth(a.plot, a.rounds)
    if a.what == 'large':
        r = fresh('ours', '1059x512x512@0.5x0.5x0.5', 'voxel')
        return print(
            f'512 x 512 x 1059 at 0.5 mm: {r["outside"]:.1f} s outside the forward pass ({r["windows"]} '
            f'windows), peak {r["peak"]/2**20:.0f} MiB, bound {r["bound"]/2**20:.0f} MiB'
        )
    if 'whole' in a.scans.split(','):
        agreement()
    ways = [w for w in WAYS if 'nnU' not in w or _has('nnunetv2')]
    for scan in a.scans.split(','):
        if scan == 'real' and not os.environ.get('KITS_DATA'):
            print('\nreal: skipped, KITS_DATA is not set')
            continue
        compare(
            scan,
            ways if scan != 'fine' else [w for w in ways if 'nnU' not in w],
            a.rounds if scan != 'fine' else 1,
            a.net,
        )


def _has(name):
    import importlib.util

    return importlib.util.find_spec(name) is not None


if __name__ == '__main__':
    main()
