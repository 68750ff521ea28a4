"""Is the library right on this GPU, and how fast? One command, one table, one JSON file.

    python bench/gpu.py  # everything, at most 9 minutes on an H100
    python bench/gpu.py --sections step,scan  # single sections
    python bench/gpu.py --device cpu --tiny  # the same code at small sizes, without a GPU

Each section is a process with a time limit of its own; what it found before its limit counts. The sections:

    correct   the paper's network and loss against float64 and float32, plain and fast, float32 and bfloat16
    cells     the notebooks that have cells flagged `cuda`, with these cells
    ceilings  the card's copy and matrix product, and the floor of a training step from them
    step      the full training step at 176³: ours in several ways, MONAI's SegResNet, nnU-Net's plain U-Net
    epoch     crops from a prepared cache to the card, and a real training with them
    scan      whole predictions of a CT of 80 million voxels with 8 mirror images
    resume    a training that is killed and resumed, bit for bit; two processes on one card

bench/README.md says what to carry to a machine without a network."""

import argparse, json, os, re, signal, statistics, subprocess, sys, tempfile, threading, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'bench')]
LIMITS = dict(
    correct=60, cells=60, ceilings=20, step=150, epoch=110, scan=80, resume=60
)  # seconds: 540 in all
FULL = dict(
    small=64,
    crop=176,
    scan=(400, 447, 447),
    volume=(192, 256, 256),
    cases=4,
    per_case=16,
    preset='paper',
    models=5,
)
TINY = dict(
    small=16, crop=32, scan=(32, 40, 40), volume=(40, 64, 64), cases=3, per_case=2, preset='tiny', models=2
)


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', default='cuda', help='cuda, cuda:1 or cpu')
    p.add_argument('--tiny', action='store_true', help='small sizes, the network `tiny`')
    p.add_argument('--sections', default=','.join(LIMITS), help='some of them, with commas')
    p.add_argument('--rounds', type=int, default=10, help='measured steps, after 3 that are not')
    p.add_argument('--only', default='', help='variants of `step` that this regular expression finds')
    p.add_argument('--profile', action='store_true', help='the kernels of each variant of `step`, too')
    p.add_argument('--no-compile', action='store_true', help='leave out what torch.compile has a part in')
    p.add_argument('--out', default='gpu.json', help='file for the results')
    p.add_argument('--serve', default='', help=argparse.SUPPRESS)
    p.add_argument('--variant', default='', help=argparse.SUPPRESS)
    args = p.parse_args()
    args.sections = [o for o in args.sections.split(',') if o]
    if unknown := set(args.sections) - set(LIMITS):
        p.error(f'there is no section {", ".join(unknown)}: choose from {", ".join(LIMITS)}')
    args.size = TINY if args.tiny else FULL
    args.kind = args.device.split(':')[0]
    if args.kind == 'cpu':
        args.no_compile = True
    return args


def say(section, name, **values):
    "One line of results: the parent reads it"
    print('>', json.dumps(dict(section=section, name=name, **values)), flush=True)


def sync(args):
    import torch

    if args.kind == 'cuda':
        torch.cuda.synchronize()


def seconds(f, args):
    sync(args)
    start = time.perf_counter()
    f()
    sync(args)
    return time.perf_counter() - start


def peak_gb(args):
    import torch

    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if args.kind == 'cuda' else None


# --- correct ---------------------------------------------------------------------------------------------


def relative(a, b):
    "Distance of lists of tensors, relative to the second"
    above = sum(((p.double() - q.double()) ** 2).sum() for p, q in zip(a, b))
    return (above / sum((q.double() ** 2).sum() for q in b)).sqrt().item()


