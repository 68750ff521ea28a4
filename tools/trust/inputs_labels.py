"""Labels, scores, tables, settings and what callers pass: what somebody met, and what must come of it

`python tools/trust/inputs_labels.py [words of a name]`"""
import os, subprocess, sys
import nibabel as nib, numpy as np, torch

import table
from table import BIN, RUN, Accepted, Command, Entry, Refused, Said
from kits_nb.core import *
from kits_nb.data.kits19 import split_folds
from kits_nb.data.phantom import make_phantom
from kits_nb.data.store import PrepareConfig, load_prepared, prepare_folder
from kits_nb.data.volume import Volume, resample, to_channels, to_labels
from kits_nb.evaluation.dice import mask_dice
from kits_nb.evaluation.morphometry import components, label_files, measure_case, measure_folder
from kits_nb.evaluation.scores import evaluate_folder, score_case
from kits_nb.evaluation.statistics import mean_ci
from kits_nb.evaluation.submit import check_prediction
from kits_nb.evaluation.surface import hd95, surface_dice
from kits_nb.inference.predict import PredictConfig, predict_maps, predict_volume
from kits_nb.inference.windows import window_starts
from kits_nb.training.losses import BoundaryLoss, dice_loss
from kits_nb.training.metrics import dice_score
from kits_nb.training.recipe import get_recipe
from kits_nb.training.run import check_settings, train

ENTRIES = []
CT, SEG = make_phantom(1000, (32, 64, 64), (6., 5., 5.))
S = SEG.data
MM = SEG.spacing
MAPPING = '1=kidney,2=tumor,3=kidney'


def add(kind, name, write, run, outcome, **kwargs):
    ENTRIES.append(Entry(name, kind, write, run, outcome, **kwargs))

def save(path, x, affine=SEG.affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(x, affine), path)

def case(d, seg, name='case_00000', folder='data'):
    "A case in the official layout"
    save(d/folder/name/'imaging.nii.gz', CT.data, CT.affine)
    save(d/folder/name/'segmentation.nii.gz', seg)

def cases(*segs): return lambda d: [case(d, o, f'case_{k:05d}') for k, o in enumerate(segs)]
def predictions(*segs): return lambda d: [save(d/'pred'/f'prediction_{k:05d}.nii.gz', o) for k,
    o in enumerate(segs)]
def both(pred, truth): return lambda d: (cases(truth)(d), predictions(pred)(d))
def evaluate(*options): return Command('kits-evaluate', '{d}/pred', '{d}/data', '--out', '{d}/out',
    '--no-surface', '--pictures', '0', *options)
def measure(*options, folder='pred'): return Command('kits-measure', '{d}/' + folder, '--out', '{d}/out',
    *options)
def prepare(*options): return Command('kits-prepare', '{d}/data', '{d}/prepared', '--spacing', '8', *options)

