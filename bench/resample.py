"""Resampling a scan to 1 mm and two probability maps back, beside the tools that others use

    python bench/resample.py [--rounds 3] [--slices 97] [--skip nnunet,monai]

Peers that are not installed are left out (SimpleITK, torchio, scipy, monai, nnunetv2). Each contender gets
its input in the form it wants, outside of the clock. Rounds are interleaved; the first, untimed one
measures memory and error.
"""

import argparse, warnings
import numpy as np, torch, torch.nn.functional as F
from measure import machine, median, peak, timed
from kits_nb.inference.slabs import labels_on, resample_slabs, to_spacing
from kits_nb.data.volume import Volume, resampled_affine, resampled_shape

warnings.filterwarnings('ignore')
SPACING, GOAL = (3.0, 0.797, 0.797), (1.0, 1.0, 1.0)


def affine_of(spacing):
    return np.diag([*spacing, 1.0])


def scan(shape):
    "Lumps of tissue with noise, int16"
    torch.manual_seed(0)
    x = F.interpolate(torch.randn(1, 1, 12, 24, 24), shape, mode='trilinear')[0, 0] * 300
    return (x + 20 * torch.randn(shape)).round_().short().numpy()


def exact(x, shape):
    "Trilinear by voxel centres in float64, channel by channel"
    return torch.stack(
        [F.interpolate(c.double()[None, None], shape, mode='trilinear')[0, 0].float() for c in x]
    )


def sitk_image(x, affine):
    import SimpleITK as sitk

    img = sitk.GetImageFromArray(x)
    img.SetSpacing([float(np.linalg.norm(affine[:3, i])) for i in (2, 1, 0)])
    img.SetOrigin([float(affine[:3, 3] @ (affine[:3, i] / np.linalg.norm(affine[:3, i]))) for i in (2, 1, 0)])
    return img


def contenders(x, aff, shape, new_aff, back):
    "name -> function without arguments; `x` (C,D,H,W) torch, int16 one way and float32 back"
    spacing, new = ([float(np.linalg.norm(a[:3, i])) for i in range(3)] for a in (aff, new_aff))
    out = {}
    xf = x.float()
    out['F.interpolate, float to float'] = lambda: F.interpolate(xf[None], shape, mode='trilinear')[0]
    if back:
        out['ours, slabs'] = lambda: _collect(x, shape)
        out['ours, and decided (uint8 labels)'] = lambda: torch.from_numpy(labels_on(x, shape))
    else:
        out['F.interpolate, int16 to int16'] = (
            lambda: F.interpolate(x.float()[None], shape, mode='trilinear')[0].round_().short()
        )
        vol = Volume(x[0].numpy(), aff)
        out['ours, int16 to int16'] = lambda: torch.from_numpy(to_spacing(vol, GOAL).data)[None]
    return out | peers(x, aff, shape, new_aff, spacing, new, back)


def _collect(x, shape):
    out = torch.empty(len(x), *shape)
    for s, y in resample_slabs(x, shape):
        out[:, s] = y
    return out