def correct(args):
    import copy, torch
    from measure import batch
    from kits_nb.network.device import half_error, place
    from kits_nb.network.model import BoundaryNet, PRESETS
    from kits_nb.training.losses import BoundaryLoss

    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    plain = BoundaryNet(PRESETS[args.size['preset']])

    def numbers(net, x, labels, half):
        with torch.autocast(args.kind, torch.bfloat16, enabled=half):
            pred = net(x)
        loss = BoundaryLoss()(pred, labels)
        grads = torch.autograd.grad(loss, net.parameters())
        return [[o.detach() for o in pred], [loss.detach()], grads]

    def compare(n, name, want, x, labels):
        for half in (False, True):
            most = (
                (0.03, 0.2) if half else (1e-4, 1e-3)
            )  # of logits and gradients; the errors add up over 20 layers
            for fast in (False, True):
                dtype = torch.bfloat16 if half else torch.float32
                net = place(copy.deepcopy(plain), args.device, dtype, fast=fast)
                torch.backends.cudnn.benchmark = False  # trying takes longer than computing once
                got = numbers(net, x, labels, half)
                logits, loss, grads = (relative(a, b) for a, b in zip(got, want))
                say(
                    'correct',
                    f'{n}³ {"bfloat16" if half else "float32"} {"fast" if fast else "plain"} '
                    f'against {name}',
                    logits=logits,
                    loss=loss,
                    gradients=grads,
                    right=not fast or logits < most[0] and grads < most[1],
                )

    n, crop = args.size['small'], args.size['crop']
    x, labels = batch(n, 1, args.device)
    exact = place(copy.deepcopy(plain), args.device, fast=False).double()
    torch.backends.cudnn.benchmark = False
    want = numbers(exact, x.double(), labels, False)
    compare(n, 'float64', want, x, labels)
    del exact, want
    x, labels = batch(crop, 1, args.device)
    want = numbers(place(copy.deepcopy(plain), args.device, fast=False), x, labels, False)
    compare(crop, 'plain float32', want, x, labels)
    conv = plain.encoder.levels[0][0].conv1.to(args.device)
    error = half_error(
        conv, torch.randn(1, conv.in_channels, *[crop] * 3, device=args.device), torch.bfloat16
    )
    say(
        'correct',
        f'largest convolution in bfloat16 against float32, {crop}³',
        error=error,
        right=error < 0.05,
    )


# --- cells -----------------------------------------------------------------------------------------------


def cells(args):
    "What `nbdev-test --flags cuda` runs, for a machine without nbdev: the cells of a notebook as a script"
    skip = '#| slow', '#| data', '#| eval: false', '#| hide\n#| eval: false'
    skip += ('#| cuda',) if args.kind != 'cuda' else ()
    running = []
    for path in sorted((ROOT / 'nbs').rglob('*.ipynb')):
        code = [c for c in json.loads(path.read_text(encoding='utf8'))['cells'] if c['cell_type'] == 'code']
        code = [''.join(c['source']) for c in code]
        if n := sum(c.startswith('#| cuda') for c in code):
            script = Path(tempfile.mkdtemp()) / f'cells_of_{path.stem}.py'
            script.write_text('\n\n'.join(c for c in code if not c.startswith(skip)), encoding='utf8')
            env = os.environ | dict(
                PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
            )
            running.append(
                (
                    path.stem,
                    n,
                    subprocess.Popen(
                        [sys.executable, script],
                        cwd=path.parent,
                        env=env,
                        text=True,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.PIPE,
                    ),
                )
            )
    for name, n, p in running:
        why = [o for o in p.communicate()[1].splitlines() if o.strip()]
        say(
            'cells',
            f'{name}, with {n} flagged cuda',
            right=p.returncode == 0,
            **(dict(error=' | '.join(why[-3:])[-400:]) if p.returncode else {}),
        )


# --- ceilings --------------------------------------------------------------------------------------------


def least_bytes(cfg, n, bs=1):
    "Bytes of a step if each convolution read its input and wrote its output once, thrice, in bfloat16"
    import torch
    from kits_nb.network.model import BoundaryNet

    total = 0

    def note(m, inputs, output):
        nonlocal total
        total += inputs[0].numel() + output.numel()

    with torch.device('meta'):
        net, x = BoundaryNet(cfg), torch.empty(bs, 1, n, n, n)
    for m in net.modules():
        if isinstance(m, torch.nn.Conv3d):
            m.register_forward_hook(note)
    net(x)
    return 3 * 2 * total


