"""Scans that somebody somewhere met, and what must come of them

`python tools/trust/inputs_scans.py [words of a name]`"""
import gzip, shutil, sys, zipfile
from pathlib import Path
from unittest.mock import patch
import nibabel as nib, numpy as np

import table
from table import RUN, Accepted, Command, Entry, Refused
from scans import *
from kits_nb.data.dicom import read_scan
from kits_nb.data.files import read_ct, read_volume
from kits_nb.data.geometry import lean_of
from kits_nb.data.kits19 import find_cases

ENTRIES = []
CT, SEG = phantom()
QUICK = '--no-tta', '--device', 'cpu'


def add(kind, name, write, run, outcome, **kwargs): ENTRIES.append(Entry(name, kind, write, run, outcome,
    **kwargs))
def read(name, **kwargs): return lambda d: read_scan(d/name, **kwargs)
def predict(data='scans', *options, **kwargs):
    return Command('kits-predict', RUN, '{d}/' + data, '{d}/out', *QUICK, *options, **kwargs)
def same(vol): return np.array_equal(vol.data, CT.data) and np.allclose(vol.spacing, CT.spacing)
def ids(d, data='scans'): return [c.id for c in find_cases(d/data)]


# Whose scan is it?

WHOSE = 'whose scan is it'

def scans(*names):
    def write(d):
        for k, o in enumerate(names): save_nifti(d/'scans'/o, phantom(1000 + k)[0].data)
    return write

add(WHOSE, 'a.nii beside a.nii.gz', scans('a.nii', 'a.nii.gz'), predict(),
    Refused('a.nii', 'both be case a', 'rename one'))
add(WHOSE, '5 beside case_5', scans('5.nii.gz', 'case_5.nii.gz'), predict(),
    Refused('both be case 5', 'rename'))
add(WHOSE, 'a map\'s name as an id', scans('eva.nii.gz', 'eva_tumor.nii.gz'), predict(),
    Refused('eva_tumor', 'name of a map', 'rename'))
add(WHOSE, 'NIfTI and NRRD of one name', lambda d: (scans('a.nii.gz')(d), save_nrrd(d/'scans'/'a.nrrd')),
    lambda d: ids(d), Refused('both be case a', 'rename'))

def link(d):
    scans('a.nii.gz')(d)
    (d/'scans'/'b.nii.gz').symlink_to(d/'scans'/'a.nii.gz')
add(WHOSE, 'a link to a scan', link, ids, Accepted(['a', 'b']))

def any_name(d):
    for o in ('case_00001', 'patient_07', '.hidden'): save_nifti(d/'scans'/o/'imaging.nii.gz')
    (d/'scans'/'case_00002').mkdir()
    (d/'scans'/'notes').mkdir()
add(WHOSE, 'folders of any name beside case_*', any_name, ids,
    Accepted(['case_00001', 'case_00002', 'patient_07']))
add(WHOSE, 'folders 7 and case_7', scans('7/imaging.nii.gz', 'case_7/imaging.nii.gz'), ids,
    Refused('7 and case_7 would both be case 7', 'rename'))

def mixture(d):
    save_nifti(d/'scans'/'case_00001'/'imaging.nii.gz')
    for k, o in enumerate(('case_00001/dicom', 'case_00002', 'bob/arterial')):      # three patients
        parts = 'StudyInstanceUID', 'SeriesInstanceUID', 'FrameOfReferenceUID'
        uids = {part: f'1.2.{k}.9' for part in parts}
        save_series(d/'scans'/o, lambda _: uids | dict(PatientID=f'P{k}'))
    save_nifti(d/'scans'/'eve.nii.gz')
    (d/'scans'/'case_00003').mkdir()
add(WHOSE, 'folders, files and DICOM in one folder', mixture,
    lambda d: [(c.id, c.ct and c.ct.name) for c in find_cases(d/'scans')],
    Accepted([('bob_arterial', 'arterial'), ('case_00001', 'imaging.nii.gz'), ('case_00002', 'case_00002'),
              ('case_00003', None), ('eve', 'eve.nii.gz')]))

def linked_cases(d):
    save_nifti(d/'store'/'x17'/'imaging.nii.gz')
    (d/'scans').mkdir()
    (d/'scans'/'case_00001').symlink_to(d/'store'/'x17')
add(WHOSE, 'a case that is a link', linked_cases, ids, Accepted(['case_00001']))
add(WHOSE, 'the link of a case itself', linked_cases, lambda d: ids(d, 'scans/case_00001'),
    Accepted(['case_00001']))

def measured(d):
    said = predict()(d)
    assert said.code == 0, said.text
    return sorted(o.split(',')[0] for o in (d/'out'/'morphometry.csv').read_text().splitlines()[1:])
add(WHOSE, 'ids with underscores', scans('patient1.nii.gz', 'patient1_followup.nii.gz'), measured,
    Accepted(lambda o: {'patient1', 'patient1_followup'} <= set(o)))

add(WHOSE, 'a series over two folders', lambda d: save_series(d/'cd', at=lambda k: f'{"AB"[k//12]}/I{k}'),
    lambda d: [(c.id, read_scan(c.ct, series=c.series).shape) for c in find_cases(d/'cd')],
    Accepted([('cd', CT.shape)]))
add(WHOSE, 'a series over two folders, predicted',
    lambda d: save_series(d/'cd', at=lambda k: f'{"AB"[k//12]}/I{k}'),
    predict('cd'), Accepted('1 done, 0 already there, 0 failed', makes=['out/*']))

