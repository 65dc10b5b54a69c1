"""The built-in world: it logs like a real system and, unlike a log, can be asked the truth."""

from .presets import BEHAVIORS as BEHAVIORS
from .presets import PRESETS as PRESETS
from .presets import ROUND_SECONDS as ROUND_SECONDS
from .presets import SCENES as SCENES
from .presets import SEGMENTS as SEGMENTS
from .presets import Preset as Preset
from .source import PageLog as PageLog
from .source import dataset as dataset
from .source import load as load
from .source import questions as questions
from .source import simulate as simulate
from .world import PageValue as PageValue
from .world import Response as Response
from .world import World as World