def ceilings(args):
    import torch
    from kits_nb.network.model import PRESETS, count_flops

    mb, n = (2048, 8192) if args.kind == 'cuda' else (64, 1024)
    a = torch.randn(mb * 2**18, device=args.device)
    b = torch.empty_like(a)
    wire = 2 * a.numel() * 4 / statistics.median(seconds(lambda: b.copy_(a), args) for _ in range(9))
    say('ceilings', 'copy, bytes read and written', GB_per_s=wire / 1e9)
    rates = {}
    for dtype in (torch.bfloat16, torch.float32):
        torch.backends.cuda.matmul.allow_tf32 = True
        p, q = (torch.randn(n, n, device=args.device, dtype=dtype) for _ in range(2))
        rates[dtype] = 2 * n**3 / statistics.median(seconds(lambda: p @ q, args) for _ in range(9))
        name = 'bfloat16' if dtype == torch.bfloat16 else 'tf32' if args.kind == 'cuda' else 'float32'
        say('ceilings', f'matrix product in {name}', TFLOP_per_s=rates[dtype] / 1e12)
    cfg, crop = PRESETS[args.size['preset']], args.size['crop']
    flops, least = 3 * count_flops(cfg, (crop,) * 3), least_bytes(cfg, crop)
    floor = 1000 * max(flops / rates[torch.bfloat16], least / wire)
    say(
        'ceilings',
        f'floor of our step, {crop}³, batch 1',
        TFLOP=flops / 1e12,
        GB=least / 1e9,
        arithmetic_ms=1000 * flops / rates[torch.bfloat16],
        memory_ms=1000 * least / wire,
        floor_ms=floor,
    )


# --- step ------------------------------------------------------------------------------------------------


def variants(args):
    "Settings of a step: name -> (whose, its settings)"
    ours = dict(fast=True, layout='auto', compiled=False, precision='bfloat16', bs=1, benchmark=True)
    table = {
        'ours, fast, compiled': ours | dict(compiled=True),
        'ours, fast': ours,
        'MONAI SegResNet, compiled': dict(net='monai', compiled=True),
        'MONAI SegResNet': dict(net='monai'),
        'ours, plain, compiled': ours | dict(fast=False, compiled=True),
        'ours, plain, channels_last': ours | dict(fast=False),
        'ours, plain, contiguous': ours | dict(fast=False, layout='contiguous'),
        'ours, fast, blocks computed twice': ours | dict(recompute=True),
        'ours, fast, without cudnn.benchmark': ours | dict(benchmark=False),
        'ours, fast, tf32': ours | dict(precision='tf32'),
        'ours, fast, batch 2': ours | dict(bs=2),
        "nnU-Net's plain U-Net": dict(net='nnunet'),
        'ours, fast, compiled, batch 2': ours | dict(compiled=True, bs=2),
    }
    if (
        args.kind == 'cpu'
    ):  # tf32 and cudnn are CUDA's; two of ours and one of others are enough to run the code
        table = {k: table[k] for k in ('ours, fast', 'ours, plain, channels_last', 'MONAI SegResNet')}
    wanted = {k: v for k, v in table.items() if not (args.no_compile and v.get('compiled'))}
    return {k: v for k, v in wanted.items() if re.search(args.only, k)}


def peer(name, n):
    "(Network, loss of its output and labels) of another library; ImportError where it is missing"
    import torch
    from torch import nn
    import torch.nn.functional as F

    if name == 'monai':
        from monai.losses import DiceLoss
        from monai.networks.nets import SegResNet

        dice = DiceLoss(sigmoid=True, squared_pred=True, batch=True)
        net = SegResNet(
            init_filters=16, in_channels=1, out_channels=2, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1)
        )
        return net, lambda p, y: dice(p.float(), torch.stack([y > 0, y == 2], 1).float())
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    norm = dict(norm_op=nn.InstanceNorm3d, norm_op_kwargs=dict(eps=1e-5, affine=True))
    relu = dict(nonlin=nn.LeakyReLU, nonlin_kwargs=dict(inplace=True))
    net = PlainConvUNet(
        1, 4, (20, 40, 80, 160), nn.Conv3d, 3, [1, 2, 2, 2], 2, 3, 2, conv_bias=True, **norm, **relu
    )

    def loss(p, y):
        p, one_hot = p.float(), F.one_hot(y.long(), 3).movedim(-1, 1)
        q, dims = p.softmax(1), (0, 2, 3, 4)
        dice = 2 * (q * one_hot).sum(dims) / (q.sum(dims) + one_hot.sum(dims) + 1e-5)
        return F.cross_entropy(p, y.long()) + 1 - dice[1:].mean()

    return net, loss