MADE = ['out/*']
CYSTS = S.copy()
CYSTS[..., :S.shape[2]//2][CYSTS[..., :S.shape[2]//2] == KIDNEY] = CYST
NO_TUMOR = np.minimum(S, 1)
PREPARED = ['prepared/*']


def scores(**wanted):
    "A check of scores.json below the output folder, for `evaluate_folder` as a function"
    def check(result):
        row = result[0].iloc[0]
        return all(np.isclose(row[k], v) for k, v in wanted.items())
    return check

def scored(d, **kwargs): return evaluate_folder(d/'pred', d/'data', **kwargs)


# Labels of other data sets

LABELS_OF = 'labels of other data sets'

add(LABELS_OF, 'cysts, kits-measure', predictions(CYSTS), measure(),
    Refused('case_00000', 'label values [3]', '--classes kits23', makes=MADE))
add(LABELS_OF, 'cysts, kits-measure --classes kits23', predictions(CYSTS), measure('--classes', 'kits23'),
    Accepted('cyst 1', makes=['out/morphometry.csv'], only=True))
add(LABELS_OF, 'cysts as kidney, kits-measure', predictions(CYSTS),
    lambda d: measure_folder(d/'pred', MAPPING).ml.sum(),
    Accepted(float(np.count_nonzero(S)*np.prod(MM)/1000)))
add(LABELS_OF, 'cysts, kits-evaluate', both(CYSTS, CYSTS), evaluate(),
    Refused('label values [3]', '--classes kits23'))
add(LABELS_OF, 'cysts, kits-evaluate --classes kits23', both(CYSTS, CYSTS),
    lambda d: scored(d, classes='kits23'),
    Accepted(scores(kidney=1, mass=1, tumor=1, composite=1)))
add(LABELS_OF, 'cysts in the predictions alone', both(CYSTS, S), evaluate(),
    Refused('prediction_00000', 'label values [3]', 'counted as background', makes=MADE))
add(LABELS_OF, 'cysts, kits-prepare', cases(CYSTS), prepare(),
    Refused('case_00000', 'segmentation.nii.gz', 'label values [3]', '--classes',
        makes=['prepared/prepared.json']))
add(LABELS_OF, 'cysts, kits-prepare --classes kits23', cases(CYSTS), prepare('--classes', 'kits23'),
    Accepted('1 done', makes=['prepared/case_00000/seg.npy']))
add(LABELS_OF, 'cysts as kidney, kits-prepare', cases(CYSTS),
    lambda d: (prepare_folder(d/'data', d/'prepared', PrepareConfig((8.,)*3, classes=MAPPING)),
               np.unique(load_prepared(d/'prepared')[1][0].seg))[1], Accepted(np.array([0, 1, 2])))
add(LABELS_OF, 'a mask of 255, kits-measure', predictions((S > 0)*np.uint8(255)), measure(),
    Refused('label values [255]', '255=kidney', makes=MADE))
add(LABELS_OF, 'a mask of 255 with its meaning', predictions((S > 0)*np.uint8(255)),
    lambda d: measure_folder(d/'pred',
        '255=kidney').ml.sum(), Accepted(float((S > 0).sum()*np.prod(MM)/1000)))
add(LABELS_OF, 'masks of 255 in truth and prediction', both((S > 0)*np.uint8(255), (S > 0)*np.uint8(255)),
    lambda d: scored(d, classes='255=kidney'), Accepted(scores(kidney=1, composite=1)))
add(LABELS_OF, 'labels of 0.99999, kits-evaluate', both(S*np.float32(.99999), S), evaluate(),
    Accepted('1.0000', makes=['out/scores.csv', 'out/morphometry.csv']))
add(LABELS_OF, 'labels of 0.99999, kits-measure', predictions(S*.99999),
    lambda d: measure_folder(d/'pred').ml.sum(),
    Accepted(float((S > 0).sum()*np.prod(MM)/1000)))
add(LABELS_OF, 'labels of 0.99999, kits-prepare', cases(S*np.float32(.99999)), prepare(),
    Accepted('1 done', makes=['prepared/case_00000/seg.npy']))
add(LABELS_OF, 'probabilities as labels', cases(S*np.float32(.37)), prepare(),
    Refused('segmentation.nii.gz', 'no whole numbers', 'threshold', makes=['prepared/prepared.json']))
add(LABELS_OF, 'labels with NaN', cases(np.where(S > 1, np.nan, S).astype(np.float32)), prepare(),
    Refused('segmentation.nii.gz', 'nan', makes=['prepared/prepared.json']))
add(LABELS_OF, 'negative labels', cases(-S.astype(np.int16)), prepare(),
    Refused('label values [-2, -1]', makes=['prepared/prepared.json']))
add(LABELS_OF, 'the scan as its labels', cases(CT.data), prepare(),
    Refused('label values', 'is this the label file?', makes=['prepared/prepared.json']))
for text, words in (('kits22', "no set of classes 'kits22'"), ('1=kidny', 'did you mean kidney'),
                    ('1=kidney,1=tumor', 'stands twice'), ('x=kidney', 'names no value')):
    add(LABELS_OF, f'--classes {text}', cases(S), prepare('--classes', text), Refused(words))
add(LABELS_OF, 'cysts asked of cases without them', cases(S, S, S, S), lambda d: (
    prepare_folder(d/'data', d/'prepared', PrepareConfig((8.,)*3)),
    train(d/'prepared', d/'run', get_recipe('tiny').replace(out_channels=3, n_folds=2, fold=1), None)),
    Refused('prepared without cysts', 'kits23', makes=PREPARED))
add(LABELS_OF, 'cysts asked of cases without them, kits-train', lambda d: (cases(S, S, S, S)(d),
    prepare_folder(d/'data', d/'prepared', PrepareConfig((8.,)*3))),
    Command('kits-train', '{d}/prepared', '{d}/run', '--classes', 'kits23', '--n-folds', '2', '--fold', '1',
            '--device', 'cpu'), Refused('prepared without cysts'))
add(LABELS_OF, 'a meaning that comes too late', lambda d: (cases(S, S)(d),
    prepare_folder(d/'data', d/'prepared', PrepareConfig((8.,)*3))),
    Command('kits-train', '{d}/prepared', '{d}/run', '--classes', '1=tumor', '--device', 'cpu'),
    Refused('prepared with the classes kits19', 'kits-prepare'))


# Silence

SILENCE = 'silence'

def prepared(*segs): return lambda d: (cases(*segs)(d),
    prepare_folder(d/'data', d/'prepared', PrepareConfig((8.,)*3)))
TRAIN = Command('kits-train', '{d}/prepared', '{d}/run', '--epochs', '1', '--crop', '16', '--per-case', '1',
                '--n-folds', '2', '--fold', '1', '--device', 'cpu')
add(SILENCE, 'no tumor anywhere, kits-prepare', cases(NO_TUMOR, NO_TUMOR), prepare(),
    Accepted('none of the 2 cases has a tumor', makes=PREPARED))
add(SILENCE, 'no tumor anywhere, kits-train', prepared(*[NO_TUMOR]*4), TRAIN,
    Accepted('has a tumor, so tumors cannot',
    makes=['run/model.safetensors']))
add(SILENCE, 'nothing anywhere, kits-prepare', cases(S*0, S*0), prepare(),
    Accepted('none of the 2 cases has a kidney or a tumor', makes=PREPARED))
add(SILENCE, 'nothing anywhere, kits-train', prepared(*[S*0]*4), TRAIN,
    Refused('has a kidney or a tumor', 'label files'))
add(SILENCE, 'one case without a kidney', cases(S, S*0), prepare(),
    Accepted('1 of the 2 cases have neither', makes=PREPARED))

def script(guard):
    def write(d):
        cases(S, S)(d)
        (d/'script.py').write_text('from kits_nb.data.store import *\n' + guard +
            f'    print(prepare_folder({str(d/"data")!r}, {str(d/"prepared")!r}, PrepareConfig((8.,)*3), '
            'n_workers=2).summary)\n')
    return write
def run_script(d):
    p = subprocess.run([sys.executable, '-W', 'ignore', d/'script.py'], capture_output=True, text=True,
        timeout=200)
    return Said(int(p.returncode > 0), p.stdout, p.stderr.strip().splitlines()[-1] if p.returncode else '')
add(SILENCE, 'a script without a main guard', script('if True:\n'), run_script,
    Refused('script.py', 'would run the script again', "if __name__ == '__main__':",
        makes=['prepared/prepared.json']))
add(SILENCE, 'a script with a main guard', script("if __name__ == '__main__':\n"), run_script,
    Accepted('2 done', makes=PREPARED))


# Scores at their place

SCORES_AT = 'scores'

def turned(axes, shift=0.):
    def write(d):
        cases(S)(d)
        img = nib.Nifti1Image(S, SEG.affine)
        to = nib.orientations.axcodes2ornt(axes)
        img = img.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(img.affine), to))
        img.affine[0, 3] += shift
        save(d/'pred'/'prediction_00000.nii.gz', np.asarray(img.dataobj), img.affine)
    return write
