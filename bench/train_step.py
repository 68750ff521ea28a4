"""Our full training step beside others': seconds, seconds per GFLOP, and memory.

    python bench/train_step.py  # CPU, paper, 64³ and 96³, float32 and bfloat16, beside MONAI
    python bench/train_step.py --preset tiny  # the step of the demonstration: 32³, the network `tiny`
    python bench/train_step.py --plain  # beside the plain network, without the fast layers
    python bench/train_step.py --before ../older  # beside an older checkout
    python bench/train_step.py --sizes 176 --device cuda --precisions tf32,bfloat16 --compile both

A step is: forward, loss (ours makes its edge targets in it), backward, Adam. MONAI's is SegResNet(16
filters, blocks 1,2,2,4) with DiceLoss(sigmoid, squared_pred, batch) and torch.optim.Adam. Each network has
a process of its own, and the rounds are interleaved; a ratio is the median of each round's ratio, of our
seconds over theirs. Ours is placed as `train` does it, which on a CPU includes `keep_memory`; `--keep`
gives it to MONAI's process too, or to none. `--before` runs in a process whose PYTHONPATH is the older
checkout, which may have a flat layout. Arithmetic is counted by torch.utils.flop_counter for each. Memory
is the peak of a process above what it held before its network was made.
"""

import argparse, json, os, platform, statistics, time
from pathlib import Path
import torch
from torch.utils.flop_counter import FlopCounterMode
from measure import batch, Worker, commit_of, serve, status, versions

SIZES = dict(paper='64,96', tiny='32')


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--preset', default='paper', help='of the network: paper, box or tiny')
    p.add_argument(
        '--sizes', default='', help='sides of the cubic crop, voxels; 64,96 for paper and 32 for tiny'
    )
    p.add_argument('--precisions', default='float32,bfloat16', help='of float32, tf32 (CUDA), bfloat16')
    p.add_argument('--device', default='cpu', help='cpu or cuda')
    p.add_argument('--rounds', type=int, default=7, help='measured rounds, after one that is not')
    p.add_argument('--threads', type=int, default=0, help='CPU threads; 0 leaves PyTorch its choice')
    p.add_argument('--bs', type=int, default=1, help='crops per step')
    p.add_argument('--compile', default='no', choices=['no', 'yes', 'both'], help='with torch.compile?')
    p.add_argument(
        '--layout',
        default='auto',
        choices=['auto', 'contiguous', 'channels_last'],
        help="memory order of our network",
    )
    p.add_argument(
        '--keep',
        default='ours',
        choices=['ours', 'both', 'none'],
        help='whose process keeps freed memory (CPU)',
    )
    p.add_argument('--plain', action='store_true', help='beside our plain network')
    p.add_argument('--before', default='', help='beside the version in this checkout')
    p.add_argument(
        '--no-monai',
        action='store_true',
        help="without MONAI's, which is beside the paper's network by default",
    )
    p.add_argument('--serve', help=argparse.SUPPRESS)
    args = p.parse_args()
    args.sizes = args.sizes or SIZES.get(args.preset, '64,96')
    return args


def autocast(args, precision):
    return torch.autocast(args.device, torch.bfloat16, enabled=precision == 'bfloat16')


def library():
    """(place, BoundaryNet, PRESETS, BoundaryLoss, adam, keep_memory, saved_bytes) of this version or of one
    with a flat layout"""
    try:
        from kits_nb.network.device import keep_memory, place
        from kits_nb.network.fast import saved_bytes
        from kits_nb.network.model import BoundaryNet, PRESETS
        from kits_nb.training.losses import BoundaryLoss
        from kits_nb.training.learner import adam
    except ImportError:
        from kits_nb.layers import saved_bytes
        from kits_nb.losses import BoundaryLoss
        from kits_nb.network import BoundaryNet, PRESETS, keep_memory, place
        from kits_nb.training import adam
    return place, BoundaryNet, PRESETS, BoundaryLoss, adam, keep_memory, saved_bytes


