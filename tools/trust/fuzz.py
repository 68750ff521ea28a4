"""Headers and slices that nobody would think of: `python tools/trust/fuzz.py [SECONDS [FOLDER]]`

Whatever stands in a file, reading it gives a volume that makes sense or a `CaseError`, within bounded memory.
Hypothesis sets the fields of NIfTI headers to values of every size; mutators of bytes, guided by the lines of
code that a file reaches (by `sys.settrace`, and by atheris where it is installed), work on whole NIfTI and
DICOM files. Each prints executions, seconds and crashes; a crash is written to FOLDER, and becomes an entry
of inputs_scans when it is mended."""
import contextlib, gzip, importlib.util, io, json, os, random, resource, subprocess, sys
import tempfile, time, traceback
from collections import Counter
from pathlib import Path
import nibabel as nib, numpy as np
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

import table
from scans import *
from kits_nb.core import CaseError
from kits_nb.data.dicom import read_dicom
from kits_nb.data.files import read_ct, read_volume, write_volume
from kits_nb.data.geometry import LONGEST_MM

MOST_MB = 1500       # of memory that reading one file may add
SEED = 0


# What must hold of every file

def check_volume(vol):
    "What a volume that was read must be"
    assert vol.data.ndim == 3 and vol.data.size and np.isfinite(vol.affine).all()
    assert 0 < min(vol.spacing) and max(np.multiply(vol.shape, vol.spacing)) <= 2*LONGEST_MM
    assert vol.voxel_mm3 > 0 and len(set(nib.aff2axcodes(vol.affine))) == 3


def peak_mb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024


def outcome(read, path, out=None):
    "'read', 'refused', or the traceback of a crash"
    before = peak_mb()
    try:
        vol = read(path)
        check_volume(vol)
        if out: write_volume(out, vol.like((vol.data > 0).astype(np.uint8)))
        said = 'read'
    except CaseError as e:
        said = 'refused' if e.found and (e.path or e.case) else f'a refusal without a file: {e}'
    except Exception: return traceback.format_exc(limit=-6)
    return said if peak_mb() - before < MOST_MB else f'{peak_mb() - before:.0f} MB of memory'


class Fuzz:
    "Counts of one fuzzer, and its crashes"
    def __init__(self, name, folder=None):
        self.name, self.folder, self.n, self.start = name, folder, Counter(), time.time()
        self.crashes = {}

    def add(self, said, data):
        kind = said if said in ('read', 'refused') else 'crash'
        self.n[kind] += 1
        where = said.strip().rpartition('\n')[2].split(':')[0]              # the kind of error
        if kind == 'crash' and where not in self.crashes:
            self.crashes[where] = data
            print(f'CRASH of {self.name}: {said}')
            if self.folder: (Path(self.folder)/f'{self.name}_{len(self.crashes)}').write_bytes(data)

    def line(self):
        n = sum(self.n.values())
        return (f'{self.name}: {n} executions, {time.time() - self.start:.0f} s, {self.n["read"]} read, '
                f'{self.n["refused"]} refused, {len(self.crashes)} crashes')


# Fields of headers, by hypothesis

EDGES = [0, 1, -1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, -32768]
FLOATS = st.floats(width=32) | st.sampled_from([0., 1., -1., .8, 3., 1e-30, 1e30, 352., 544., 1e9])
TYPES = sorted({int(o) for o in nib.nifti1.data_type_codes.value_set('code')})

def values_of(name, dtype):
    "A strategy for a field of a header"
    if name == 'datatype': return st.sampled_from(TYPES) | st.integers(-32768, 32767)
    if name == 'dim': return st.lists(st.integers(1, 9) | st.sampled_from(EDGES), min_size=8, max_size=8)
    base, shape = (dtype.subdtype or (dtype, ()))
    n = int(np.prod(shape, dtype=int))
    if base.kind == 'S': return st.binary(max_size=base.itemsize)
    if base.kind == 'f': one = FLOATS
    else:
        info = np.iinfo(base)
        one = st.integers(int(info.min),
        int(info.max)) | st.sampled_from([o for o in EDGES if info.min <= o <= info.max])
    return st.lists(one, min_size=n, max_size=n) if shape else one