for axes in ('RAS', 'SAR', 'LPS', 'AIL'):
    add(SCORES_AT, f'axes in the order {axes}', turned(axes), scored,
        Accepted(scores(kidney=1, tumor=1, kidney_hd95=0)))
add(SCORES_AT, 'a prediction beside the place', turned('RAS', 9), evaluate(),
    Refused('lies 9.0 mm away', 'if not, resample', makes=MADE))
add(SCORES_AT, 'another shape', lambda d: (cases(S)(d), save(d/'pred'/'prediction_00000.nii.gz', S[1:])),
    evaluate(),
    Refused('has shape (31, 64, 64)', 'not on a resampled one', makes=MADE))
add(SCORES_AT, 'no prediction, another name',
    lambda d: (cases(S)(d), save(d/'pred'/'case_00000.nii.gz', S)), evaluate(),
    Refused('no prediction', 'case_00000.nii.gz looks like it', 'rename', makes=MADE))
add(SCORES_AT, 'turned axes, for the server', turned('RAS'),
    lambda d: [str(e) for e in check_prediction(d/'pred'/'prediction_00000.nii.gz', '',
        d/'data'/'case_00000'/'imaging.nii.gz')],
    Accepted(lambda o: len(o) == 1 and 'right place' in o[0] and 'affine' not in o[0]))