def nested(d):
    save_series(d/'cd', at=lambda k: f'{"AB"[k//12]}/I{k}')
    save_series(d/'cd'/'C', lambda k: dict(SeriesInstanceUID='1.9', SeriesNumber=9), hu=CT.data[:6])
add(WHOSE, 'a series over two folders beside another', nested,
    lambda d: [(c.id, read_scan(c.ct, series=c.series).shape[0]) for c in find_cases(d/'cd')],
    Accepted([('C', 6), ('cd', 24)]))

def mixed(**both): return lambda d: save_series(d/'s', lambda k: {t: v[k % 2] for t, v in both.items()})
add(WHOSE, 'two acquisitions interleaved', mixed(AcquisitionNumber=(1, 2)), read('s'),
    Refused('/s:', '(acquisition 1): 12 ct slices', '--series 3/1'))
add(WHOSE, 'one of two acquisitions', mixed(AcquisitionNumber=(1, 2)),
    lambda d: read_scan(d/'s', series='3/2').shape, Accepted((12, 44, 48)))
add(WHOSE, 'two passes told by the clock',
    lambda d: save_series(d/'s', lambda k: dict(AcquisitionTime=f'12{k % 2:02}{k:02}')), read('s'),
    Refused('/s:', 'pass 1', 'choose one'))
add(WHOSE, 'two kernels in one series', mixed(ConvolutionKernel=('B30f', 'B70f')), read('s'),
    Refused('kernel B30f', 'choose one'))