def headers():
    "A good small header in which some fields are anything"
    template = nib.Nifti1Header.template_dtype
    fields = {k: values_of(k, template[k]) for k in template.names}
    changed = st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=6, unique=True)
    return changed.flatmap(lambda names: st.fixed_dictionaries({k: fields[k] for k in names}))


def file_of(fields, packed, voxels):
    "The bytes of a NIfTI file"
    h = np.frombuffer(bare_header((4, 5, 6))[:348], nib.Nifti1Header.template_dtype.newbyteorder('<')).copy()
    for k, v in fields.items(): h[k][0] = v
    data = h.tobytes() + bytes(4) + voxels
    return gzip.compress(data, 1) if packed else data


def fuzz_fields(seconds, folder=None):
    fuzz, end = Fuzz('fields', folder), time.time() + seconds
    voxels = np.random.default_rng(SEED).integers(-1000, 1500, 4*5*6).astype('<i2').tobytes()
    with tempfile.TemporaryDirectory() as d:
        @given(headers(), st.booleans(), st.booleans())
        @settings(max_examples=100_000, deadline=None, database=None, derandomize=True,
                  phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        def run(fields, packed, more):
            if time.time() > end: raise TimeoutError
            data = file_of(fields, packed, voxels*(40 if more else 1))
            path = Path(d)/('a.nii.gz' if packed else 'a.nii')
            path.write_bytes(data)
            fuzz.add(outcome(read_ct if more else read_volume, path, Path(d)/'out.nii.gz'), data)
        with contextlib.suppress(TimeoutError), contextlib.redirect_stderr(io.StringIO()): run()
    return fuzz


# Bytes, guided by coverage

def seeds_nifti():
    "Small files of every kind that is read"
    out = []
    with tempfile.TemporaryDirectory() as d:
        data = np.arange(4*5*6, dtype=np.int16).reshape(4, 5, 6)*20 - 1000
        a = np.diag([-2., -2., 3., 1.])
        for k, (kind, dtype) in enumerate(((nib.Nifti1Image, 'i2'), (nib.Nifti1Image, 'f4'), (nib.Nifti2Image,
            '>i2'))):
            path = save_nifti(Path(d)/f'{k}.nii', data.astype(dtype), a, kind,
            form=lambda i: i.set_qform(a, 1))
            out.append(path.read_bytes())
        scaled = save_nifti(Path(d)/'s.nii', data, a, form=lambda i: i.header.set_slope_inter(2, -3))
    return out + [scaled.read_bytes()] if scaled.exists() else out


def seeds_dicom():
    with tempfile.TemporaryDirectory() as d:
        save_series(d, hu=np.arange(3*8*8, dtype=np.int16).reshape(3, 8, 8)*10 - 1000)
        whole = [o.read_bytes() for o in sorted(Path(d).iterdir())]
    return whole[1:2] + [whole[1][132:]], whole


def mutate(data, rng):
    "A few bytes changed, copied, cut or added"
    b = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        if not b: break
        i, what = rng.randrange(min(len(b), 600) if rng.random() < .8 else len(b)), rng.randrange(7)
        if what == 0: b[i] ^= 1 << rng.randrange(8)
        elif what == 1: b[i] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif what == 2: b[i:i + 2] = (rng.choice(EDGES) & 0xffff).to_bytes(2, 'little')
        elif what == 3: b[i:i + 4] = np.float32(rng.choice((0, -1, 1e-30, 1e30, np.nan, np.inf, 3e9,
        .5))).tobytes()
        elif what == 4: j = rng.randrange(len(b)); b[i:i + 8] = b[j:j + 8]
        elif what == 5: del b[i:i + rng.choice((1, 2, 8, 64))]
        else: b[i:i] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 2, 8))))
    return bytes(b)


class Lines:
    "Lines of our readers, and of the libraries under them, that a call reaches"
    FILES = 'kits_nb/data', 'nibabel', 'pydicom'

    def __enter__(self): self.seen = set(); sys.settrace(self._call); return self
    def __exit__(self, *args): sys.settrace(None)
    def _call(self, frame, event, arg):
        return self._line if any(o in frame.f_code.co_filename for o in self.FILES) else None
    def _line(self, frame, event, arg):
        self.seen.add((frame.f_code, frame.f_lineno))
        return self._line


