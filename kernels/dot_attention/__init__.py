"""Softmax attention of many queries over one history, with time intervals."""

from .api import dot_attention as dot_attention