add(SCORES_AT, 'a damaged prediction',
    lambda d: (both(S, S)(d), (d/'pred'/'prediction_00000.nii.gz').write_bytes(b'no')),
    evaluate(), Refused('prediction_00000.nii.gz', 'not compressed', makes=MADE))
add(SCORES_AT, 'true labels that are damaged beside good ones',
    lambda d: (cases(S, S)(d), predictions(S, S)(d),
    (d/'data'/'case_00001'/'segmentation.nii.gz').write_bytes(b'')), evaluate(),
    Refused('case_00001', 'the file is empty', 'not scored', makes=MADE))


# Tables and ids

TABLES = 'tables and ids'

def named(*names): return lambda d: [save(d/'pred'/f'prediction_{o}', S) for o in names]
add(TABLES, 'a follow-up keeps its row', named('patient1.nii.gz', 'patient1_followup.nii.gz'),
    lambda d: sorted(set(measure_folder(d/'pred').case)), Accepted(['patient1', 'patient1_followup']))
add(TABLES, 'maps have no row', named('a.nii.gz', 'a_tumor.nii.gz', 'a_uncertainty.nii.gz', 'a_mass.nii.gz'),
    lambda d: list(label_files(d/'pred')), Accepted(['a']))
add(TABLES, 'two files of one case', named('00001.nii.gz', 'case_00001.nii.gz'), measure(),
    Refused('would both be case_00001', 'remove one'))
add(TABLES, 'compressed beside not compressed', named('a.nii.gz', 'a.nii'), measure(),
    Refused('would both be a'))
add(TABLES, 'an uncompressed prediction', named('a.nii'), lambda d: list(label_files(d/'pred')),
    Accepted(['a']))
add(TABLES, 'a case called mean', lambda d: (case(d, S, 'mean', '.'), predictions(S)(d)),
    lambda d: evaluate_folder(d/'pred', d/'mean'), Refused("cannot be called 'mean'", 'rename'))
add(TABLES, 'a case that does not exist', cases(S), prepare('--cases', '0,7'),
    Refused('there is no case_00007'))
add(TABLES, 'a case that does not exist, kits-predict', cases(S),
    Command('kits-predict', RUN, '{d}/data', '{d}/out', '--cases', '0,7', '--device', 'cpu'),
    Refused('there is no case case_00007', 'such as case_00000'))
add(TABLES, 'one broken map in a table',
    lambda d: (predictions(S, S)(d), (d/'pred'/'prediction_00001.nii.gz').write_text('no')),
    measure(), Refused('case_00001', 'not compressed', makes=['out/morphometry.csv']))
add(TABLES, 'no label map at all', lambda d: (d/'pred').mkdir(), measure(), Refused('pred', 'no case'))


# What the caller passes

CALLER = 'what the caller passes'

K, T = S > 0, np.roll(S > 0, 2, 1)
WANT = mask_dice(K, T), surface_dice(K, T, MM, 3.), hd95(K, T, MM)
def all_three(f): return lambda d: (mask_dice(f(K), f(T)), surface_dice(f(K), f(T), MM, 3.),
    hd95(f(K), f(T), MM))
for name, f in dict(int16=lambda m: m.astype(np.int16), int64=lambda m: m.astype(int),
    float32=lambda m: m.astype(np.float32),
                    bytes255=lambda m: m*np.uint8(255), tensors=torch.tensor, volumes=lambda m: SEG.like(m),
                    fortran=np.asfortranarray, views=lambda m: np.flip(np.flip(m, 2).copy(), 2)).items():
    add(CALLER, f'masks: {name}', None, all_three(f), Accepted(WANT))