def make_step(
    args,
    net='ours',
    fast=True,
    layout='auto',
    compiled=False,
    precision='bfloat16',
    bs=1,
    benchmark=True,
    recompute=False,
):
    "A training step as a function without arguments: forward, loss with its edge targets, backward, Adam"
    import torch
    from measure import batch
    from kits_nb.network.device import place, recompute_blocks
    from kits_nb.network.model import BoundaryNet, PRESETS
    from kits_nb.training.learner import adam
    from kits_nb.training.losses import BoundaryLoss

    torch.manual_seed(0)
    half = precision == 'bfloat16'
    n = args.size['crop']
    if net == 'ours':
        dtype = torch.bfloat16 if half else torch.float32
        model = place(BoundaryNet(PRESETS[args.size['preset']]), args.device, dtype, layout, fast)
        loss, opt = BoundaryLoss(), adam(model.parameters(), lr=5e-5)
        if recompute:
            recompute_blocks(model)
        if compiled:
            model.compile()
            loss.compile()
    else:
        model, loss = peer(net, n)
        model, opt = model.to(args.device), torch.optim.Adam(model.parameters(), 5e-5)
        if compiled:
            model.compile()
    torch.backends.cudnn.benchmark = benchmark
    x, labels = batch(n, bs, args.device)

    def step():
        with torch.autocast(args.kind, torch.bfloat16, enabled=half):
            pred = model(x)
        loss(pred, labels).backward()
        opt.step()
        opt.zero_grad()

    return step


def step(args):
    import torch

    for name, settings in variants(args).items():
        if (
            (name != args.variant) if args.variant else settings.get('compiled')
        ):  # compiled ones have a process each
            continue
        torch.backends.cudnn.allow_tf32 = settings.get('precision') == 'tf32' or args.kind == 'cuda'
        start = time.perf_counter()
        try:
            f = make_step(args, **settings)
            for _ in range(3 if args.kind == 'cuda' else 1):
                f()
            sync(args)
        except ImportError as e:
            say('step', name, missing=str(e))
            continue
        except torch.cuda.OutOfMemoryError:
            say('step', name, error='out of memory')
            continue
        first = time.perf_counter() - start
        if args.variant:
            wait_for_turn()
        if args.kind == 'cuda':
            torch.cuda.reset_peak_memory_stats()
        rounds = args.rounds if args.kind == 'cuda' else 2
        times = sorted(1000 * seconds(f, args) for _ in range(rounds))
        say(
            'step',
            name,
            ms=statistics.median(times),
            least=times[0],
            most=times[-1],
            peak_GB=peak_gb(args),
            first_s=first,
        )
        if args.profile and settings.get('net', 'ours') == 'ours':
            kernels(args, name, f)
        del f
        torch.compiler.reset()
        if args.kind == 'cuda':
            torch.cuda.empty_cache()


def turn(pid):
    return Path(os.environ['KITS_BENCH']) / f'turn_of_{pid}'


def wait_for_turn():
    say('step', 'ready')
    while not turn(os.getpid()).exists():
        time.sleep(0.02)


def kernels(args, name, f, most=16):
    "Milliseconds of a step's kernels, those that take longest"
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA if args.kind == 'cuda' else ProfilerActivity.CPU]) as p:
        f()
        sync(args)
    kind = 'self_device_time_total' if args.kind == 'cuda' else 'self_cpu_time_total'
    found = sorted(((getattr(o, kind) / 1000, o.count, o.key) for o in p.key_averages()), reverse=True)
    say('step', f'{name}: all kernels', ms=sum(o[0] for o in found), count=sum(o[1] for o in found))
    for ms, n, key in found[:most]:
        say('step', f'  {key[:90]}', ms=ms, count=n)


# --- epoch -----------------------------------------------------------------------------------------------