def fuzz_bytes(name, seeds, write, read, seconds, folder=None, mutate=mutate):
    "Mutate files; one that reaches a new line is kept and mutated further"
    fuzz, rng, pool, known = Fuzz(name, folder), random.Random(SEED), list(seeds), set()
    end = time.time() + seconds
    with tempfile.TemporaryDirectory() as d, contextlib.redirect_stderr(io.StringIO()):
        while time.time() < end:
            data = mutate(rng.choice(pool), rng)
            path = write(Path(d), data)
            with Lines() as lines: said = outcome(read, path)
            fuzz.add(said, data)
            if lines.seen - known: known |= lines.seen; pool.append(data)
    fuzz.n_lines, fuzz.kept = len(known), len(pool) - len(seeds)
    return fuzz


def write_nifti(d, data):
    "Half of the files are compressed"
    path = d/('a.nii.gz' if len(data) % 2 else 'a.nii')
    path.write_bytes(gzip.compress(data, 1) if len(data) % 2 else data)
    return path


def fuzz_nifti(seconds, folder=None):
    return fuzz_bytes('NIfTI', seeds_nifti(), write_nifti, read_ct, seconds, folder)


def atheris_child(seconds, folder, stats):
    "In a process of its own, because libFuzzer ends it: the same by atheris"
    import atheris
    fuzz, d = Fuzz('atheris', folder), Path(tempfile.mkdtemp(dir=folder))
    corpus = d/'corpus'
    corpus.mkdir()
    for k, o in enumerate(seeds_nifti()): (corpus/f'{k}').write_bytes(o)
    def one(data):
        if not data: return
        fuzz.add(outcome(read_ct, write_nifti(d, data)), data)
        n = sum(fuzz.n.values())
        if n % 200 == 0 or fuzz.crashes: Path(stats).write_text(json.dumps([dict(fuzz.n), len(fuzz.crashes)]))
    for module in ('kits_nb.data.files', 'kits_nb.data.formats', 'kits_nb.data.geometry', 'nibabel.nifti1'):
        for f in vars(sys.modules[module]).values():
            if getattr(f, '__module__', '') == module and hasattr(f, '__code__'):
                with contextlib.suppress(Exception): atheris.instrument_func(f)
    atheris.Setup([sys.argv[0], f'-max_total_time={int(seconds)}', '-max_len=2000', f'-seed={SEED + 1}',
                   str(corpus)], one)
    atheris.Fuzz()


def _last(folder):
    "What a process was reading when it ended"
    path = Path(folder)/'last'
    return [path.read_bytes()[:500]] if path.exists() else []


def in_child(fuzz, flag, seconds):
    "The counts of a fuzzer in a process of its own, whose end, if it has no result, is a crash"
    with tempfile.TemporaryDirectory() as d:
        stats = Path(d)/'stats.json'
        command = [sys.executable, __file__, flag, str(seconds), fuzz.folder or d, stats]
        try: said = subprocess.run(command, capture_output=True, text=True, errors='replace',
                                   timeout=9*seconds + 60)
        except subprocess.TimeoutExpired as e: said = subprocess.CompletedProcess(command, None, '', f'{e}')
        n, crashes = json.loads(stats.read_text()) if stats.exists() else (dict(crash=1), 1)
        if crashes: print(said.returncode, said.stdout[-3000:], said.stderr[-2000:], *_last(command[-2]))
    fuzz.n.update(n)
    fuzz.crashes = dict.fromkeys(range(crashes))
    return fuzz


def fuzz_atheris(seconds, folder=None):
    "Nothing where atheris is not installed"
    fuzz = Fuzz('NIfTI by atheris', folder)
    return in_child(fuzz, '--atheris', seconds) if importlib.util.find_spec('atheris') else fuzz


# NRRD and MetaImage: text, and a native reader, which could take the process down