add(CALLER, 'labels as a mask', None, lambda d: hd95(S, S, MM), Refused('0 and 1', 'labels == 2'))
add(CALLER, 'masks with a channel axis', None, lambda d: hd95(K[None], T[None], MM), Refused('(D,H,W)'))
add(CALLER, 'no spacing', None, lambda d: hd95(K, T, None), Refused('three lengths in mm'))
add(CALLER, 'masks of other shapes', None, lambda d: mask_dice(K, T[1:]), Refused('shapes'))
add(CALLER, 'scores of masks of 255', None, lambda d: score_case(K*255, S), Refused('label values [255]'))
add(CALLER, 'scores of float labels', None, lambda d: score_case(S*.99999, S)['composite'], Accepted(1.))
add(CALLER, 'scores of tensors', None, lambda d: score_case(torch.tensor(S), S)['composite'], Accepted(1.))
add(CALLER, 'scores of volumes in two places', None,
    lambda d: score_case(Volume(S, SEG.affine + np.eye(4)*[9, 9, 9, 0]), SEG), Refused('mm away'))
add(CALLER, 'a misspelt set of classes', None, lambda d: score_case(S, S, classes='KiTS23'),
    Refused("'kits19' or 'kits23'"))
add(CALLER, 'a year without tolerances', None, lambda d: score_case(S, S, MM, year=2022),
    Refused('2021 or 2023'))
add(CALLER, 'a penalty without a spacing', None, lambda d: score_case(S, S, penalty=5.),
    Refused('a spacing as well'))
add(CALLER, 'an array to be measured', None, lambda d: measure_case(S), Refused('expected a Volume'))
add(CALLER, 'float labels to be measured', None, lambda d: measure_case(SEG.like(S*.99999)).ml.sum(),
    Accepted(float(K.sum()*np.prod(MM)/1000)))
add(CALLER, 'components of labels', None, lambda d: components(S, MM), Refused('0 and 1'))
add(CALLER, 'an interval with the row of means', None,
    lambda d: mean_ci(table_of([.5, .7, .9])['kidney']), Accepted(lambda o: o == mean_ci([.5, .7, .9])))
def table_of(x):
    import pandas as pd
    return pd.DataFrame(dict(kidney=[*x, np.mean(x)]), index=[*map(str, range(len(x))), 'mean'])

Y = torch.tensor(S)[None]
LOGITS = torch.zeros(1, 2, *S.shape)
add(CALLER, 'labels as masks of a loss', None, lambda d: dice_loss(LOGITS, Y), Refused('to_channels'))
add(CALLER, 'masks of 255 in a loss', None, lambda d: dice_loss(LOGITS, to_channels(Y)*255),
    Refused('between 0 and 1'))
add(CALLER, 'one tensor for a pair', None, lambda d: BoundaryLoss()(LOGITS, Y), Refused('must be two'))
add(CALLER, 'labels with a channel axis', None, lambda d: BoundaryLoss()((LOGITS, None), Y[:, None]),
    Refused('labels (B,D,H,W)'))
add(CALLER, 'float labels in a loss', None, lambda d: BoundaryLoss()((LOGITS, None), Y.float()),
    Refused('whole numbers'))
add(CALLER, 'a mask of 255 as labels', None, lambda d: to_channels(S*127), Refused('between 0 and 3'))
add(CALLER, 'bytes as probabilities', None, lambda d: to_labels(np.zeros((2, 3, 4, 5), np.uint8)),
    Refused('divide', '255'))
add(CALLER, 'masks without a batch axis', None, lambda d: dice_score(to_channels(Y)[0], to_channels(Y)[0]),
    Refused('(B,C,D,H,W)'))
add(CALLER, 'NumPy masks for tensors', None,
    lambda d: dice_score(to_channels(S[None]), to_channels(Y)).numpy(), Accepted(np.ones(2)))
add(CALLER, 'a misspelt way to resample', None, lambda d: resample(S, (8, 8, 8), 'linear'),
    Refused("'trilinear'", "'nearest'"))
add(CALLER, 'an overlap of 50', None, lambda d: window_starts(90, 32, 50), Refused('below 1'))
add(CALLER, 'an overlap below 0', None, lambda d: window_starts(90, 32, -.5), Refused('at least 0'))
add(CALLER, 'a misspelt setting', None, lambda d: get_recipe('tiny').replace(epoch=3),
    Refused('did you mean epochs'))
