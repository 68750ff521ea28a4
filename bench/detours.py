"""What each detour of the fast layers gains alone, on a full training step: forward, loss, backward, Adam.

    python bench/detours.py                                            # everything; takes long
    python bench/detours.py --configs tiny:32 --precisions float32 --threads 1 --rounds 3
    python bench/detours.py --before ../older  # with the fused losses of an older checkout

A row says: the time of a step without this detour, over the time with all of them; above 1 the detour
gains. With and without have a process each, since memory that one keeps would help the other. They are
measured in pairs, one after the other and in turn the other way round; the table has the median of the
pairs' ratios, and `low` and `high` are the quartiles. A measurement is as many steps as fill a quarter of a
second. `--add` keeps the rows of the file that this run does not measure. `plain network` is the plain
network as PyTorch makes it, contiguous and in a process that gives its memory back; `plain layers` differ by
the layers alone. The last row, with `--before`, is the other way round: the time with the plain losses, over
the time with the losses of that checkout, which wrote both directions by hand. The CSV is what the chapter
on fast layers shows."""

import argparse, csv, importlib, statistics, sys, time, types
from contextlib import contextmanager
from pathlib import Path
import torch, torch.nn.functional as F
from measure import batch, Worker, commit_of, cpu_name, machine, serve
from kits_nb.network import fast
from kits_nb.network.device import keep_memory, place, training_dtype
from kits_nb.network.model import BoundaryNet, PRESETS
from kits_nb.training.losses import BoundaryLoss

ROOT = Path(__file__).resolve().parent.parent
ALL = 'all'

# The plain way of doing what a detour does


def never(*args):
    return False


def one_slab(*args):
    return 1


def norm_relu(x, gamma, beta, groups, eps):
    "Forward of the normalisation and the ReLU by PyTorch"
    h, mean, rstd = torch.native_group_norm(x, gamma, beta, *x.shape[:2], x[0, 0].numel(), groups, eps)
    return h.relu_(), mean, rstd, *fast.scale_and_shift(mean, rstd, gamma, beta)


def norm_gradients(g, x, mean, rstd, gamma, out):
    "Backward of the normalisation by PyTorch"
    sizes = *x.shape[:2], x[0, 0].numel(), mean.shape[1]
    return torch.ops.aten.native_group_norm_backward(g, x, mean, rstd, gamma, *sizes, [True] * 3)


def separate(x, norm, conv, weight=None):
    "Normalise, ReLU and convolve, each by itself"
    h = F.relu(norm(x), inplace=True)
    return conv(h) if weight is None else conv._conv_forward(h, weight, conv.bias)


def concatenated_head(self, y, edge):
    return self.head(torch.cat([F.relu(self.norm(y)), edge], 1))


# A variant: what to patch in the fast layers, the classes to leave out, and how the network is placed

VARIANTS = {
    ALL: {},
    'plain network': dict(without=fast.FAST, layout='contiguous', keep=False),
    'plain layers': dict(without=fast.FAST),
    '1x1x1 convolutions as products': dict(patch=[(fast, 'is_product', never)]),
    'small crops in halves': dict(patch=[(fast, 'is_slow', never)], only='float32'),
    'weight gradients in slabs': dict(patch=[(fast, 'slab_count', one_slab)], only='bfloat16'),
    'normalisation in two passes': dict(
        patch=[(fast, 'group_norm_relu', norm_relu), (fast, '_norm_gradients', norm_gradients)]
    ),
    'normalise, ReLU, convolve in one': dict(patch=[(fast, 'norm_relu_conv', separate)]),
    'head without concatenation': dict(patch=[(fast.FastBoundaryNet, '_join', concatenated_head)]),
    'channels_last': dict(layout='contiguous'),
    'freed memory is kept': dict(keep=False),
    'losses with both directions written': dict(loss='before'),
}


@contextmanager
def patched(patches):
    before = [(o, k, getattr(o, k)) for o, k, _ in patches]
    for o, k, new in patches:
        setattr(o, k, new)
    try:
        yield
    finally:
        for o, k, old in before:
            setattr(o, k, old)


def losses_of(folder):
    "BoundaryLoss of an older checkout with a flat layout, under another package's name"
    package = types.ModuleType('kits_nb_before')
    package.__path__ = [str(Path(folder) / 'kits_nb')]
    sys.modules['kits_nb_before'] = package
    return importlib.import_module('kits_nb_before.losses').BoundaryLoss


def make_step(args, name):
    "A training step in a variant, as a function without arguments"
    how, dtype = VARIANTS[name], getattr(torch, args.precision)
    torch.manual_seed(0)
    left = [c for c in fast.FAST if c not in how.get('without', [])]
    with patched([(fast, 'FAST', left)]):
        net = place(BoundaryNet(PRESETS[args.network]), 'cpu', dtype, how.get('layout', 'auto'))
    loss = losses_of(args.before)() if how.get('loss') else BoundaryLoss()
    opt = torch.optim.AdamW(net.parameters(), 5e-5, fused=True)
    x, lab = batch(args.side, args.batch)

    def step():
        with patched(how.get('patch', [])):
            with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16):
                pred = net(x)
            loss(pred, lab).backward()
        opt.step()
        opt.zero_grad()
        return net

    return step


