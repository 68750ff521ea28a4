"""Models, states, prepared cases, archives and settings from strangers:
`python tools/trust/inputs_models.py [words of a name]`"""
import hashlib, json, os, shutil, sys, tempfile, zipfile
from functools import lru_cache
from pathlib import Path
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from table import Accepted, Command, Entry, Refused, RUN, main as run_main

MODEL, STATE, PREPARED, SETTINGS = 'models', 'states of trainings', 'prepared cases', 'settings and archives'
SMALL = ('--epochs', '1', '--crop', '16', '--per-case', '1', '--n-folds', '3', '--device', 'cpu')


@lru_cache
def _made():
    "Three small phantoms, prepared in both stores, and a run of one epoch: made once"
    from kits_nb.data.phantom import write_phantoms
    from kits_nb.data.store import PrepareConfig, prepare_folder
    from kits_nb.training.recipe import get_recipe
    from kits_nb.training.run import train
    tmp = tempfile.TemporaryDirectory(prefix='trust-made-')
    d = Path(tmp.name)
    write_phantoms(d/'data', 3, shape=(16, 32, 32), spacing=(12., 10., 10.))
    for store in ('npy', 'blosc2'): prepare_folder(d/'data', d/store, PrepareConfig((8.,)*3, store))
    small = get_recipe('tiny').replace(epochs=1, crop=(16,)*3, per_case=1, valid_per_case=1)
    small = small.replace(n_folds=3, threads=1)
    train(d/'npy', d/'run', small, echo=None, device='cpu')
    return d, tmp


# Models

def model(d, **changes):
    "A copy of the trained network, with other contents of config.json"
    shutil.copytree(RUN, d/'run', ignore=shutil.ignore_patterns('*.npz'))
    cfg = json.loads((d/'run'/'config.json').read_text())
    for k, v in changes.items(): cfg[k] = cfg[k] | v if isinstance(v, dict) and k in cfg else v
    (d/'run'/'config.json').write_text(json.dumps(cfg))


def weights(d, change):
    "The same with other weights"
    from safetensors.torch import load_file, save_file
    model(d)
    path = d/'run'/'model.safetensors'
    w = load_file(path)
    save_file(change(w), path)


def text(d, words):
    model(d)
    (d/'run'/'config.json').write_text(words)


def load(d):
    from kits_nb.network.saving import load_model
    return load_model(d/'run')


def pickled(d):
    "A pickle that would write a file where it is loaded"
    model(d)
    code = f'cposix\nsystem\n(S"touch {d}/EXECUTED"\ntR.'.encode()
    (d/'run'/'model.safetensors').write_bytes(code)
    (d/'run'/'model.pth').write_bytes(code)


def not_executed(refused, d): assert not (d/'EXECUTED').exists(), 'code of the file was run'; return refused


def nan(w): k = sorted(w)[0]; w[k] = w[k]*float('nan'); return w
def one_less(w): w.pop(sorted(w)[0]); return w
def one_more(w): w['\x1b[31mextra'] = w[sorted(w)[0]].clone(); return w
def whole_numbers(w): return {k: v.int() for k, v in w.items()}
def turned(w): k = next(k for k in w if w[k].dim() == 5); w[k] = w[k][:1].clone(); return w


def box(d, change):
    "A copy of the package's own network, with other bytes as its weights"
    from kits_nb.network.saving import BOX
    shutil.copytree(BOX, d/'run')
    path = d/'run'/'model.safetensors'
    path.write_bytes(change(path))


def one_bit(path): b = bytearray(path.read_bytes()); b[-1] ^= 1; return bytes(b)


def replaced(path):
    "The same network with weights of somebody else"
    from safetensors.torch import load_file, save
    return save({k: v*1.001 for k, v in load_file(path).items()})


def header(d, head, body=b''):
    "A safetensors file with a header of our own"
    model(d)
    (d/'run'/'model.safetensors').write_bytes(len(head).to_bytes(8, 'little') + head + body)


def long_header(d):
    model(d)
    with open(d/'run'/'model.safetensors', 'wb') as f: f.write((2**40).to_bytes(8, 'little') + b'{')