add(WHOSE, 'phases of a heart', lambda d: save_series(d/'s', lambda k: dict(
    ImagePositionPatient=[0, 0, k//2*8], NominalPercentageOfCardiacPhase=(40, 70)[k % 2])), read('s'),
    Refused('phase 40', '12 CT slices', 'choose one'))
add(WHOSE, 'phases that nothing tells apart', lambda d: save_series(d/'s', lambda k: dict(
    ImagePositionPatient=[0, 0, k//2*8])), read('s'),
    Refused('2 slices at each of 12 places', 'export each phase'))
add(WHOSE, 'acquisitions one after the other', lambda d: save_series(d/'s',
    lambda k: dict(AcquisitionNumber=k//8)),
    read('s'), Accepted(same))
add(WHOSE, 'one slice with another acquisition', lambda d: save_series(d/'s', lambda k: dict(
    AcquisitionNumber=1 + (k == 9))), read('s'), Accepted(same))
add(WHOSE, 'a description that varies', lambda d: save_series(d/'s', lambda k: dict(
    SeriesDescription=f'abd {k//12}', SeriesNumber=3 + k//12)), read('s'), Accepted(same))
add(WHOSE, 'a UID for each slice', lambda d: save_series(d/'s', lambda k: dict(SeriesInstanceUID=f'1.{k}')),
    read('s'),
    Refused('/s:', '24 series', 'and 19 more', '--series 3 joins them', longest=700))
add(WHOSE, 'a UID for each slice, joined', lambda d: save_series(d/'s',
    lambda k: dict(SeriesInstanceUID=f'1.{k}')),
    read('s', series='3'), Accepted(same))
add(WHOSE, 'two frames of reference', lambda d: save_series(d/'s',
    lambda k: dict(FrameOfReferenceUID=f'1.{k//12}')),
    read('s'), Refused('frame 1', '12 CT slices', 'choose one'))
add(WHOSE, 'two patients in one series', lambda d: save_series(d/'s', lambda k: dict(PatientID=f'P{k//12}')),
    read('s'), Refused('different patients', 'IM0012', 'name the folder of one patient'))

def one_uid(d):
    for o in ('p1', 'p2'): save_series(d/'s'/o, lambda k: dict(PatientID=o))
add(WHOSE, 'two patients with one series UID', one_uid,
    lambda d: [read_scan(c.ct, series=c.series) for c in find_cases(d/'s')], Refused('different patients'))

def two_series(d):
    save_series(d/'s')
    save_series(d/'s', lambda k: dict(SeriesInstanceUID='1.4', SeriesNumber=4), at=lambda k: f'X{k}',
                hu=CT.data[::-1] + 1)
add(WHOSE, 'two series in a folder', two_series, predict('s'),
    Refused('2 series', 'series 4 "abdomen": 24 ct slices', '--series 3', only=False))
add(WHOSE, 'one of two series', two_series, read('s', series='4'),
    Accepted(lambda v: np.array_equal(v.data, CT.data + 1)))
add(WHOSE, 'one of two series, predicted', two_series, predict('s', '--series', '4'),
    Accepted('1 done', makes=['out/prediction_s.nii.gz']))
add(WHOSE, 'a series that is not there', two_series, read('s', series='9'),
    Refused('/s:', "series '9'", 'name another'))

def archive(d):
    save_series(d/'s'/'CT')
    save_slice(d/'s'/'SCOUT'/'1', np.zeros((9, 9), np.uint16), SeriesInstanceUID='1.5',
        ImagePositionPatient=[0, 0, 0],
               ImageType=['ORIGINAL', 'PRIMARY', 'LOCALIZER'])
    (d/'s'/'readme.txt').write_text('images of a disc')
    (d/'s'/'DICOMDIR').write_bytes(bytes(128) + b'DICM')
add(WHOSE, 'a scout and a note beside a series', archive, lambda d: ids(d, 's'), Accepted(['CT']))

def both_kinds(d):
    scans('a.nii.gz')(d)
    save_series(d/'scans'/'b')
add(WHOSE, 'DICOM beside NIfTI', both_kinds, ids, Accepted(['a', 'b']))

def circle(d):
    save_series(d/'s'/'CT')
    (d/'s'/'CT'/'up').symlink_to(d/'s')
    (d/'links').mkdir()
    (d/'links'/'p').symlink_to(d/'s'/'CT')
add(WHOSE, 'links in a circle', circle, read('s'), Accepted(same))
add(WHOSE, 'a folder of links', circle, lambda d: ids(d, 'links'), Accepted(['p']))
add(WHOSE, 'a slice twice, byte for byte', lambda d: (save_series(d/'s'), shutil.copy(d/'s'/'IM0003',
    d/'s'/'copy')),
    read('s'), Accepted(same))
add(WHOSE, 'two slices in one place', lambda d: (save_series(d/'s'), save_slice(
    d/'s'/'X', np.zeros((44, 48), np.uint16), ImagePositionPatient=[0, 0, 24])), read('s'),
    Refused('two different slices in one place', 'IM0003', 'take the one away'))
add(WHOSE, 'a slice is missing', lambda d: (save_series(d/'s'), (d/'s'/'IM0007').unlink()), read('s'),
    Refused('1 slice is missing', 'IM0006 and IM0008', 'copy the whole series again'))
add(WHOSE, 'a file of a series', lambda d: save_series(d/'s'), read('s/IM0000'),
    Refused('IM0000', 'one file of a DICOM series', 'name the folder'))


# Where is it?

WHERE = 'where is it'
MIRROR = np.diag([-1., 1., 1., 1.])

def forms(q=None, s=None, qcode=1, scode=1):
    def form(img):
        if q is not None: img.set_qform(q, qcode)
        if s is not None: img.set_sform(s, scode)
    return form

def one(**kwargs): return lambda d: save_nifti(d/'a.nii.gz', **kwargs)
def damage(**fields): return lambda d: (save_nifti(d/'a.nii.gz'), patch_header(d/'a.nii.gz', **fields))

add(WHERE, 'sform against pixdim', one(form=forms(CT.affine, np.eye(4), 1, 2)),
    read('a.nii.gz'), Refused('a.nii.gz', '8×7×7 mm', '1×1×1 mm', 'repair the header'))
add(WHERE, 'pixdim against both', damage(pixdim=[1, 2, 2, 3, 1, 1, 1, 1]), read('a.nii.gz'),
    Refused('a.nii.gz', 'pixdim says 2×2×3', 'affine 8×7×7', 'repair'))
add(WHERE, 'qform and sform mirrored', one(form=forms(CT.affine, MIRROR @ CT.affine)),
    read('a.nii.gz'), Refused('a.nii.gz', 'qform says', 'IPL', 'IPR', 'remove the other'))
def turned(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
def two_forms(degrees):
    return lambda d: save_nifti(d/'scans'/'a.nii.gz', form=forms(turned(degrees) @ CT.affine, CT.affine))
add(WHERE, 'qform and sform turned by 20 degrees', two_forms(20), predict(),
    Accepted('a: the qform and the sform are turned by 20° against each other: the sform was taken',
             makes=['out/prediction_a.nii.gz']))
add(WHERE, 'qform and sform turned by half a degree', two_forms(.5),
    lambda d: predict()(d).text.count('qform'), Accepted(0))
add(WHERE, 'lengths in metres', damage(xyzt_units=1), read('a.nii.gz'),
    Refused('a.nii.gz', 'in metres', 'convert them'))
add(WHERE, 'lengths in micrometres', damage(xyzt_units=3), read('a.nii.gz'),
    Refused('a.nii.gz', 'in micrometres', 'convert them'))
add(WHERE, 'a voxel size of 0', damage(pixdim=[1, 0, 7, 7, 1, 1, 1, 1]), read('a.nii.gz'),
    Refused('a.nii.gz', 'voxel size of 0×7×7', 'three positive lengths'))
add(WHERE, 'a voxel size that is no number', damage(pixdim=[1, np.nan, 7, 7, 1, 1, 1, 1]), read('a.nii.gz'),
    Refused('a.nii.gz', 'nan', 'three positive lengths'))
add(WHERE, 'parallel axes', damage(srow_x=[1, 1, 0, 0], srow_y=[1, 1, 0, 0], srow_z=[0, 0, 1, 0]),
    read('a.nii.gz'),
    Refused('a.nii.gz', 'no inverse', 'independent axes'))
add(WHERE, 'an affine that is no number', damage(srow_x=[np.nan]*4), read('a.nii.gz'),
    Refused('a.nii.gz', 'no inverse', 'repair the header'))

def bare(path):
    img = nib.Nifti1Image(CT.data[::-1, ::-1, ::-1].transpose(2, 1, 0), None)
    img.header.set_zooms((7., 7., 8.))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(img, path)
add(WHERE, 'no orientation', lambda d: bare(d/'a.nii.gz'), lambda d: read_scan(d/'a.nii.gz').oriented,
    Accepted(False))

def predicted_bare(d):
    said = predict()(d)
    assert said.code == 0, said.text
    h = nib.load(d/'out'/'prediction_a.nii.gz').header
    table = (d/'out'/'morphometry.csv').read_text()
    return said.text, int(h['qform_code']), int(h['sform_code']), 'unknown' in table
add(WHERE, 'no orientation, predicted', lambda d: bare(d/'scans'/'a.nii.gz'), predicted_bare,
    Accepted(lambda o: 'left and right are unknown' in o[0] and o[1:3] == (0, 0)))

SHEAR = CT.affine.copy()
SHEAR[1, 0] = 3.
add(WHERE, 'a sheared affine', one(affine=SHEAR), read('a.nii.gz'),
    Refused('a.nii.gz', 'not perpendicular', '--straighten'))
add(WHERE, 'a sheared affine of labels', one(affine=SHEAR, data=SEG.data),
    lambda d: read_volume(d/'a.nii.gz'),
    Refused('a.nii.gz', 'not perpendicular', 'voxels off'))
add(WHERE, 'a sheared affine, predicted', lambda d: save_nifti(d/'scans'/'a.nii.gz', affine=SHEAR), predict(),
    Refused('a.nii.gz', 'not perpendicular', '--straighten', only=False))
add(WHERE, 'a sheared affine, straightened and predicted',
    lambda d: save_nifti(d/'scans'/'a.nii.gz', affine=SHEAR),
    predict('scans', '--straighten'), Accepted('1 done', makes=['out/prediction_a.nii.gz']))

def lean(affine, degrees):
    a, t = affine.copy(), np.radians(degrees)
    a[:3, 1:3] = [[1, 0, 0], [0, np.cos(t), -np.sin(t)], [0, np.sin(t), np.cos(t)]] @ a[:3, 1:3]
    return a

def sampled(affine, shape):
    "The phantom on any grid"
    from scipy.ndimage import map_coordinates
    m = np.linalg.inv(CT.affine) @ affine
    at = np.tensordot(m[:3, :3], np.indices(shape), 1) + m[:3, 3][:, None, None, None]
    return np.rint(map_coordinates(CT.data.astype(np.float32), at, order=1, cval=-1000)).astype(np.int16)

def tilted(folder, degrees):
    "A series from a gantry that leans, and the phantom's own slices through it"
    a = lean(CT.affine, degrees)
    a[:3, 3] += (CT.affine @ [12, 22, 24, 1] - a @ [12, 22, 24, 1])[:3]
    hu, lps = sampled(a, CT.shape), np.diag([-1., -1., 1., 1.]) @ a
    step, v, u = lps[:3, :3].T
    for k, x in enumerate(hu):
        save_slice(folder/f'{k}', (x + 1024).astype(np.uint16),
            ImagePositionPatient=list((lps @ [k, 0, 0, 1])[:3].round(6)),
                   ImageOrientationPatient=[*(u/7).round(6), *(v/7).round(6)])

def off_by(vol):
    "Mean difference from the phantom at the same place, inside the body, HU; and how far it still leans"
    truth = sampled(vol.affine, vol.shape)
    inside = (truth > -200) & (vol.data > -200)
    return np.abs(truth - vol.data)[inside].mean(), lean_of(vol.affine, vol.shape)
add(WHERE, 'a tilted gantry', lambda d: tilted(d/'s', 20), read('s'),
    Refused('/s:', 'tilted by 20.0 degrees', '--straighten'))
for degrees in (20, -20):
    add(WHERE, f'a gantry tilted by {degrees} degrees, straightened', lambda d, t=degrees: tilted(d/'s', t),
        lambda d: off_by(read_scan(d/'s', straighten=True)), Accepted(lambda o: o[0] < 20 and o[1] < .1))

def tilt_pair(d):
    tilted(d/'s'/'a', 12); tilted(d/'s'/'b', -12)
    for o in (d/'s'/'b').iterdir():
        import pydicom
        x = pydicom.dcmread(o); x.save_as(d/'s'/'a'/f'b{o.name}')
    shutil.rmtree(d/'s'/'b')
add(WHERE, 'two tilts in one series', tilt_pair, read('s'),
    Refused('ImageOrientationPatient', 'take the odd files away'))
add(WHERE, 'an oblique scan', one(affine=np.array(nib.affines.from_matvec(
    [[1, 0, 0], [0, .97, -.243], [0, .243, .97]], [1, 2, 3])) @ CT.affine),
    lambda d: read_scan(d/'a.nii.gz').data,
    Accepted(CT.data))

def lps(d):
    for n in (32, 33):
        data = np.asfortranarray(np.resize(CT.data, (n, 44, 48))[::-1].transpose(2, 1, 0))
        save_nifti(d/'scans'/f'{n}.nii.gz', data, np.diag([-7., -7., 8., 1.]))
add(WHERE, 'LPS with 33 slices', lps, predict(), Accepted('2 done', makes=['out/prediction_33.nii.gz']))
NO_SPACE = NRRD.partition('space: ')[0] + 'spacings: 7 7 8\n\n'
add(WHERE, 'an NRRD image without space', lambda d: save_nrrd(d/'a.nrrd', NO_SPACE),
    lambda d: read_scan(d/'a.nrrd').oriented, Accepted(False), needs='SimpleITK')
add(WHERE, 'a skewed plane of DICOM', lambda d: save_series(d/'s', lambda k: dict(
    ImageOrientationPatient=[1, 0, 0, .6, .8, 0])), read('s'),
    Refused('not two perpendicular directions', 'IM0000', 'export'))
add(WHERE, 'a slice without a position', lambda d: save_series(d/'s', lambda k: dict(
    ImagePositionPatient=None) if k == 4 else {}), read('s'),
    Refused('IM0004', 'no usable ImagePositionPatient', 'export'))
add(WHERE, 'unequal steps', lambda d: save_series(d/'s', lambda k: dict(
    ImagePositionPatient=[0, 0, 8*k + 3*(k == 5)])), read('s'), Refused('mm apart', 'IM0005', 'equal steps'))


# What do the numbers mean?

NUMBERS = 'what do the numbers mean'
HU = CT.data.astype(int)

def padded(d, number, dtype=np.uint16):
    hu = CT.data[::-1].astype(int) + 1024
    hu[:, :4] = number
    save_series(d/'s', lambda k: dict(PixelPaddingValue=number), hu=hu, stored=lambda x: x.astype(dtype))
def air_outside(v): return np.array_equal(v.data[:, 4:],
    CT.data[:, 4:]) and set(v.data[:, :4].flat) == {-1024}
add(NUMBERS, 'padding of 63536', lambda d: padded(d, 63536), read('s'), Accepted(air_outside))
add(NUMBERS, 'padding of -2000', lambda d: padded(d, -2000, np.int16), read('s'), Accepted(air_outside))
add(NUMBERS, 'padding that is a tissue', lambda d: save_series(d/'s', lambda k: dict(PixelPaddingValue=1064)),
    read('s'),
    Accepted(same))
add(NUMBERS, 'a zero that was lost', one(data=(HU + 1024).clip(0).astype(np.uint16)), read('a.nii.gz'),
    Refused('a.nii.gz', 'HU were shifted up', 'RescaleIntercept'))
add(NUMBERS, 'a zero that was lost, with padding',
    one(data=np.where(HU < -990, -2000, HU).astype(np.int16) + 1024),
    read('a.nii.gz'), Refused('a.nii.gz', 'HU were shifted up', 'RescaleIntercept'))
add(NUMBERS, 'an intercept applied twice', one(data=(HU - 1024).astype(np.int16)), read('a.nii.gz'),
    Refused('a.nii.gz', 'HU were shifted down', 'convert the scan again'))
add(NUMBERS, 'scaled to 0..1', one(data=((HU.clip(-200, 300) + 200)/500).astype(np.float32)),
    read('a.nii.gz'),
    Refused('a.nii.gz', 'between 0 and 1', 'before its values were normalised'))
add(NUMBERS, 'a picture of 0..255', one(data=((HU.clip(-200, 300) + 200)//2).astype(np.uint8)),
    read('a.nii.gz'),
    Refused('a.nii.gz', 'between 0 and 250', 'picture'))
add(NUMBERS, 'standardised', one(data=((HU - HU.mean())/HU.std()).astype(np.float32)), read('a.nii.gz'),
    Refused('a.nii.gz', 'between', 'normalised'))
add(NUMBERS, 'labels for a scan', one(data=SEG.data), read('a.nii.gz'),
    Refused('a.nii.gz', 'between 0 and 2', 'labels'))
add(NUMBERS, 'not a number', one(data=np.where(HU > 100, np.nan, HU).astype(np.float32)), read('a.nii.gz'),
    Refused('a.nii.gz', 'voxels are NaN', 'air is -1000'))
add(NUMBERS, 'a slope in the header', lambda d: save_nifti(d/'a.nii', CT.data,
    form=lambda i: i.header.set_slope_inter(2, -10)),
    lambda d: read_scan(d/'a.nii').data, Accepted(CT.data*2 - 10))
add(NUMBERS, 'a scan in float64', one(data=HU.astype(float)), read('a.nii.gz'), Accepted(same))
add(NUMBERS, 'big-endian numbers', lambda d: save_nifti(d/'a.nii.gz', CT.data.astype('>i2')),
    read('a.nii.gz'), Accepted(same))
add(NUMBERS, 'RescaleType in small letters', lambda d: save_series(d/'s', lambda k: dict(RescaleType='hu')),
    read('s'),
    Accepted(same))
add(NUMBERS, 'RescaleType with a blank', lambda d: save_series(d/'s', lambda k: dict(RescaleType='Hu ')),
    read('s'),
    Accepted(same))
add(NUMBERS, 'a map of electron density', lambda d: save_series(d/'s', lambda k: dict(RescaleType='ED')),
    read('s'),
    Refused('IM0000', 'in ED (RescaleType)', 'choose another series'))
add(NUMBERS, 'RescaleIntercept 0 for stored numbers',
    lambda d: save_series(d/'s', lambda k: dict(RescaleIntercept=0)),
    read('s'), Refused('/s:', 'HU were shifted up', 'RescaleIntercept'))
add(NUMBERS, 'a slice without RescaleSlope', lambda d: save_series(d/'s',
    lambda k: dict(RescaleSlope=None) if k == 2 else {}),
    read('s'), Refused('IM0002', 'no usable RescaleSlope', 'export'))
add(NUMBERS, 'a slope of its own for each slice', lambda d: save_series(d/'s', lambda k: dict(
    RescaleSlope=1 + k % 2, RescaleIntercept=-1024),
    hu=[(x + 1024)//(1 + k % 2) - 1024 for k, x in enumerate(HU[::-1])]),
    lambda d: np.abs(read_scan(d/'s').data - HU).max(), Accepted(lambda x: x <= 1))

def unreadable(d):
    real = Path.open
    def closed(self, *a, **k):
        if self.name == 'IM0005': raise PermissionError(13, 'Permission denied', str(self))
        return real(self, *a, **k)
    with patch.object(Path, 'open', closed): return read_scan(d/'s')
def dead_link(d):
    save_series(d/'s')
    (d/'s'/'IM0023').unlink()
    (d/'s'/'IM0023').symlink_to(d/'nowhere')
add(NUMBERS, 'the last slice is a link that leads nowhere', dead_link, read('s'),
    Refused('IM0023', 'cannot be read (No such file', 'copy it again'))
add(NUMBERS, 'the last slice has no Modality',
    lambda d: save_series(d/'s', lambda k: dict(Modality=None) if k == 23 else {}), read('s'), Accepted(same))
add(NUMBERS, 'a slice that may not be read', lambda d: save_series(d/'s'), unreadable,
    Refused('IM0005', 'cannot be read (Permission denied)', 'copy it again'))


# Whose fault is it?

FAULT = 'whose fault is it'
def good(d): save_nifti(d/'g.nii.gz')
def raw(d): good(d); return (d/'g.nii.gz').read_bytes()
def bytes_(name, make):
    def write(d): (d/name).write_bytes(make(raw(d))); (d/'g.nii.gz').unlink()
    return write

add(FAULT, 'a plain NIfTI called .nii.gz', bytes_('a.nii.gz', gzip.decompress), read('a.nii.gz'),
    Refused('a.nii.gz', 'not compressed', 'name that ends in .nii'))
add(FAULT, 'a packed NIfTI called .nii', bytes_('a.nii', lambda b: b), read('a.nii'),
    Refused('a.nii', 'is compressed', 'name that ends in .nii.gz'))
add(FAULT, 'bytes after the end', bytes_('a.nii.gz', lambda b: b + b'\x01more'), read('a.nii.gz'),
    Refused('a.nii.gz', 'other bytes follow', 'compress it again'))
add(FAULT, 'half of a file', bytes_('a.nii.gz', lambda b: b[:len(b)//2]), read('a.nii.gz'),
    Refused('a.nii.gz', 'ends early', 'download it again'))
add(FAULT, 'a file without its checksum', bytes_('a.nii.gz', lambda b: b[:-8]), read('a.nii.gz'),
    Refused('a.nii.gz', 'ends early', 'download it again'))
add(FAULT, 'one byte changed', bytes_('a.nii.gz', lambda b: b[:9000] + bytes([b[9000] ^ 255]) + b[9001:]),
    read('a.nii.gz'), Refused('a.nii.gz', 'damaged', 'download it again'))
add(FAULT, 'a plain file cut short', bytes_('a.nii', lambda b: gzip.decompress(b)[:-10]), read('a.nii'),
    Refused('a.nii', 'ends early', 'download it again'))
add(FAULT, 'an empty file', bytes_('a.nii.gz', lambda b: b''), read('a.nii.gz'),
    Refused('a.nii.gz', 'empty', 'again'))
add(FAULT, 'a file of zeros', bytes_('a.nii', lambda b: bytes(5000)), read('a.nii'),
    Refused('a.nii', 'zeros', 'again'))
add(FAULT, 'a web page', bytes_('a.nii.gz', lambda b: b'<!DOCTYPE html><html>404</html>'), read('a.nii.gz'),
    Refused('a.nii.gz', 'web page', 'download the scan again'))
add(FAULT, 'a pointer of Git LFS', bytes_('a.nii.gz',
    lambda b: b'version https://git-lfs.github.com/spec/v1\n'),
    read('a.nii.gz'), Refused('a.nii.gz', 'Git LFS', 'git lfs pull'))
add(FAULT, 'a PNG called .nii', bytes_('a.nii', lambda b: b'\x89PNG\r\n\x1a\n' + b), read('a.nii'),
    Refused('a.nii', 'picture', 'DICOM or NIfTI'))

def zipped(d):
    with zipfile.ZipFile(d/'scan.zip', 'w') as z: z.write(save_nifti(d/'g.nii'), 'g.nii')
add(FAULT, 'a zip archive', zipped, predict('scan.zip'),
    Refused('scan.zip', 'zip archive', 'unpack', only=False))
add(FAULT, 'a name in capitals', bytes_('A.NII.GZ', lambda b: b),
    lambda d: (ids(d, ''), same(read_scan(d/'A.NII.GZ'))),
    Accepted((['A'], True)))
add(FAULT, 'an NRRD image', lambda d: save_nrrd(d/'a.nrrd'), lambda d: read_scan(d/'a.nrrd').data,
    Accepted(CT.data),
    needs='SimpleITK')
add(FAULT, 'a MetaImage', lambda d: save_mha(d/'a.mha'), read('a.mha'), Accepted(same), needs='SimpleITK')

def without(module, f):
    def run(d):
        with patch.dict(sys.modules, {module: None}): return f(d)
    return run
add(FAULT, 'an NRRD image without SimpleITK', lambda d: save_nrrd(d/'a.nrrd'),
    without('SimpleITK', read('a.nrrd')),
    Refused('a.nrrd', 'NRRD image', "kits_nb[itk]"))
add(FAULT, 'DICOM without pydicom', lambda d: save_series(d/'s'), without('pydicom', read('s')),
    Refused('DICOM files', 'pydicom is not installed', 'kits_nb[dicom]'))
add(FAULT, 'a folder for a file', lambda d: (d/'a.nii').mkdir(), lambda d: read_ct(d/'a.nii'),
    Refused('a.nii', 'is a folder', 'NIfTI'))
add(FAULT, 'nothing there', None, predict('nowhere'), Refused('nowhere', 'no such folder', 'check the path'))
add(FAULT, 'a folder without scans', lambda d: (d/'notes.txt').write_text('x'), lambda d: find_cases(d),
    Refused('no case', 'folders of DICOM'))
add(FAULT, 'four axes', lambda d: save_nifti(d/'a.nii.gz', np.zeros((4, 4, 4, 2), np.int16)),
    read('a.nii.gz'),
    Refused('a.nii.gz', '(4, 4, 4, 2)', 'single volume'))
add(FAULT, 'colours', lambda d: save_nifti(d/'a.nii.gz', np.zeros((4, 4, 4), [(c, 'u1') for c in 'RGB'])),
    read('a.nii.gz'), Refused('a.nii.gz', 'voxels are of type', 'one number per voxel'))
add(FAULT, 'complex numbers', lambda d: save_nifti(d/'a.nii.gz', np.ones((4, 4, 4), np.complex64)),
    read('a.nii.gz'),
    Refused('a.nii.gz', 'complex', 'one number per voxel'))
add(FAULT, 'an unknown type', damage(datatype=999), read('a.nii.gz'), Refused('a.nii.gz', '999', 'again'))
add(FAULT, 'negative dimensions', damage(dim=[3, -5, 44, 48, 1, 1, 1, 1]), read('a.nii.gz'),
    Refused('a.nii.gz', '(-5, 44, 48)', 'three axes'))

def strip_preamble(d):
    for o in save_series(d/'s').iterdir(): o.write_bytes(o.read_bytes()[132:])
add(FAULT, 'DICOM without the preamble', strip_preamble, read('s'), Accepted(same))

def edit_slice(d, name, **tags):
    import pydicom
    x = pydicom.dcmread(d/'s'/name)
    for k, v in tags.items(): setattr(x, k, v)
    x.save_as(d/'s'/name)
add(FAULT, 'pixels cut short', lambda d: (save_series(d/'s'),
    (d/'s'/'IM0003').write_bytes((d/'s'/'IM0003').read_bytes()[:3000])),
    read('s'), Refused('IM0003', 'pixels cannot be read', 'copy it again'))
add(FAULT, 'a slice that is none', lambda d: (save_series(d/'s'), (d/'s'/'x.dcm').write_text('hello')),
    read('s'),
    Refused('x.dcm', 'not DICOM', 'take it away'))
add(FAULT, 'an empty slice', lambda d: (save_series(d/'s'), (d/'s'/'IM0003').write_bytes(b'')), read('s'),
    Refused('IM0003', '0 bytes', 'copy it again'))

def odd_length(d):
    save_series(d/'s')
    data = (d/'s'/'IM0003').read_bytes()
    at = data.index(b'UL') + 2
    (d/'s'/'IM0003').write_bytes(data[:at] + b'\x07' + data[at + 1:])
add(FAULT, 'a first tag of an odd length', odd_length, read('s'),
    Refused('IM0003', 'pydicom cannot read', 'copy it again'))
add(FAULT, 'an object of many frames', lambda d: save_series(d/'s', lambda k: dict(NumberOfFrames=8)),
    read('s'),
    Refused('/s:', 'many frames', 'dcm2niix'))
add(FAULT, 'MR for CT', lambda d: save_series(d/'s', lambda k: dict(Modality='MR')), read('s'),
    Refused('/s:', '24 MR images', 'name another folder'))
add(FAULT, 'one broken scan of three', lambda d: (scans('a.nii.gz', 'c.nii.gz')(d),
    (d/'scans'/'b.nii.gz').write_bytes(b'x')),
    predict(process=True), Refused('b.nii.gz', '2 done, 0 already there, 1 failed', 'not compressed',
                                   makes=['out/prediction_a.nii.gz', 'out/prediction_c.nii.gz', 'out/*']))

def denied(d):
    with patch.object(Path, 'open', side_effect=PermissionError(13, 'Permission denied', str(d/'g.nii.gz'))):
        return read_ct(d/'g.nii.gz')
add(FAULT, 'a scan that may not be read', good, denied,
    Refused('g.nii.gz', 'permission was denied', 'who may read'))

def gone(d):
    with patch.object(nib, 'load', side_effect=OSError(5, 'Input/output error', str(d/'g.nii.gz'))):
        return read_ct(d/'g.nii.gz')
add(FAULT, 'a network drive that is gone', good, gone, Refused('g.nii.gz', 'does not respond', 'check it'))


# Sizes

SIZES = 'sizes'

def around(**header):
    "Two sound scans, and one between them that is not"
    def write(d):
        scans('a.nii.gz', 'c.nii.gz')(d)
        save_nifti(d/'scans'/'b.nii.gz', affine=header.pop('affine', None))
        if header: patch_header(d/'scans'/'b.nii.gz', **header)
    return write
two = ['out/prediction_a.nii.gz', 'out/prediction_c.nii.gz', 'out/*']
for mm, words in ((100., '4.8 m long'), (300., '14.4 m'), (1000., '48 m'), (1e7, 'more than 10 km long'),
                  (1e20, 'more than 10 km long')):
    add(SIZES, f'a voxel of {mm:g} mm', lambda d, mm=mm: save_nifti(d/'a.nii', affine=np.diag([mm]*3 + [1.])),
        read('a.nii'), Refused('a.nii', f'voxels of {mm:.4g}×', words, 'repair the header'))
add(SIZES, 'a voxel of 300 mm among others', lambda d: around(affine=np.diag([300., 300., 300., 1.]))(d),
    predict(),
    Refused('b.nii.gz', '14.4 m long', '2 done', '1 failed', makes=two))

def cases(d):
    for k, mm in enumerate((None, 300., None)):
        affine = CT.affine if mm is None else np.diag([mm, mm, mm, 1.])
        save_nifti(d/'data'/f'case_{k:05d}'/'imaging.nii.gz', CT.data, affine)
        save_nifti(d/'data'/f'case_{k:05d}'/'segmentation.nii.gz', SEG.data, affine)
add(SIZES, 'a voxel of 300 mm in kits-prepare', cases,
    Command('kits-prepare', '{d}/data', '{d}/prep', '--spacing', '8'),
    Refused('case_00001', '14.4 m long', '2 done',
    makes=['prep/case_00000/*', 'prep/case_00002/*', 'prep/*']))
add(SIZES, 'a grid of 0.1 mm in kits-prepare', lambda d: (cases(d), shutil.rmtree(d/'data'/'case_00001')),
    Command('kits-prepare', '{d}/data', '{d}/prep', '--spacing', '.1'),
    Refused('case_00000', 'the grid would have', 'coarser grid', only=False))
add(SIZES, 'metres called millimetres', lambda d: save_nifti(d/'a.nii', affine=CT.affine @ np.diag([.001,
    .001, .001, 1])),
    read('a.nii'), Refused('a.nii', 'smaller than any CT', 'repair the header'))
add(SIZES, 'a header of 35 teravoxels', lambda d: (d/'a.nii.gz').write_bytes(gzip.compress(bare_header((32767,
    )*3))),
    read('a.nii.gz'), Refused('a.nii.gz', '3.52e+13 voxels', 'again'))
add(SIZES, 'a header of 16 GB', lambda d: (d/'a.nii.gz').write_bytes(gzip.compress(bare_header((2000, 2000,
    500), float))),
    read('a.nii.gz'), Refused('a.nii.gz', '16 GB', 'again'))
add(SIZES, 'more than its file can hold', lambda d: (d/'a.nii.gz').write_bytes(gzip.compress(bare_header((800,
    )*3))),
    read('a.nii.gz'), Refused('a.nii.gz', 'ends early', 'promises 1024000352 bytes'))
add(SIZES, 'voxels that begin at 3 GB', lambda d: (d/'a.nii.gz').write_bytes(gzip.compress(
    bare_header((4, 4, 4), vox_offset=3e9))), read('a.nii.gz'),
    Refused('a.nii.gz', 'begin at byte 3e+09', 'again'))
add(SIZES, '40 MB of zeros after the voxels', bytes_('a.nii.gz',
    lambda b: gzip.compress(gzip.decompress(b) + bytes(40 << 20), 1)),
    read('a.nii.gz'), Refused('a.nii.gz', '16 MB follow the voxels', 'again'))
add(SIZES, 'an NRRD header of 700 megavoxels', lambda d: (d/'a.nrrd').write_bytes(
    NRRD.format(428, 428, 370).replace('(0,0,-8)', '(0,0,-7)').encode() + b'1'), read('a.nrrd'),
    Refused('a.nrrd', 'promises 6.78e+07 voxels', 'again'), needs='SimpleITK')
def odd_mha(old, new):
    def write(d):
        save_mha(d/'a.mha')
        (d/'a.mha').write_bytes((d/'a.mha').read_bytes().replace(old, new, 1))
    return write
for name, old, new, words in (('1e30 axes', b'NDims = 3', b'NDims = 1e30', 'number of axes'),
                              ('voxels in %s', b'LOCAL', b'%s%s%s%sLOCAL', "voxels in '%s"),
                              ('voxels in another folder', b'LOCAL', b'/etc/passwd', "voxels in '/etc"),
                              ('no length', b'= 7 7 8', b'= 7 0 8', 'an axis has no length')):
    add(SIZES, f'a MetaImage: {name}', odd_mha(old, new), read('a.mha'), Refused('a.mha', words),
        needs='SimpleITK')
add(SIZES, 'an NRRD voxel of 300 mm', lambda d: save_nrrd(d/'a.nrrd', NRRD.replace('-8)', '-300)')),
    read('a.nrrd'),
    Refused('a.nrrd', 'm long', 'voxel size'), needs='SimpleITK')

def deflated(d):
    import pydicom
    save_series(d/'s')
    x = pydicom.dcmread(d/'s'/'IM0003')
    x.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    x.PixelData = bytes(50 << 20)                      # 50 MB of zeros in 50 kB; no reader has a limit
    x.save_as(d/'s'/'IM0003', enforce_file_format=True)
add(SIZES, 'a slice that unpacks to 50 MB', deflated, read('s'),
    Refused('IM0003', 'deflated as a whole', 'convert it'))
add(SIZES, 'DICOM pixels of 90 mm', lambda d: save_series(d/'s', lambda k: dict(PixelSpacing=[90, 90])),
    read('s'),
    Refused('/s:', 'm long', 'voxel size'))


# Silence

SILENCE = 'silence'
add(SILENCE, 'a scan of four slices', lambda d: save_nifti(d/'scans'/'a.nii.gz', CT.data[10:14]), predict(),
    Accepted(['note', 'only 32 mm long', '1 done'], makes=['out/prediction_a.nii.gz']))
add(SILENCE, 'a scan of one slice', lambda d: save_nifti(d/'scans'/'a.nii.gz', CT.data[10:11]), predict(),
    Accepted(['note', 'only 8 mm long'], makes=['out/prediction_a.nii.gz']))
add(SILENCE, 'a small field of view', lambda d: save_nifti(d/'scans'/'a.nii.gz', CT.data[:, 12:28, 14:30]),
    predict(),
    Accepted(['shows only 112×112 mm'], makes=['out/prediction_a.nii.gz']))
add(SILENCE, 'an empty scan', lambda d: save_nifti(d/'scans'/'a.nii.gz', CT.data*0 - 1000), predict(),
    Accepted(['all voxels have the same value'], makes=['out/prediction_a.nii.gz']))
add(SILENCE, 'slices 16 mm apart', lambda d: save_nifti(d/'scans'/'a.nii.gz', CT.data[::2],
    CT.affine @ np.diag([2., 1., 1., 1.])), predict(),
    Accepted(['slices are 16 mm apart'], makes=['out/prediction_a.nii.gz']))


def main(): return table.main(ENTRIES, 'scans')


if __name__ == '__main__':
    n = main()
    print(dict(table.kinds(ENTRIES)))
    sys.exit(n['wrong'] > 0)