def seeds_itk():
    "Small files: NRRD raw and compressed, MetaImage with and without an orientation"
    data = (np.arange(4*5*6, dtype='<i2')*20 - 1000).tobytes()
    nrrd = NRRD.format(6, 5, 4).replace('(-7,0,0) (0,-7,0) (0,0,-8)', '(-2,0,0) (0,-2,0) (0,0,3)').encode()
    mha = ('ObjectType = Image\nNDims = 3\n{}ElementSpacing = 2 2 3\nDimSize = 6 5 4\n'
           'ElementType = MET_SHORT\nElementDataFile = LOCAL\n')
    sides = 'TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\n'
    return [nrrd + data, nrrd.replace(b'raw', b'gzip') + gzip.compress(data),
            mha.format(sides).encode() + data, mha.format('').encode() + data]


WORDS = [b'0', b'-1', b'1', b'3', b'7', b'1e30', b'1e-30', b'nan', b'inf', b'99999999999999', b'4294967297',
         b'', b'LIST', b'gzip', b'bzip2', b'hex', b'ascii', b'raw', b'MET_CHAR', b'MET_DOUBLE', b'double',
         b'uchar', b'block', b'True', b'False', b'big', b'left-anterior-superior', b'(0,0,0)', b'none',
         b'%s'*9, b'9'*400]

def mutate_text(data, rng):
    "A word of the header replaced, or a line of it dropped, doubled or moved; or bytes changed as elsewhere"
    if rng.random() < .3: return mutate(data, rng)
    head, end, rest = data.partition(b'\n\n' if data.startswith(b'NRRD') else b'LOCAL\n')
    lines = head.split(b'\n')
    for _ in range(rng.choice((1, 1, 2, 4))):
        k, what = rng.randrange(len(lines)), rng.randrange(6)
        if what == 0: lines.insert(rng.randrange(len(lines) + 1), lines[k])
        elif what == 1 and len(lines) > 1: del lines[k]
        else:
            words = lines[k].split(b' ')
            words[rng.randrange(len(words))] = rng.choice(WORDS)
            lines[k] = b' '.join(words)
    return b'\n'.join(lines) + end + rest


def write_itk(d, data):
    path = d/('a.nrrd' if data.startswith(b'NRRD') else 'a.mha')
    path.write_bytes(data)
    return path


def itk_child(seconds, folder, stats):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)                         # ITK's own warnings
    def write(d, data): (Path(folder)/'last').write_bytes(data); return write_itk(d, data)
    fuzz = fuzz_bytes('NRRD and MetaImage', seeds_itk(), write, read_ct, seconds, folder, mutate_text)
    Path(stats).write_text(json.dumps([dict(fuzz.n), len(fuzz.crashes)]))


def fuzz_itk(seconds, folder=None):
    "Nothing where SimpleITK is not installed"
    fuzz = Fuzz('NRRD and MetaImage', folder)
    return in_child(fuzz, '--itk', seconds) if importlib.util.find_spec('SimpleITK') else fuzz


def fuzz_dicom(seconds, folder=None):
    one, whole = seeds_dicom()
    def write(d, data):
        for k, o in enumerate((whole[0], data, whole[2])): (d/f'{k}').write_bytes(o)
        return d
    return fuzz_bytes('DICOM', one, write, read_dicom, seconds, folder)


def main(seconds=15, folder=None):
    n = Counter(tried=0, wrong=0)
    import logging
    nib.imageglobals.logger.setLevel(logging.CRITICAL + 1)
    logging.getLogger('pydicom').setLevel(logging.CRITICAL + 1)
    for run in (fuzz_fields, fuzz_nifti, fuzz_atheris, fuzz_itk, fuzz_dicom):
        fuzz = run(seconds, folder)
        if not sum(fuzz.n.values()): continue
        reached = f', {fuzz.n_lines} lines reached, {fuzz.kept} files kept' if hasattr(fuzz, 'kept') else ''
        print(fuzz.line() + reached, flush=True)
        n['tried'] += sum(fuzz.n.values())
        n['wrong'] += len(fuzz.crashes)
    return n


if __name__ == '__main__':
    for flag, child in (('--atheris', atheris_child), ('--itk', itk_child)):
        if flag in sys.argv: sys.exit(child(float(sys.argv[2]), sys.argv[3], sys.argv[4]))
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 15
    sys.exit(main(seconds, sys.argv[2] if len(sys.argv) > 2 else None)['wrong'] > 0)
