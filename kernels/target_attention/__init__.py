"""DIN's target attention: an activation unit scores each behaviour against each candidate."""

from .._mask import MASKED as MASKED
from .._mask import Normalize as Normalize
from .._mask import normalized as normalized
from .api import attention_scores as attention_scores
from .api import moments as moments
from .api import target_attention as target_attention
from .reference import DICE_EPSILON as DICE_EPSILON
from .reference import Activation as Activation
from .reference import Layer as Layer
from .reference import Weights as Weights