def our_step(args, precision, n, compiled, **kw):
    "One training step of kits_nb, as a function without arguments"
    place, BoundaryNet, PRESETS, BoundaryLoss, adam, *_ = library()
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == 'bfloat16' else torch.float32
    net, loss = (
        place(BoundaryNet(PRESETS[args.preset]), args.device, dtype, args.layout, **kw),
        BoundaryLoss(),
    )
    opt, (x, lab) = adam(net.parameters(), lr=5e-5), batch(n, args.bs, args.device)
    call = torch.compile(net) if compiled else net

    def step():
        with autocast(args, precision):
            pred = call(x)
        loss(pred, lab).backward()
        opt.step()
        opt.zero_grad()

    return step


def plain_step(*args):
    return our_step(*args, fast=False)


def monai_step(args, precision, n, compiled):
    "The same of MONAI's SegResNet with its Dice loss"
    from monai.losses import DiceLoss
    from monai.networks.nets import SegResNet

    torch.manual_seed(0)
    net = SegResNet(
        init_filters=16, in_channels=1, out_channels=2, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1)
    ).to(args.device)
    loss, opt = DiceLoss(sigmoid=True, squared_pred=True, batch=True), torch.optim.Adam(
        net.parameters(), 5e-5
    )
    x, lab = batch(n, args.bs, args.device)
    masks = torch.stack([lab > 0, lab == 2], 1).float()
    call = torch.compile(net) if compiled else net

    def step():
        with autocast(args, precision):
            pred = call(x)
        loss(pred.float(), masks).backward()
        opt.step()
        opt.zero_grad()

    return step


STEPS = dict(kits_nb=our_step, plain=plain_step, before=our_step, monai=monai_step)


def contestants(args):
    "Names of `STEPS` in this run, ours first"
    beside = dict(plain=args.plain, before=args.before, monai=args.preset == 'paper' and not args.no_monai)
    return ['kits_nb', *(k for k, on in beside.items() if on)]


def seconds(step, device):
    start = time.perf_counter()
    step()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def gflops(args, name, *what):
    """Arithmetic of a step's convolutions: in contiguous memory, where ours interpolates without a product
    of matrices"""
    step = STEPS[name](argparse.Namespace(**vars(args) | dict(layout='contiguous')), *what)
    with FlopCounterMode(display=False) as f:
        step()
    return f.get_total_flops() / 1e9


def work(args):
    "In a worker: seconds of a step, and at the end memory and arithmetic"
    name, precision, n, compiled = json.loads(args.serve)
    if name == 'monai':
        import monai.losses, monai.networks.nets
    keep_memory, saved_bytes = library()[-2:]
    set_precision(precision)
    STEPS[name](args, precision, 32, False)()  # libraries load their code
    kept = dict(ours=name != 'monai', both=True, none=False)[args.keep]
    if args.device == 'cpu' and kept:
        keep_memory()
    before = status('VmRSS')
    step = STEPS[name](args, precision, n, compiled)
    step()

    def at_end():
        peak = torch.cuda.max_memory_allocated() if args.device == 'cuda' else status('VmHWM') - before
        return [peak / 1e6, saved_bytes(step) / 1e6, gflops(args, name, precision, n, False)]

    def reply(repeat):
        return sum(seconds(step, args.device) for _ in range(repeat)) / repeat

    serve(reply, at_end)


def start(args, *what):
    "A worker for one contestant"
    options = [
        '--preset',
        args.preset,
        '--device',
        args.device,
        '--bs',
        args.bs,
        '--layout',
        args.layout,
        '--threads',
        args.threads,
        '--keep',
        args.keep,
        '--serve',
        json.dumps(what),
    ]
    env = dict(PYTHONPATH=str(Path(args.before).resolve())) if what[0] == 'before' else {}
    return Worker(__file__, *map(str, options), env=env)