def peers(x, aff, shape, new_aff, spacing, new, back):
    out = {}
    try:
        import SimpleITK as sitk

        imgs, ref = [sitk_image(c.numpy(), aff) for c in x], (new_aff, shape)

        def by_sitk():
            r = sitk.ResampleImageFilter()
            r.SetInterpolator(sitk.sitkLinear)
            r.SetOutputSpacing(new[::-1])
            r.SetSize([int(n) for n in shape[::-1]])
            r.SetUseNearestNeighborExtrapolator(True)
            r.SetOutputOrigin(
                [float(new_aff[:3, 3] @ (new_aff[:3, i] / np.linalg.norm(new_aff[:3, i]))) for i in (2, 1, 0)]
            )
            return torch.stack([torch.from_numpy(sitk.GetArrayFromImage(r.Execute(o))) for o in imgs])

        out['SimpleITK linear'] = by_sitk
    except ImportError:
        pass
    try:
        import torchio as tio

        t = tio.ScalarImage(tensor=x, affine=aff)
        goal = tio.ScalarImage(tensor=torch.zeros(1, *shape, dtype=torch.uint8), affine=new_aff)
        out['TorchIO Resample'] = lambda: tio.Resample(target=goal, image_interpolation='linear')(t).data
    except ImportError:
        pass
    import scipy.ndimage as ndi

    factors = [b / a for a, b in zip(x.shape[1:], shape)]
    out['scipy zoom order 1, grid_mode'] = lambda: torch.stack(
        [torch.from_numpy(ndi.zoom(c.numpy(), factors, order=1, mode='nearest', grid_mode=True)) for c in x]
    )
    try:
        from monai.data import MetaTensor
        from monai.transforms import Spacing

        m = MetaTensor(x, affine=torch.from_numpy(aff))
        out['MONAI Spacing'] = lambda: Spacing(
            pixdim=new, scale_extent=True, mode='bilinear', padding_mode='border'
        )(m)
    except ImportError:
        pass
    try:
        from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

        order = 1 if back else 3
        a = x.numpy()
        out[f'nnU-Net default (order {order})'] = lambda: torch.from_numpy(
            np.asarray(
                resample_data_or_seg_to_shape(
                    a if back else a.astype(np.float32),
                    shape,
                    spacing,
                    new,
                    is_seg=False,
                    order=order,
                    order_z=0,
                    force_separate_z=None,
                )
            )
        )
    except ImportError:
        pass
    return out


def race(title, x, aff, shape, new_aff, back, rounds, skip):
    print(f'\n{title}: {tuple(x.shape)} {x.dtype} to {shape}')
    ref = exact(x, shape)
    runs = {
        k: f
        for k, f in contenders(x, aff, shape, new_aff, back).items()
        if not any(s in k.lower() for s in skip)
    }
    memory, error, seconds = {}, {}, {k: [] for k in runs}
    for k, f in runs.items():
        f() if 'ours' in k or 'F.inter' in k else None  # libraries that load on first use
        y, memory[k] = peak(f)
        error[k] = _error(y, ref)
        del y
    for _ in range(rounds):
        for k, f in runs.items():
            seconds[k].append(timed(f)[1])
    base = median(seconds['F.interpolate, float to float'])
    print(f'{"":36} seconds   x F.interpolate   extra MiB   error: mean, max')
    for k in runs:
        print(
            f'{k:36} {median(seconds[k]):7.2f} {median(seconds[k])/base:12.2f} {memory[k]/2**20:14.0f}   '
            f'{error[k]}'
        )


def _error(y, ref):
    y = y.as_subclass(torch.Tensor)
    if y.dtype == torch.uint8:
        labels = (ref[0] > 0.5).byte() + ((ref[0] > 0.5) & (ref[1] > 0.5)).byte()
        return f'{int((y != labels).sum())} of {y.numel()} labels differ'
    if y.shape != ref.shape:
        return f'another grid: {tuple(y.shape[1:])}'
    d = (y.float() - ref).abs_()
    return f'{d.mean():8.2g} {d.max():8.2g}'


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--slices', type=int, default=97)
    p.add_argument('--size', type=int, default=512)
    p.add_argument('--skip', default='', help='words of contenders to leave out, with commas between')
    a = p.parse_args()
    skip = [o for o in a.skip.lower().split(',') if o]
    print(machine('monai', 'SimpleITK', 'torchio', 'scipy', 'nnunetv2'))
    shape = (a.slices, a.size, a.size)
    aff = affine_of(SPACING)
    new = resampled_shape(shape, SPACING, GOAL)
    new_aff = resampled_affine(aff, shape, new)
    x = torch.from_numpy(scan(shape))[None]
    race('A scan to 1 mm', x, aff, new, new_aff, False, a.rounds, skip)
    prob = F.interpolate(torch.rand(1, 2, 20, 30, 30), new, mode='trilinear')[0]
    race('Probabilities back', prob, new_aff, shape, aff, True, a.rounds, skip)


if __name__ == '__main__':
    main()
