"""DIEN's interest evolution: a GRU whose update gate listens to an attention weight."""

from .api import augru as augru
from .api import gru as gru
from .reference import Cell as Cell
from .reference import Weights as Weights