def bandwidth(device, mb=512):
    "Bytes per second of a copy, for the roofline"
    a = torch.zeros(mb * 2**18, device=device)
    b = torch.empty_like(a)
    times = [seconds(lambda: b.copy_(a), device) for _ in range(7)]
    return 2 * a.numel() * 4 / statistics.median(times)


def arithmetic(device, dtype, n=4096):
    "Operations per second of a square matrix product, for the roofline"
    n = n if device == 'cuda' else 1536
    a = torch.randn(n, n, device=device, dtype=dtype)
    times = [seconds(lambda: a @ a, device) for _ in range(7)]
    return 2 * n**3 / statistics.median(times)


def set_precision(precision):
    torch.set_float32_matmul_precision('high' if precision == 'tf32' else 'highest')
    torch.backends.cudnn.allow_tf32 = precision == 'tf32'


def compare(args, precision, n, compiled):
    names = contestants(args)
    workers = {k: start(args, k, precision, n, compiled) for k in names}
    repeat = max(1, round(0.25 / max(1e-3, workers['kits_nb'].ask(1))))  # short steps in groups
    for w in workers.values():
        w.ask(1)
    rounds = []
    for i in range(args.rounds):
        turn = names if i % 2 == 0 else names[::-1]
        rounds.append({k: workers[k].ask(repeat) for k in turn})
    found = {k: w.finish() for k, w in workers.items()}
    report(args, f'{n}³ {precision}{" compiled" if compiled else ""}', names, rounds, found)
    set_precision(precision)
    dtype = torch.bfloat16 if precision == 'bfloat16' else torch.float32
    rate, wire = arithmetic(args.device, dtype), bandwidth(args.device)
    bound, mid = found['kits_nb'][2] * 1e9 / rate, statistics.median(o['kits_nb'] for o in rounds)
    print(
        f'{"":22} roofline {bound:8.3f} s of arithmetic at {rate/1e9:.0f} GFLOP/s of a matrix product, '
        f'{wire/1e9:.0f} GB/s of a copy; our step takes {mid/bound:.1f} times the arithmetic',
        flush=True,
    )


def report(args, title, names, rounds, found):
    "The table of one setting"
    for k in names:
        mid, (peak, kept, flops) = statistics.median(o[k] for o in rounds), found[k]
        print(
            f'{title:22} {k:8} {mid:8.4f} s  {flops:7.0f} GFLOP  {1000*mid/flops:6.2f} ms/GFLOP  '
            f'peak {peak:6.0f} MB  kept {kept:6.0f} MB'
        )
    ours = found['kits_nb']
    for k in names[1:]:
        ratios = sorted(o['kits_nb'] / o[k] for o in rounds)
        low, ratio, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        print(
            f'{title:22} ours/{k:8} {ratio:6.3f} of the time ({low:.3f} to {high:.3f}), '
            f'{ratio*found[k][2]/ours[2]:.3f} per GFLOP, {ours[0]/found[k][0]:.3f} of the peak memory',
            flush=True,
        )


def main():
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.serve:
        return work(args)
    what = (
        torch.cuda.get_device_name()
        if args.device == 'cuda'
        else f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores, '
             f'{torch.get_num_threads()} threads, keeps memory: {args.keep}'
    )
    commits = f'commit {commit_of(Path(__file__).parent)}' + (
        f', before {commit_of(args.before)}' if args.before else ''
    )
    print(
        f'{what}; {versions("torch", "monai")}; {commits}; network {args.preset}, '
        f'medians of {args.rounds} interleaved rounds, batch {args.bs}',
        flush=True,
    )
    for n in map(int, args.sizes.split(',')):
        for precision in args.precisions.split(','):
            for compiled in dict(no=[False], yes=[True], both=[False, True])[args.compile]:
                compare(args, precision, n, compiled)


if __name__ == '__main__':
    main()