add(CALLER, 'a misspelt recipe', None, lambda d: get_recipe('papr'), Refused('tiny', 'one_gpu', 'paper'))
for bad, words in ((dict(epochs=0), 'at least 1'), (dict(lr=0.), 'above 0'),
    (dict(crop=(30, 32, 32)), 'divisible by 8'),
                   (dict(probs=(.8, .8, .8)), 'add up to 1'), (dict(bs=-1), 'at least 1')):
    add(CALLER, f'settings: {bad}', None, lambda d,
        bad=bad: check_settings(get_recipe('tiny').replace(**bad)), Refused(words))
add(CALLER, 'a fold that does not exist', None, lambda d: split_folds(['a', 'b'], 7),
    Refused('no fold 7 of 5'))

def model():
    from kits_nb.inference.cases import load_models
    return load_models(RUN)
add(CALLER, 'a network for a list of networks', None, lambda d: predict_maps(model()[0], CT),
    Refused('write [net]'))
add(CALLER, 'values of a network as a scan', None, lambda d: predict_maps(model(), CT.like(CT.data/1000.)),
    Refused('Hounsfield'))
add(CALLER, 'a scan with NaN', None, lambda d: predict_maps(model(), CT.like(CT.data*np.nan)), Refused('NaN'))
add(CALLER, 'an array as a scan', None, lambda d: predict_volume(model(), CT.data),
    Refused('expected a Volume'))
add(CALLER, 'a threshold in percent', None, lambda d: predict_maps(model(), CT, PredictConfig(thresh=50)),
    Refused('between 0 and 1'))
add(CALLER, 'uncertainty of predict_volume', None,
    lambda d: predict_volume(model(), CT, PredictConfig(uncertainty=True)),
    Refused('predict_maps'))


# Commands and the system

SYSTEM = 'whose fault is it'

def locked(d):
    cases(S)(d)
    (d/'locked').mkdir()
    (d/'locked').chmod(0o555)

def drop(*argv):
    "A command that may not write everywhere, even as root"
    def run(d):
        rights = ['setpriv', '--bounding-set=-dac_override',
            '--inh-caps=-dac_override'] if os.geteuid() == 0 else []
        args = [o.replace('{d}', str(d)) for o in map(str, argv)]
        p = subprocess.run([*rights, BIN/args[0], *args[1:]], capture_output=True, text=True,
            stdin=subprocess.DEVNULL)
        return Said(p.returncode, p.stdout, p.stderr)
    return run
for name, argv in {'kits-prepare': ('{d}/data', '{d}/locked/x', '--spacing', '8'),
    'kits-phantom': ('{d}/locked/x', '--n', '1'),
                   'kits-predict': (RUN, '{d}/data', '{d}/locked/x', '--device', 'cpu'),
                   'kits-measure': ('{d}/data', '--out', '{d}/locked/x')}.items():
    add(SYSTEM, f'{name} into a locked folder', locked, drop(name, *argv),
        Refused('locked/x', 'permission was denied', 'choose another folder'))
def in_the_way(d):
    both(S, S)(d)
    for name in ('out', 'prepared'): (d/name).write_text('a file')
add(SYSTEM, 'a file where kits-prepare writes', in_the_way, prepare(),
    Refused('prepared', 'file where a folder is expected'))
add(SYSTEM, 'a file where kits-evaluate writes', in_the_way, evaluate(),
    Refused('out', 'file where a folder is expected'))
add(SYSTEM, 'a file where kits-measure writes', in_the_way, measure(),
    Refused('out', 'file where a folder is expected'))
add(SYSTEM, 'a folder that is not there, kits-evaluate', None, evaluate(),
    Refused('no such folder', 'predict first'))
add(SYSTEM, 'a folder that is not there, kits-prepare', None, prepare(), Refused('data', 'no such folder'))
add(SYSTEM, 'a folder that was not prepared', cases(S), Command('kits-train', '{d}/data', '{d}/run'),
    Refused('prepared.json', 'no such file'))
for device, words in (('gpu', "no device 'gpu'"), ('cuda:77', 'cuda'), ('tpu:0', 'no device')):
    add(SYSTEM, f'the device {device}', cases(S),
        Command('kits-predict', RUN, '{d}/data', '{d}/out', '--device', device),
        Refused(words))
add(SYSTEM, 'the device gpu, kits-train', prepared(S, S),
    Command('kits-train', '{d}/prepared', '{d}/run', '--device', 'gpu'),
    Refused("no device 'gpu'", 'choose cpu'))
