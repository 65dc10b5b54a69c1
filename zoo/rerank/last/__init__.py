"""LAST: learning at serving time, one request at a time. See `exploration`."""

from .exploration import PRESETS as PRESETS
from .exploration import Chosen as Chosen
from .exploration import Config as Config
from .exploration import TrainedGenerator as TrainedGenerator
from .exploration import best_of as best_of
from .exploration import both_signs as both_signs
from .exploration import choose as choose
from .exploration import direction as direction
from .exploration import explore as explore
from .exploration import last_parallel as last_parallel
from .exploration import last_serial as last_serial
from .exploration import most_gained as most_gained
from .exploration import seeds_of as seeds_of