CONFIG = 'run/config.json'
MODELS = [(f'config.json: {name}', write, words) for name, write, words in [
    ('a billion filters', lambda d: model(d, network=dict(filters=10**9)),
     ['no network has the filters', 'restore']),
    ('a million blocks', lambda d: model(d, network=dict(blocks_down=[1, 10**6, 1, 1])), ['blocks_down']),
    ('nine levels', lambda d: model(d, network=dict(blocks_down=[1]*9, blocks_up=[1]*8)), ['blocks_down']),
    ('filters as a word', lambda d: model(d, network=dict(filters='8; import os')),
     ['the setting filters', 'number']),
    ('filters 0', lambda d: model(d, network=dict(filters=0)), ['the filters 0']),
    ('groups that do not divide', lambda d: model(d, network=dict(groups=3)), ['the groups 3']),
    ('an unknown setting', lambda d: model(d, network=dict(code='x')), ['unknown settings code']),
    ('HU range NaN', lambda d: model(d, network=dict(hu_range=[float('nan'), 1])), ['hu_range']),
    ('no network', lambda d: model(d, network=None), ['holds no settings']),
    ('spacing 0', lambda d: model(d, meta=dict(spacing=[0, 1, 1])), ['the spacing [0, 1, 1]']),
    ('spacing infinite', lambda d: model(d, meta=dict(spacing=[1e999, 1, 1])), ['the spacing']),
    ('a window of terabytes', lambda d: model(d, meta=dict(window=[10**5]*3)), ['the window']),
    ('no window', lambda d: model(d, meta=dict(window=None)), ['the window None']),
    ('no meta', lambda d: model(d, meta=[1]), ['on which grid']),
    ('a later format', lambda d: model(d, format=2), ['the format 2', 'version of kits_nb']),
    ('a list', lambda d: text(d, '[1, 2]'), ['describes no network']),
    ('half of it', lambda d: text(d, '{"format": 1, "netw'), ['not JSON']),
    ('nested 100 000 deep', lambda d: text(d, '['*100_000), ['nested too deeply']),
    ('100 MB', lambda d: text(d, ' '*10**8 + '1'), ['has 100000001 bytes', 'at most']),
    ('bytes that are no text', lambda d: (model(d), (d/CONFIG).write_bytes(b'\xff\xfe{}')), ['not JSON'])]]
MODELS += [(f'weights: {name}', write, words) for name, write, words in [
    ('NaN', lambda d: weights(d, nan), ['not finite', 'model.safetensors']),
    ('one is missing', lambda d: weights(d, one_less), ['is missing', 'copy the whole folder']),
    ('one too many, with an escape code', lambda d: weights(d, one_more),
     [r'\x1b[31mextra is not in the network']),
    ('whole numbers', lambda d: weights(d, whole_numbers), ['is of type I32']),
    ('other shapes', lambda d: weights(d, turned), ['has the shape']),
    ('of a larger network', lambda d: model(d, network=dict(filters=512)), ['has the shape']),
    ('a pickle', pickled, ['do not fit']),
    ('a header of a terabyte', long_header, ['do not fit']),
    ('tensors beyond the end', lambda d: header(d, b'{"a":{"dtype":"F32","shape":[1000000000],'
                                                   b'"data_offsets":[0,4000000000]}}'), ['do not fit']),
    ('overlapping tensors', lambda d: header(d, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                                                b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
                                             bytes(4)),
     ['do not fit']),
    ('empty', lambda d: (model(d), (d/'run'/'model.safetensors').write_bytes(b'')), ['do not fit']),
    ("the package's, one bit changed", lambda d: box(d, one_bit), ['SHA-256', 'copy the whole folder']),
    ("the package's, replaced", lambda d: box(d, replaced), ['SHA-256', 'copy the whole folder'])]]


# States

def run(d, change=None):
    "A copy of the small run, with other facts in its state"
    from kits_nb.training.checkpoint import load_state
    from safetensors.torch import save_file
    made, _ = _made()
    shutil.copytree(made/'run', d/'run')
    if not change: return
    path = d/'run'/'state.safetensors'
    tensors, facts = load_state(path)
    tensors, facts = change(dict(tensors), dict(facts))
    save_file(tensors, path, {'facts': json.dumps(facts)})


def resume(d):
    from kits_nb.training.run import choose_recipe, train
    made, _ = _made()
    return train(made/'npy', d/'run', choose_recipe(d/'run', resume=True, epochs=2), echo=None, resume=True)


def fact(**changes): return lambda t, f: (t, f | changes)
def without(*names): return lambda t, f: (t, {k: v for k, v in f.items() if k not in names})
def tensor(f): return lambda t, facts: (f(t), facts)


