"""DIN's target attention: an activation unit scores each behaviour against each candidate."""

from .api import moments as moments, target_attention as target_attention
from .reference import Layer as Layer, Weights as Weights, attention_scores as attention_scores
