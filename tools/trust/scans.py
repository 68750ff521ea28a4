"""Writers of scans for the tables of bad inputs: a phantom as NIfTI, as DICOM, and with a header that lies"""
import gzip
from functools import lru_cache
from pathlib import Path
import nibabel as nib, numpy as np


@lru_cache
def phantom(seed=1000, shape=(24, 44, 48), spacing=(8., 7., 7.)):
    "(CT, labels) of a small body"
    from kits_nb.data.phantom import make_phantom
    return make_phantom(seed=seed, shape=shape, spacing=spacing)


def save_nifti(path, data=None, affine=None, kind=nib.Nifti1Image, form=None, **fields):
    "A NIfTI file; `form` gets the image before it is written, `fields` are of the header"
    ct = phantom()[0]
    img = kind(ct.data if data is None else data, ct.affine if affine is None else affine)
    if form: form(img)
    for k, v in fields.items(): img.header[k] = v
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    nib.save(img, path)
    return Path(path)


def patch_header(path, **fields):
    "Write fields into the header of a .nii or .nii.gz as they are, past nibabel's checks"
    raw = Path(path).read_bytes()
    packed = raw[:2] == b'\x1f\x8b'
    b = bytearray(gzip.decompress(raw) if packed else raw)
    for k, v in fields.items():
        dtype, at = nib.Nifti1Header.template_dtype.fields[k]
        b[at:at + dtype.itemsize] = np.array(v, dtype.base).tobytes()
    Path(path).write_bytes(gzip.compress(bytes(b), 1) if packed else bytes(b))


def bare_header(shape, dtype=np.int16, **fields):
    "A NIfTI header that promises voxels, and 4 bytes after it"
    h = nib.Nifti1Header()
    h.set_data_dtype(dtype)
    h['dim'][0], h['dim'][1:len(shape) + 1] = len(shape), shape
    h['magic'], h['vox_offset'], h['pixdim'][1:4] = b'n+1', 352, (1, 1, 1)
    h['sform_code'], h['srow_x'], h['srow_y'], h['srow_z'] = 1, (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)
    for k, v in fields.items(): h[k] = v
    return h.binaryblock + bytes(4)


NRRD = ('NRRD0004\ntype: int16\ndimension: 3\nsizes: {0} {1} {2}\nencoding: raw\nendian: little\n'
        'space: left-posterior-superior\nspace directions: (-7,0,0) (0,-7,0) (0,0,-8)\n\n')


def save_nrrd(path, head=NRRD):
    "The phantom as NRRD: x to the right, y to the front, z to the feet"
    data = phantom()[0].data[:, ::-1, ::-1]
    Path(path).write_bytes(head.format(*data.shape[::-1]).encode() + data.astype('<i2').tobytes())


def save_mha(path, extra='TransformMatrix = 1 0 0 0 1 0 0 0 1\n'):
    "The phantom as MetaImage: x to the left, y to the back, z to the head"
    data = phantom()[0].data[::-1]
    head = (f'ObjectType = Image\nNDims = 3\n{extra}ElementSpacing = 7 7 8\nDimSize = 48 44 24\n'
            'ElementType = MET_SHORT\nElementDataFile = LOCAL\n')
    Path(path).write_bytes(head.encode() + data.astype('<i2').tobytes())


def save_slice(path, stored, **tags):
    "One DICOM file of stored numbers (row, column)"
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    series = dict(SeriesNumber=3, SeriesDescription='abdomen', SeriesInstanceUID='1.2.3.3',
                  StudyInstanceUID='1.2.3', FrameOfReferenceUID='1.2.3.9', PatientID='P1')
    image = dict(SOPClassUID='1.2.840.10008.5.1.4.1.1.2', SOPInstanceUID=generate_uid(), Modality='CT',
                 ImageType=['ORIGINAL', 'PRIMARY', 'AXIAL'], RescaleSlope=1, RescaleIntercept=-1024,
                 RescaleType='HU', ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[7, 7])
    pixels = dict(Rows=stored.shape[0], Columns=stored.shape[1], SamplesPerPixel=1,
                  PhotometricInterpretation='MONOCHROME2', BitsAllocated=16, BitsStored=16, HighBit=15,
                  PixelRepresentation=int(stored.dtype.kind == 'i'))
    file = pydicom.Dataset()
    file.file_meta = meta
    for k, v in (series | image | pixels | tags).items():
        if v is not None: setattr(file, k, v)
    file.PixelData = stored.tobytes()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)


def save_series(folder, tags=lambda k: {}, at=lambda k: f'IM{k:04d}', hu=None, stored=None, step=8.):
    "The phantom as DICOM, from the feet up; `tags` and `at` say what slice k has and where its file lies"
    hu = phantom()[0].data[::-1] if hu is None else hu
    for k, x in enumerate(hu):
        x = (x + 1024).astype(np.uint16) if stored is None else stored(x)
        save_slice(Path(folder)/at(k), x, **(dict(ImagePositionPatient=[0, 0, k*step]) | tags(k)))
    return Path(folder)