def cut(d):
    run(d)
    os.truncate(d/'run'/'state.safetensors', 5000)



def cut_weight(t):
    k = next(o for o in t if o.startswith('net.') and t[o].dim() == 5)
    return t | {k: t[k][:1].clone()}


STATES = [('cut short', cut, ['does not hold the state of a training']),
    ('no facts', lambda d: run(d, without('epoch', 'rows')), ['epoch, rows is missing']),
    ('an epoch in words', lambda d: run(d, fact(epoch='one')), ['epoch is one']),
    ('a negative epoch', lambda d: run(d, fact(epoch=-1)), ['the epoch is -1']),
    ('an epoch that its log does not have', lambda d: run(d, fact(epoch=7)), ['another number of epochs']),
    ('a later format', lambda d: run(d, fact(format=9)), ['format 9']),
    ('settings that are no settings', lambda d: run(d, fact(same=dict(train=1))), ['run']),
    ('a learning rate in words', lambda d: run(d, fact(groups=[dict(lr='fast')])),
     ['the learning rate is fast']),
    ('a generator of another kind', lambda d: run(d, fact(rng=dict(python=[9], numpy=[]))), ['does not fit']),
    ("a generator's state cut",
     lambda d: run(d, tensor(lambda t: t | {'rng.torch': t['rng.torch'][:7].clone()})),
     ['does not fit']),
    ('no generator', lambda d: run(d, tensor(lambda t: {k: v for k, v in t.items() if k != 'rng.torch'})),
     ['does not fit']),
    ('weights of another shape', lambda d: run(d, tensor(cut_weight)), ['does not fit']),
    ('weights are missing',
     lambda d: run(d, tensor(lambda t: {k: v for k, v in t.items() if k[:4] != 'net.'})),
     ['does not fit']),
    ("an optimiser's value of no weight", lambda d: run(d, fact(values={'999.step': 1})), ['does not fit']),
    ('run.json without a recipe', lambda d: (run(d), (d/'run'/'run.json').write_text('{}')),
     ['describes no run']),
    ('run.json without a network', lambda d: (run(d), (d/'run'/'run.json').write_text(
        '{"processes": 1, "recipe": {}}')), ['holds no settings'])]


# Prepared cases

def prepared(d, store='npy'):
    made, _ = _made()
    shutil.copytree(made/store, d/'prep')
    return d/'prep'/'case_00001'


def described(d, **changes):
    path = prepared(d)/'case.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def array(d, name, x, **kwargs):
    with open(prepared(d)/name, 'wb') as f: np.save(f, x, **kwargs)


def raw(d, name, data, store='npy'): (prepared(d, store)/name).write_bytes(data)
def npy_header(words): return b'\x93NUMPY\x01\x00' + len(words).to_bytes(2, 'little') + words


def lazy(d, how):
    "A blosc2 file that would compute its array, in the place of an array"
    import blosc2
    case = prepared(d, 'blosc2')
    os.rename(case/'ct.b2nd', case/'op.b2nd')
    a = blosc2.open(str(case/'op.b2nd'), mode='r')
    if how == 'expression': (a + 1).save(urlpath=str(case/'ct.b2nd'))
    if how == 'function':
        (d/'evil.py').write_text(f"def evil(inputs, output, offset):\n    open('{d}/EXECUTED', 'w').close()\n"
                                 "    output[:] = inputs[0]\n")
        sys.path.insert(0, str(d))
        try:
            sys.modules.pop('evil', None)
            import evil
            blosc2.lazyudf(evil.evil, (a,), dtype=a.dtype, shape=a.shape).save(urlpath=str(case/'ct.b2nd'))
        finally: sys.path.remove(str(d))
        (d/'EXECUTED').unlink(missing_ok=True)
    if how == 'layer': blosc2.asarray(a[...], urlpath=str(case/'ct.b2nd'), meta={'LazyArray': 2})
    (case/'op.b2nd').rename(d/'op.b2nd')


def read_all(d):
    "What a training would do: open all cases, and read a crop of each"
    from kits_nb.data.store import load_prepared
    _, cases = load_prepared(d/'prep')
    got = [c.intact().ct[2:6, 2:6, 2:6].sum() + len(c.kidney) + len(c.tumor) for c in cases]
    assert not (d/'EXECUTED').exists(), 'code of the file was run'
    return got


class Executed(Exception):
    "Not a refusal: code was run"