def write_cases(args):
    from kits_nb.data.phantom import write_phantoms
    from kits_nb.data.store import prepare_folder, PrepareConfig

    work, n = Path(os.environ['KITS_BENCH']), args.size['cases']
    spacing = (4.0, 4.0, 4.0) if args.tiny else (1.0, 1.0, 1.0)
    workers = min(n, os.cpu_count())
    write_phantoms(work / 'data', n, shape=args.size['volume'], spacing=spacing, n_workers=workers)
    prepare_folder(work / 'data', work / 'prepared', PrepareConfig(spacing=spacing), n_workers=workers)


def epoch(args):
    import torch
    from fastai.callback.core import Callback
    from kits_nb.data.store import load_prepared
    from kits_nb.training.learner import make_learner
    from kits_nb.training.recipe import get_recipe
    from kits_nb.training.run import train

    size, full, work = args.size, not args.tiny, Path(os.environ['KITS_BENCH'])
    recipe = get_recipe('paper' if full else 'tiny').replace(
        crop=(size['crop'],) * 3,
        per_case=size['per_case'],
        valid_per_case=1,
        epochs=3,
        n_folds=size['cases'],
        num_workers=8 if full else 1,
    )
    cases = load_prepared(work / 'prepared')[1]
    learn = make_learner(cases[1:], cases[:1], recipe, args.device)
    for _ in range(2):
        n, took = 0, time.perf_counter()
        for b in learn.dls.train:
            n += len(b[0])
        sync(args)
        took = time.perf_counter() - took
    say('epoch', 'crops from the cache to the device, augmented', crops_per_s=n / took)

    class Clock(Callback):
        "Seconds of the training part of each epoch, and of a step whose crop is there already"

        order = 100

        def before_train(self):
            sync(args)
            self.start = time.perf_counter()

        def after_train(self):
            sync(args)
            self.took = time.perf_counter() - self.start
            self.n = len(self.dls.train)

        def after_batch(self):
            if self.training:
                self.batch = self.learn.xb, self.learn.yb

    clock = Clock()
    took = seconds(
        lambda: train(work / 'prepared', work / 'run', recipe, echo=None, device=args.device, cbs=[clock]),
        args,
    )
    alone = step_alone(args, clock.learn, *clock.batch)
    say(
        'epoch',
        f'a real training, {3 * clock.n} steps of {size["crop"]}³',
        seconds=took,
        ms_per_step=1000 * clock.took / clock.n,
        ms_of_a_step_alone=1000 * alone,
        idle=1 - alone * clock.n / clock.took,
    )


def step_alone(args, learn, xb, yb):
    "Seconds of a training step on a crop that lies on the device"
    import torch

    net, loss, opt = learn.model.train(), learn.loss_func, learn.opt

    def f():
        with torch.autocast(
            args.kind, torch.bfloat16, enabled=any(o.name == 'autocast' for o in learn.cbs)
        ):
            pred = net(*(o.as_subclass(torch.Tensor) for o in xb))
        loss(pred, *yb).backward()
        opt.step()
        opt.zero_grad()

    for _ in range(3):
        f()
    return statistics.median(seconds(f, args) for _ in range(9))


# --- scan ------------------------------------------------------------------------------------------------


def scan(args):
    import numpy as np, torch
    from kits_nb.data.volume import Volume
    from kits_nb.inference.predict import PredictConfig, predict_maps
    from kits_nb.network.device import pick_dtype, place
    from kits_nb.network.model import BoundaryNet, PRESETS

    shape, crop = args.size['scan'], args.size['crop']
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    body = (y / 0.75) ** 2 + (x / 0.95) ** 2 < 1
    hu = np.where(body, rng.normal(40, 30, shape), -1000).astype(np.int16)
    affine = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1.0]])
    ct = Volume(hu, affine)

    def model(seed):
        torch.manual_seed(seed)
        net = BoundaryNet(PRESETS[args.size['preset']])
        net.meta = dict(spacing=(1.0, 1.0, 1.0), window=(crop,) * 3)
        return place(net, args.device, pick_dtype('auto', args.device)).eval()

    models, mega = [model(i) for i in range(args.size['models'])], np.prod(shape) / 1e6
    runs = [(1, False), (1, True), (args.size['models'], True)]
    for n, tta in runs:
        if args.kind == 'cuda':
            torch.cuda.reset_peak_memory_stats()
        took = seconds(lambda: predict_maps(models[:n], ct, PredictConfig(tta=tta)), args)
        images = '8 mirror images' if tta else '1 image'
        say(
            'scan',
            f'{mega:.1f} Mvoxel, {n} model{"s" * (n > 1)}, {images}',
            seconds=took,
            peak_GB=peak_gb(args),
        )


