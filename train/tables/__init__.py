"""Embedding tables in training: see `pull_push` for the idea, `optimizers` for how rows change."""

from .optimizers import RowOptimizer as RowOptimizer
from .optimizers import adagrad as adagrad
from .optimizers import chain as chain
from .optimizers import ftrl as ftrl
from .optimizers import lazy_adam as lazy_adam
from .optimizers import proximal as proximal
from .optimizers import row_wise_adagrad as row_wise_adagrad
from .optimizers import sgd as sgd
from .pull_push import init as init
from .pull_push import pull as pull
from .pull_push import push as push