def guarded(f):
    def call(d):
        try: return f(d)
        finally:
            if (d/'EXECUTED').exists(): raise Executed('code of the file was run')
    return call


HUGE = npy_header(b"{'descr': '<i2', 'fortran_order': False, 'shape': (99999999, 99999999, 99999999)}\n")
NESTED = npy_header(b'(' * 9000 + b'\n')
OBJECTS = np.array([dict(a=1), 2], dtype=object)
PREPAREDS = [
    ('a pickle in a .npy file', lambda d: array(d, 'ct.npy', OBJECTS, allow_pickle=True),
     ['ct.npy', 'kits-prepare']),
    ('an archive in a .npy file', lambda d: np.savez((prepared(d)/'tumor.npy').open('wb'), x=OBJECTS),
     ['tumor.npy']),
    ('a shape of exabytes', lambda d: raw(d, 'ct.npy', HUGE), ['ct.npy', 'cannot be read']),
    ('a header nested without end', lambda d: raw(d, 'seg.npy', NESTED), ['seg.npy', 'cannot be read']),
    ('floating-point voxels', lambda d: array(d, 'ct.npy', np.zeros((9, 9, 9))), ['the file holds float64']),
    ('positions outside', lambda d: array(d, 'kidney.npy', np.array([10**9], np.int32)),
     ['outside of the volume']),
    ('negative positions', lambda d: array(d, 'kidney.npy', np.array([-1], np.int32)),
     ['outside of the volume']),
    ('positions that are no numbers', lambda d: array(d, 'tumor.npy', np.array(['a'])),
     ['tumor.npy', 'expected']),
    ('a folder in place of a file',
     lambda d: ((prepared(d)/'ct.npy').unlink(), (d/'prep/case_00001/ct.npy').mkdir()),
     ['ct.npy', 'cannot be read']),
    ('an id that is a path', lambda d: described(d, id='../../evil'), ["its id is '../../evil'"]),
    ('a shape of exabytes in case.json', lambda d: described(d, shape=[10**6]*3), ['its shape']),
    ('a shape in words', lambda d: described(d, shape=['a', 1, 1]), ['its shape']),
    ('an affine without an inverse', lambda d: described(d, affine=np.zeros((4, 4)).tolist()),
     ['its affine']),
    ('a store called pickle', lambda d: described(d, store='pickle'), ["its store is 'pickle'"]),
    ('a list of files elsewhere', lambda d: described(d, checks=dict(bytes={'/etc/passwd': 1})),
     ['its list of files']),
    ('case.json is a list', lambda d: raw(d, 'case.json', b'[]'), ['case.json', 'damaged']),
    ('prepared.json is a list', lambda d: (prepared(d), (d/'prep/prepared.json').write_text('[1]')),
     ['no settings']),
    ('prepared.json: spacing in words', lambda d: (prepared(d), (d/'prep/prepared.json').write_text(
        '{"spacing": "1; import os", "store": "npy"}')), ['the setting spacing']),
    ('prepared.json: a million steps', lambda d: (prepared(d), (d/'prep/prepared.json').write_text(
        json.dumps(dict(spacing=[1]*10**6)))), ['the setting spacing'])]
PACKED = [('a lazy expression', lambda d: lazy(d, 'expression'), ['more than an array', 'ct.b2nd']),
    ('a lazy array with Python code', lambda d: lazy(d, 'function'), ['more than an array', 'ct.b2nd']),
    ('one more metalayer', lambda d: lazy(d, 'layer'), ['more than an array', 'ct.b2nd']),
    ('another kind of file', lambda d: raw(d, 'ct.b2nd', b'PK\3\4' + bytes(500), 'blosc2'),
     ['no blosc2 file']),
    ('half of a .b2nd file', lambda d: os.truncate(prepared(d, 'blosc2')/'ct.b2nd', 300),
     ['ct.b2nd', 'bytes']),
    ('a .b2nd header of zeros', lambda d: raw(d, 'seg.b2nd', b'\x9e\xa8b2frame\0' + bytes(500), 'blosc2'),
     ['seg.b2nd', 'kits-prepare'])]


# Settings and archives

def predicted(d, words):
    "A folder of predictions with a record of somebody else"
    made, _ = _made()
    (d/'out').mkdir()
    (d/'out'/'predictions.json').write_text(words)
    shutil.copytree(made/'data'/'case_00000', d/'data'/'case_00000')


