"""Pointer decoding: ordered lists from candidates, for many perturbations of a request at once."""

from .api import pointer_decode as pointer_decode
from .api import pointer_log_probability as pointer_log_probability
from .reference import Context as Context
from .reference import Decoded as Decoded
from .reference import Direction as Direction
from .reference import Request as Request
from .reference import Weights as Weights
from .rules import Quota as Quota
from .rules import Rules as Rules
from .rules import Scatter as Scatter
from .turn import Choose as Choose
from .turn import Left as Left
from .turn import drawn as drawn
from .turn import fill as fill
from .turn import given as given