add(SYSTEM, 'a window of three letters', cases(S),
    Command('kits-predict', RUN, '{d}/data', '{d}/out', '--window', 'abc'),
    Refused('abc', 'one positive number'))

def paint(*options): return Command('kits-phantom', '{d}/out', '--labels', '{d}/data', *options)
def painted(d):
    "Does the scan show the cysts of the labels as water?"
    said = paint('--classes', 'kits23')(d)
    assert said.code == 0, said.text
    hu, x = (nib.load(d/'out'/'case_00000'/f'{o}.nii.gz').get_fdata() for o in ('imaging', 'segmentation'))
    cyst, kidney = (np.median(hu[x == o]) for o in (CYST, KIDNEY))
    return np.array_equal(x, CYSTS) and cyst < kidney - 80
add(LABELS_OF, 'cysts, kits-phantom', cases(CYSTS), paint(),
    Refused('segmentation.nii.gz', 'label values [3]', '--classes kits23', makes=['out/kits.json']))
add(LABELS_OF, 'cysts, kits-phantom --classes kits23', cases(CYSTS), painted,
    Accepted(True, makes=MADE))
add(LABELS_OF, 'cysts counted as kidney, kits-phantom', cases(CYSTS), paint('--classes', MAPPING),
    Accepted('1 cases', makes=MADE))
add(LABELS_OF, 'classes without labels, kits-phantom', None,
    Command('kits-phantom', '{d}/out', '--n', '1', '--classes', 'kits23'),
    Refused('--classes', 'there are none', 'with --labels'))


# Names with a byte that is no text, as another system's encoding leaves them (Python reads it as \udcff)

NAME = 'case_\udcff'
def odd(d):
    for o in (NAME, 'case_00001', 'case_00002'): case(d, S, o)
    save(d/'pred'/'prediction_\udcff.nii.gz', S)
def odd_prepared(d):
    odd(d)
    prepare_folder(d/'data', d/'prepared', PrepareConfig((8.,)*3))
def names(*paths): return lambda d: all(r'\udcff' in (d/o).read_text() for o in paths)
def here(command):
    "A command, and the folder in which it ran: what it wrote is looked at"
    def run(d):
        said = command(d)
        return d if said.code == 0 else said
    return run
ODD = f'--cases={NAME}'
add(SYSTEM, 'a name that is no text, kits-predict', odd,
    here(Command('kits-predict', RUN, '{d}/data', '{d}/out', '--no-tta', '--device', 'cpu', ODD)),
    Accepted(names('out/morphometry.csv'), makes=MADE, only=True))
add(SYSTEM, 'a name that is no text, kits-evaluate', odd, here(evaluate('--pictures', '1', ODD)),
    Accepted(names(*(f'out/{o}' for o in ('scores.csv', 'scores.json', 'morphometry.csv', 'report.html'))),
             makes=MADE))
add(SYSTEM, 'a name that is no text, kits-measure', odd, here(measure()),
    Accepted(names('out/morphometry.csv'), makes=MADE))
add(SYSTEM, 'a name that is no text, kits-train', odd_prepared,
    here(Command('kits-train', '{d}/prepared', '{d}/run', '--epochs', '1', '--crop', '16', '--per-case', '1',
                 '--n-folds', '3', '--device', 'cpu')),
    Accepted(names('run/run.json'), makes=['run/model.safetensors', 'run/log.csv']))
add(SYSTEM, 'a name that is no text, kits-submit', odd,
    Command('kits-submit', '{d}/pred', '{d}/out.zip', ODD),
    Refused('no text', 'rename it'))
add(SYSTEM, 'a name that is no text, kits-phantom', None,
    Command('kits-phantom', '{d}/\udcff', '--n', '1', process=True, env={'PYTHONIOENCODING': 'utf-8:strict'}),
    Accepted(r'\udcff'))

def coded(d):
    case(d, S, 'case_\x1b[2J')
    save(d/'pred'/'prediction_\x1b[2J.nii.gz', S)
add(SYSTEM, 'an id with terminal codes, kits-evaluate', coded, here(evaluate('--pictures', '1')),
    Accepted(lambda d: '\x1b' not in (d/'out'/'report.html').read_text(), makes=MADE))


def main(): return table.main(ENTRIES, 'labels')
if __name__ == '__main__': sys.exit(main()['wrong'] > 0)
