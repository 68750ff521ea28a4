"Everything that the book uses, in one import: `from kits_nb.all import *`"
import warnings
import matplotlib.pyplot as plt, numpy as np, pandas as pd, torch, torch.nn.functional as F
from pathlib import Path
from torch import nn, tensor, Tensor
with warnings.catch_warnings():         # fastai still uses torch.jit.script, which PyTorch will drop
    warnings.filterwarnings('ignore', '`torch.jit.script` is deprecated', FutureWarning)
    from fastai.basics import *
from .core import *
from .data.volume import *
from .data.files import *
from .show import *
from .data.phantom import *
from .data.kits19 import *
from .data.store import *
from .data.crops import *
from .data.loader import *
from .network.blocks import *
from .network.boundary import *
from .network.model import *
from .network.figure import *
from .network.fast import speed_up
from .network.device import *
from .network.saving import *
from .training.losses import *
from .training.metrics import *
from .training.recipe import *
from .training.distributed import *
from .training.learner import *
from .training.run import *
from .training.ensemble import *
from .inference.windows import *
from .inference.slabs import *
from .inference.predict import *
from .inference.cases import *
from .evaluation.dice import *
from .evaluation.surface import *
from .evaluation.scores import *
from .evaluation.statistics import *
from .evaluation.morphometry import *
