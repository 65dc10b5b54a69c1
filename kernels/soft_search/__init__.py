"""SIM's soft search: the behaviours whose vectors match a candidate best."""

from .api import soft_search as soft_search
from .reference import Found as Found
