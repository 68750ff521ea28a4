"""Our full training step beside MONAI's SegResNet: seconds per GFLOP, and memory.

    python bench/train_step.py                                    # CPU, 64³ and 96³, float32 and bfloat16
    python bench/train_step.py --sizes 176 --device cuda --precisions tf32,bfloat16 --compile both

A step is: forward, loss (ours makes its edge targets in it), backward, Adam. MONAI's is SegResNet(16 filters, blocks 1,2,2,4)
with DiceLoss(sigmoid, squared_pred, batch) and torch.optim.Adam. Each network has a process of its own, and the rounds are interleaved,
ours then MONAI's; the ratio is the median of each round's ratio. Ours is placed as `train` does it, which on a CPU includes `keep_memory`;
`--keep` gives it to MONAI's process too, or to none. Arithmetic is counted by torch.utils.flop_counter for both. Memory is the peak of a
process above what it held before its network was made.
"""
import argparse, json, platform, resource, statistics, subprocess, sys, time
from pathlib import Path
import torch
from torch.utils.flop_counter import FlopCounterMode

def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--sizes', default='64,96', help='sides of the cubic crop, voxels')
    p.add_argument('--precisions', default='float32,bfloat16', help='of float32, tf32 (CUDA), bfloat16')
    p.add_argument('--device', default='cpu', help='cpu or cuda')
    p.add_argument('--rounds', type=int, default=7, help='measured rounds, after one that is not')
    p.add_argument('--threads', type=int, default=0, help='CPU threads; 0 leaves PyTorch its choice')
    p.add_argument('--bs', type=int, default=1, help='crops per step')
    p.add_argument('--compile', default='no', choices=['no','yes','both'], help='with torch.compile?')
    p.add_argument('--layout', default='auto', choices=['auto','contiguous','channels_last'], help="memory order of our network")
    p.add_argument('--keep', default='ours', choices=['ours','both','none'], help='whose process keeps freed memory (CPU)')
    p.add_argument('--serve', help=argparse.SUPPRESS)
    return p.parse_args()