# --- resume ----------------------------------------------------------------------------------------------

TRAIN = '''
import sys, warnings
warnings.filterwarnings('ignore')
from kits_nb.training.distributed import launch
from kits_nb.training.recipe import get_recipe
from kits_nb.training.run import train
prepared, run, device, epochs, bs = sys.argv[1:]
recipe = get_recipe('tiny').replace(epochs=int(epochs), per_case=4, valid_per_case=1, n_folds=2, bs=int(bs),
                                    deterministic=True)
def say(line): print(line, flush=True)
def main():
    with launch(): train(prepared, run, recipe, device=device or None, resume=True, echo=say)
if __name__ == '__main__': main()
'''


def resume(args):
    from safetensors.torch import load_file
    import torch
    from kits_nb.data.phantom import write_phantoms
    from kits_nb.data.store import prepare_folder, PrepareConfig
    from kits_nb.training.distributed import run_processes

    work = Path(tempfile.mkdtemp())
    write_phantoms(work / 'data', 4, shape=(40, 64, 64), spacing=(4.0, 4.0, 4.0))
    prepare_folder(work / 'data', work / 'prepared', PrepareConfig(spacing=(4.0, 4.0, 4.0)))
    (work / 'train.py').write_text(TRAIN)
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
    os.environ['PYTHONPATH'] = env['PYTHONPATH']

    def begin(run, bs='1'):
        cmd = [sys.executable, work / 'train.py', work / 'prepared', work / run, args.device, '4', bs]
        return subprocess.Popen(list(map(str, cmd)), stdout=subprocess.PIPE, text=True, env=env)

    whole, cut, one = begin('whole'), begin('cut'), begin('one', bs='2')
    for line in cut.stdout:
        if line.startswith('epoch   2'):
            break
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    again = begin('cut')
    device = '' if args.kind == 'cuda' else args.device
    cmd = [sys.executable, work / 'train.py', work / 'prepared', work / 'two', device, '4', '1']
    cause = run_processes(list(map(str, cmd)), 2)
    said = [o.communicate()[0] for o in (again, whole, one)][0]
    a, b = (load_file(work / o / 'model.safetensors') for o in ('whole', 'cut'))
    same = all(torch.equal(a[k], b[k]) for k in a)
    say(
        'resume',
        'killed after an epoch and resumed: weights',
        same=same,
        resumed='resumes after epoch' in said,
        right=same,
    )
    error = None
    if not cause:
        c, d = (load_file(work / o / 'model.safetensors') for o in ('two', 'one'))
        error = relative(c.values(), d.values())
    say(
        'resume',
        'two processes on one device, against one with twice the batch: weights',
        error=error,
        right=not cause and error < 1e-2,
        **(dict(cause=cause[-300:]) if cause else {}),
    )


# --- all of it -------------------------------------------------------------------------------------------


def start_beside(args):
    "What takes long and is not timed: compiling the variants of a step side by side, and cases for an epoch"
    os.environ['KITS_BENCH'] = tempfile.mkdtemp()
    names = [k for k, v in variants(args).items() if v.get('compiled')] if 'step' in args.sections else []
    beside = [('cases', start(args, 'write_cases'))] if 'epoch' in args.sections else []
    return beside + [(f'compiling {k}', start(args, 'step', ['--variant', k])) for k in names]