def member(name):
    "A zip for kits-submit's check with a member of that name"
    def write(d):
        with zipfile.ZipFile(d/'x.zip', 'w') as z: z.writestr(name, b'x')
    return write


def check_zip(d):
    from kits_nb.evaluation.submit import check_zip
    return check_zip(d/'x.zip', ['case_00000'])


def prepare_outside(d):
    from kits_nb.data.kits19 import Case
    from kits_nb.data.store import prepare_case
    made, _ = _made()
    case = made/'data'/'case_00000'
    return prepare_case(Case('../outside', case/'imaging.nii.gz', case/'segmentation.nii.gz'), d/'out')


def predict_outside(d):
    from kits_nb.inference.cases import prediction_path
    return prediction_path(d/'out', '../../outside')


def recipe(d):
    from kits_nb.core import load_json
    from kits_nb.training.recipe import Recipe
    return Recipe.from_dict(load_json(d/'recipe.json'), d/'recipe.json')


def settings(**train):
    def write(d):
        from kits_nb.training.recipe import get_recipe
        made = get_recipe('tiny').to_dict()
        (d/'recipe.json').write_text(json.dumps(made | dict(train=made['train'] | train)))
    return write


PREDICT = Command('kits-predict', RUN, '{d}/data', '{d}/out', '--no-tta', '--device', 'cpu')
OTHERS = [
    ('a record that is a list', lambda d: predicted(d, '[1]'), PREDICT, ['predictions.json', 'describes no']),
    ('a record that is no JSON', lambda d: predicted(d, '{'), PREDICT, ['predictions.json', 'not JSON']),
    ("a record of another's model", lambda d: predicted(d, '{"settings": {}, "models": []}'), PREDICT,
     ['other']),
    ('a case id that leads elsewhere, prepared', None, prepare_outside,
     ['cannot be the name', 'rename the case']),
    ('a recipe: a word for a number', settings(lr='fast'), recipe, ['the setting lr', 'a number']),
    ('a recipe: infinite', settings(lr=1e999), recipe, ['the setting lr', 'a number']),
    ('a recipe: true for a number', settings(epochs=True), recipe, ['the setting epochs', 'whole number']),
    ('a recipe: a list in a list', settings(crop=[[1], [2], [3]]), recipe, ['the setting crop']),
    ('a recipe: an unknown setting', settings(code='import os'), recipe, ['unknown settings code'])]
if hasattr(os, 'fork'):
    OTHERS += [('a member that leaves its folder', member('../../evil.nii.gz'), check_zip, ['x.zip']),
               ('a member with an absolute name', member('/etc/evil'), check_zip, ['x.zip'])]


def entries():
    out = [Entry(n, MODEL, w, guarded(load), Refused(*words)) for n, w, words in MODELS]
    out += [Entry(f'state: {n}', STATE, w, resume, Refused(*words)) for n, w, words in STATES]
    out += [Entry(n, PREPARED, w, guarded(read_all), Refused(*words)) for n, w, words in PREPAREDS]
    out += [Entry(n, PREPARED, w, guarded(read_all),
         Refused(*words), needs='blosc2') for n, w, words in PACKED]
    out += [Entry(n, SETTINGS, w, f, Refused(*words)) for n, w, f, words in OTHERS]
    out += [Entry('a pickle beside the weights, by command', MODEL, lambda d: (pickled(d), predicted_data(d)),
                  Command('kits-predict', '{d}/run', '{d}/data', '{d}/out', '--device', 'cpu'),
                       Refused('do not fit')),
            Entry('a right model', MODEL, model, lambda d: load(d).cfg.filters, Accepted(8)),
            Entry('a right run', STATE, run, lambda d: resume(d) == d/'run',
                  Accepted(True, makes=['run/state.safetensors', 'run/log.csv'])),
            Entry('right prepared cases', PREPARED, prepared, lambda d: len(read_all(d)), Accepted(3)),
            Entry('right packed cases', PREPARED, lambda d: prepared(d, 'blosc2'), lambda d: len(read_all(d)),
                  Accepted(3), needs='blosc2')]
    return out


def predicted_data(d):
    made, _ = _made()
    shutil.copytree(made/'data'/'case_00000', d/'data'/'case_00000')


def main():
    try: return run_main(entries(), 'models, states, prepared cases')
    finally:
        if _made.cache_info().currsize: _made()[1].cleanup(); _made.cache_clear()


if __name__ == '__main__': sys.exit(int(main()['wrong'] > 0))