def batch(n, bs, device):
    "Noise, and a box of kidney with a box of tumor in it"
    g = torch.Generator().manual_seed(0)
    x,lab = torch.randn(bs, 1, n, n, n, generator=g).clamp(-1, 1), torch.zeros(bs, n, n, n, dtype=torch.uint8)
    lab[:, n//4:n//2, n//4:n//2, n//4:3*n//4] = 1
    lab[:, n//3:n//2, n//3:n//2, n//3:n//2] = 2
    return x.to(device), lab.to(device)

def autocast(args, precision): return torch.autocast(args.device, torch.bfloat16, enabled=precision == 'bfloat16')

def our_step(args, precision, n, compiled):
    "One training step of kits_nb, as a function without arguments"
    from kits_nb.training.losses import BoundaryLoss
    from kits_nb.network.model import BoundaryNet, place
    from kits_nb.training.learner import adam
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == 'bfloat16' else torch.float32
    net,loss = place(BoundaryNet(), args.device, dtype, args.layout), BoundaryLoss()
    opt,(x,lab) = adam(net.parameters(), lr=5e-5), batch(n, args.bs, args.device)
    call = torch.compile(net) if compiled else net
    def step():
        with autocast(args, precision): pred = call(x)
        loss(pred, lab).backward()
        opt.step(); opt.zero_grad()
    return step

def monai_step(args, precision, n, compiled):
    "The same of MONAI's SegResNet with its Dice loss"
    from monai.losses import DiceLoss
    from monai.networks.nets import SegResNet
    torch.manual_seed(0)
    net = SegResNet(init_filters=16, in_channels=1, out_channels=2, blocks_down=(1,2,2,4), blocks_up=(1,1,1)).to(args.device)
    loss,opt = DiceLoss(sigmoid=True, squared_pred=True, batch=True), torch.optim.Adam(net.parameters(), 5e-5)
    x,lab = batch(n, args.bs, args.device)
    masks = torch.stack([lab > 0, lab == 2], 1).float()
    call = torch.compile(net) if compiled else net
    def step():
        with autocast(args, precision): pred = call(x)
        loss(pred.float(), masks).backward()
        opt.step(); opt.zero_grad()
    return step

STEPS = dict(kits_nb=our_step, monai=monai_step)

def seconds(step, device):
    start = time.perf_counter(); step()
    if device == 'cuda': torch.cuda.synchronize()
    return time.perf_counter() - start

def gflops(args, name, *what):
    "Arithmetic of a step's convolutions: in contiguous memory, where ours interpolates without a product of matrices"
    step = STEPS[name](argparse.Namespace(**vars(args) | dict(layout='contiguous')), *what)
    with FlopCounterMode(display=False) as f: step()
    return f.get_total_flops()/1e9

def resident():
    "Bytes of this process in memory now"
    return int(Path('/proc/self/statm').read_text().split()[1])*resource.getpagesize()

def peak_resident():
    "The most bytes this process ever had in memory; not getrusage's, which in a child starts at its parent's peak"
    line = next(o for o in open('/proc/self/status') if o.startswith('VmHWM'))
    return int(line.split()[1])*1024

def serve(args):
    "In a child: says when it is ready, then times a step for each line that comes in, and at the end tells memory and arithmetic"
    name,precision,n,compiled = json.loads(args.serve)
    import monai.losses, monai.networks.nets, kits_nb.training.learner
    from kits_nb.network.fast import saved_bytes
    from kits_nb.network.model import keep_memory
    set_precision(precision)
    STEPS[name](args, precision, 16, False)()                            # libraries load their code
    if args.device == 'cpu' and args.keep in dict(kits_nb=('ours','both'), monai=('both',))[name]: keep_memory()
    before = resident()
    step = STEPS[name](args, precision, n, compiled)
    step()
    print(json.dumps('ready'), flush=True)
    for _ in sys.stdin: print(json.dumps(seconds(step, args.device)), flush=True)
    peak = torch.cuda.max_memory_allocated() if args.device == 'cuda' else peak_resident() - before
    print(json.dumps([peak/1e6, saved_bytes(step)/1e6, gflops(args, name, precision, n, False)]), flush=True)

class Child:
    "A process that times steps of one network"
    def __init__(self, args, *what):
        cmd = [sys.executable, __file__, '--device', args.device, '--bs', str(args.bs), '--layout', args.layout, '--threads', str(args.threads),
               '--keep', args.keep, '--serve', json.dumps(what)]
        self.p = subprocess.Popen(cmd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.read()                                                          # it is ready

    def read(self):
        while line := self.p.stdout.readline():
            if line[0] in '[0123456789"': return json.loads(line)
        raise RuntimeError(f'the process ended with code {self.p.wait()}')

    def step(self): print(file=self.p.stdin, flush=True); return self.read()
    def finish(self): self.p.stdin.close(); return self.read()

def bandwidth(device, mb=512):
    "Bytes per second of a copy, for the roofline"
    a = torch.zeros(mb*2**18, device=device); b = torch.empty_like(a)
    times = [seconds(lambda: b.copy_(a), device) for _ in range(7)]
    return 2*a.numel()*4/statistics.median(times)

def arithmetic(device, dtype, n=4096):
    "Operations per second of a square matrix product, for the roofline"
    n = n if device == 'cuda' else 1536
    a = torch.randn(n, n, device=device, dtype=dtype)
    times = [seconds(lambda: a @ a, device) for _ in range(7)]
    return 2*n**3/statistics.median(times)

def set_precision(precision):
    torch.set_float32_matmul_precision('high' if precision == 'tf32' else 'highest')
    torch.backends.cudnn.allow_tf32 = precision == 'tf32'

def compare(args, precision, n, compiled):
    children = {k: Child(args, k, precision, n, compiled) for k in STEPS}
    for c in children.values(): c.step()
    rounds = [{k: c.step() for k,c in children.items()} for _ in range(args.rounds)]
    found = {k: c.finish() for k,c in children.items()}
    peak,kept,flops = ({k: o[i] for k,o in found.items()} for i in range(3))
    mid = {k: statistics.median(o[k] for o in rounds) for k in STEPS}
    ratio = statistics.median(o['kits_nb']/o['monai'] for o in rounds)
    name = f'{n}³ {precision}{" compiled" if compiled else ""}'
    for k in STEPS: print(f'{name:22} {k:8} {mid[k]:8.3f} s  {flops[k]:7.0f} GFLOP  {1000*mid[k]/flops[k]:6.2f} ms/GFLOP  peak {peak[k]:6.0f} MB  kept {kept[k]:6.0f} MB')
    print(f'{name:22} ratio    {ratio:8.3f} of the time, {ratio*flops["monai"]/flops["kits_nb"]:.3f} of the time per GFLOP (target 0.8), '
          f'{peak["kits_nb"]/peak["monai"]:.3f} of the peak memory (target 1.1)', flush=True)
    set_precision(precision)
    rate,wire = arithmetic(args.device, torch.bfloat16 if precision == 'bfloat16' else torch.float32), bandwidth(args.device)
    bound = flops['kits_nb']*1e9/rate
    print(f'{name:22} roofline {bound:8.3f} s of arithmetic at {rate/1e9:.0f} GFLOP/s of a matrix product, {wire/1e9:.0f} GB/s of a copy; '
          f'our step takes {mid["kits_nb"]/bound:.1f} times the arithmetic', flush=True)

def main():
    args = parse()
    if args.threads: torch.set_num_threads(args.threads)
    if args.serve: return serve(args)
    from importlib.metadata import version
    commit = subprocess.run(['git', '-C', str(Path(__file__).parent), 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True).stdout.strip()
    what = torch.cuda.get_device_name() if args.device == 'cuda' else f'{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, keeps memory: {args.keep}'
    print(f'{what}; torch {torch.__version__}, MONAI {version("monai")}; commit {commit}; medians of {args.rounds} interleaved rounds, batch {args.bs}', flush=True)
    for n in map(int, args.sizes.split(',')):
        for precision in args.precisions.split(','):
            for compiled in dict(no=[False], yes=[True], both=[False,True])[args.compile]: compare(args, precision, n, compiled)

if __name__ == '__main__': main()