def work(args):
    "In a worker: seconds of a step of the variant that is named"
    torch.set_num_threads(args.use_threads)
    if args.keep:
        keep_memory()
    steps = {}

    def reply(what):
        name, repeat = what
        if name not in steps:
            steps[name] = make_step(args, name)
        start = time.perf_counter()
        for _ in range(repeat):
            steps[name]()
        return (time.perf_counter() - start) / repeat

    serve(reply)


def variants_for(args, network, side, precision):
    "Names of the variants that make sense here"
    safe = training_dtype(
        'auto' if precision == 'bfloat16' else precision, 'cpu', PRESETS[network], (side,) * 3, False
    )
    for name, how in VARIANTS.items():
        if name == ALL or how.get('only', precision) != precision:
            continue
        if how.get('loss') and not args.before:
            continue
        if 'plain' in name and precision == 'bfloat16' and safe != torch.bfloat16:
            continue  # PyTorch's are wrong there
        if not args.only or any(o in name for o in args.only.split(',')):
            yield name


def compare(args, network, side, precision, threads):
    "Rows of the table for one setting"
    options = [
        '--network',
        network,
        '--side',
        side,
        '--batch',
        args.batch,
        '--precision',
        precision,
        '--use-threads',
        threads,
        '--before',
        args.before,
        '--work',
    ]
    env = dict(OMP_NUM_THREADS=str(threads))

    def worker(name):
        keep = ['--keep'] if VARIANTS[name].get('keep', True) else []
        return Worker(__file__, *map(str, options), *keep, env=env)

    for name in variants_for(args, network, side, precision):
        workers = {k: worker(k) for k in (ALL, name)}

        def seconds(k, repeat=1):
            return workers[k].ask([k, repeat])

        for k in (ALL, name, ALL, name):
            seconds(k)  # warm: memory, oneDNN's kernels
        repeat = max(1, round(0.25 / min(seconds(ALL) for _ in range(3))))
        rounds = []
        for i in range(args.rounds):
            pair = (ALL, name) if i % 2 == 0 else (name, ALL)
            rounds.append({k: seconds(k, repeat) for k in pair})
        for w in workers.values():
            w.finish()
        inverse = bool(VARIANTS[name].get('loss'))
        ratios = sorted((o[ALL] / o[name] if inverse else o[name] / o[ALL]) for o in rounds)
        low, mid, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        base = statistics.median(o[ALL] for o in rounds)
        yield dict(
            detour=name,
            network=network,
            side=side,
            batch=args.batch,
            precision=precision,
            threads=threads,
            ratio=f'{mid:.4f}',
            low=f'{low:.4f}',
            high=f'{high:.4f}',
            seconds=f'{base:.4f}',
            rounds=args.rounds,
        )


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        '--configs', default='tiny:32,paper:64,paper:96', help='network and side of the cubic crop, voxels'
    )
    p.add_argument('--precisions', default='float32,bfloat16')
    p.add_argument('--threads', default='1,2', help='CPU threads')
    p.add_argument('--rounds', type=int, default=7, help='measured pairs, after one step that is not')
    p.add_argument('--batch', type=int, default=1, help='crops per step')
    p.add_argument('--only', default='', help='detours whose name holds one of these words')
    p.add_argument('--before', default='', help='an older checkout, for its losses')
    p.add_argument('--out', default=str(ROOT / 'nbs/engine/detours.csv'))
    p.add_argument('--add', action='store_true', help='to the rows of that file, in place of older ones')
    for o in ('--network', '--precision'):
        p.add_argument(o, help=argparse.SUPPRESS)
    for o in ('--side', '--use-threads'):
        p.add_argument(o, type=int, help=argparse.SUPPRESS)
    for o in ('--work', '--keep'):
        p.add_argument(o, action='store_true', help=argparse.SUPPRESS)
    return p.parse_args()


def main():
    args = parse()
    if args.work:
        return work(args)
    print(machine(), flush=True)
    facts = dict(cpu=cpu_name(), torch=torch.__version__, commit=commit_of(ROOT))
    rows = {}
    if args.add:
        with open(args.out, newline='') as f:
            rows = {key(o): o for o in csv.DictReader(f)}
    for network, side in (o.split(':') for o in args.configs.split(',')):
        for precision in args.precisions.split(','):
            for threads in map(int, args.threads.split(',')):
                print(f'\n{network} {side}³ {precision}, {threads} threads', flush=True)
                for o in compare(args, network, int(side), precision, threads):
                    new = dict(detour=o['detour'], gone=False) | o | facts
                    rows[key(new)] = new
                    print('{detour:38} {ratio}   ({low} to {high}), {seconds} s with all'.format(**o))
                    sys.stdout.flush()
                    write(args.out, rows.values())  # a run may be stopped


def key(row):
    return tuple(str(row[k]) for k in ('detour', 'network', 'side', 'batch', 'precision', 'threads'))


def write(path, rows):
    rows = list(rows)
    with open(path, 'w', newline='') as f:
        w = csv.DictWriter(f, rows[0], lineterminator='\n')
        w.writeheader()
        w.writerows(rows)


if __name__ == '__main__':
    main()
