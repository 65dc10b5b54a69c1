"""What the columns of a log mean: declared, or guessed and said.

A declaration names every column of a file with its role, kind and unit (`Columns`). Without one it
is guessed from the values (`guess`); with one nothing is guessed (`values` and `clock` read by it),
so that another day's file, in which prices happen to be whole or one id is a text, means the same.
"""

from .clock import Clock as Clock
from .clock import read_clock as read_clock
from .columns import Column as Column
from .columns import Columns as Columns
from .guess import Events as Events
from .guess import guess as guess
from .guess import named as named
