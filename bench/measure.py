"What the benchmarks of prediction share: time, memory and a line about the machine"
import ctypes, gc, os, platform, subprocess, time
from importlib.metadata import version
from pathlib import Path

def status(key):
    "Bytes of a line of /proc/self/status: VmRSS now, VmHWM the most so far"
    return int(next(l for l in open('/proc/self/status') if l.startswith(key)).split()[1])*1024

def peak(f):
    "(Result, bytes that the call took beyond what was there before). Linux only"
    gc.collect(); ctypes.CDLL('libc.so.6').malloc_trim(0)
    start = status('VmRSS'); Path('/proc/self/clear_refs').write_text('5')
    out = f()
    return out, status('VmHWM') - start

def timed(f):
    "(Result, seconds)"
    gc.collect(); start = time.perf_counter()
    out = f()
    return out, time.perf_counter() - start

def median(xs): return sorted(xs)[len(xs)//2]

def versions(*names):
    "name version, name version, for what is installed"
    out = []
    for n in names:
        try: out.append(f'{n} {version(n)}')
        except ImportError: pass
    return ', '.join(out)

def machine(*names):
    "A line: processor, cores, versions, commit"
    cpu = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), platform.processor())
    commit = subprocess.run(['git','-C',str(Path(__file__).parent),'describe','--always','--dirty'], capture_output=True, text=True).stdout.strip()
    return f'{cpu}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {versions("torch", *names)}; commit {commit}'