def start(args, section, more=()):
    options = ['--serve', section, '--device', args.device, '--rounds', str(args.rounds), *more]
    options += ['--only', args.only] + ['--profile'] * args.profile
    options += ['--tiny'] * args.tiny + ['--no-compile'] * args.no_compile
    cache = os.environ.get('TORCHINDUCTOR_CACHE_DIR') or tempfile.gettempdir() + '/kits_nb_compiled'
    env = os.environ | dict(PYTHONUNBUFFERED='1', PYTHONWARNINGS='ignore', TORCHINDUCTOR_CACHE_DIR=cache)
    return subprocess.Popen(
        [sys.executable, __file__, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        start_new_session=True,
    )


def finish(p, limit, echo=lambda row: None):
    "(Rows, how it ended) of a section's process; `echo` gets each row at once"
    timer = threading.Timer(limit, lambda: os.killpg(p.pid, signal.SIGKILL))
    timer.start()
    rows, other = [], []
    for line in p.stdout:
        if line.startswith('> '):
            rows.append(json.loads(line[2:]))
            echo(rows[-1])
        else:
            other.append(line.strip())
    code = p.wait()
    timer.cancel()
    if code == -signal.SIGKILL:
        return rows, f'stopped at its limit of {limit} s'
    return rows, f'ended with code {code}: ' + ' | '.join(other[-3:]) if code else ''


def show(row):
    def text(v):
        return (
            f'{v:.3g}'
            if isinstance(v, float) and abs(v) < 100
            else f'{v:.0f}' if isinstance(v, float) else str(v)
        )

    rest = {k: v for k, v in row.items() if k not in ('section', 'name', 'right') and v is not None}
    mark = {True: ' ', False: '!', None: ' '}[row.get('right')]
    return f'{mark} {row["section"]:9}{row["name"]:58} ' + ', '.join(
        f'{k} {text(v)}' for k, v in rest.items()
    )


def describe(args):
    import torch
    from measure import commit_of, cpu_name, versions

    name = torch.cuda.get_device_name(args.device) if args.kind == 'cuda' else cpu_name()
    return dict(
        device=name,
        versions=versions('torch', 'triton', 'monai', 'fastai'),
        commit=commit_of(ROOT),
        date=time.strftime('%Y-%m-%d'),
        network=args.size['preset'],
        crop=args.size['crop'],
    )


def main():
    args = parse()
    if args.serve:
        return globals()[args.serve](args)
    found = dict(about=describe(args), rows=[], ends={})
    print(*(f'{k} {v}' for k, v in found['about'].items()), sep='; ', flush=True)
    begin = time.perf_counter()

    def keep(row):
        found['rows'].append(row)
        print(show(row), flush=True)
        Path(args.out).write_text(json.dumps(found, indent=1))

    beside, waiting = start_beside(args), []
    for name in args.sections:
        if name in ('ceilings', 'step', 'epoch', 'scan'):  # these are timed: nothing may run beside them
            for what, p in beside:
                ready = (
                    what == 'cases'
                    and p.wait() == 0
                    or any('"ready"' in o for o in iter(p.stdout.readline, ''))
                )
                print(
                    f'{" " if ready else "!"} {what}: ready after {time.perf_counter() - begin:.0f} s',
                    flush=True,
                )
            waiting, beside = [p for what, p in beside if what != 'cases'], []
        since, limit = time.perf_counter(), LIMITS[name] * (10 if args.kind == 'cpu' else 1)
        if name == 'step':
            for p in waiting:
                turn(p.pid).touch()
                if end := finish(p, 60, keep)[1]:
                    found['ends'][f'a compiled step, process {p.pid}'] = dict(end=end)
                    print(f'! {end}', flush=True)
        _, end = finish(start(args, name), limit, keep)
        found['ends'][name] = dict(seconds=time.perf_counter() - since, end=end)
        print(f'{"!" if end else " "} {name:9}{found["ends"][name]["seconds"]:.0f} s {end}', flush=True)
        Path(args.out).write_text(json.dumps(found, indent=1))
    wrong = [o for o in found['rows'] if o.get('right') is False] + [
        o for o in found['ends'].values() if o['end']
    ]
    print(
        f'{time.perf_counter() - begin:.0f} s in all, {len(found["rows"])} results, {len(wrong)} wrong; '
        f'{args.out}'
    )
    sys.exit(bool(wrong))


if __name__ == '__main__':
    main()
