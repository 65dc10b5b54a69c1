"""Hard constraints on every slate, however it was chosen: scattering and quotas.

    scatter "category:3:1"    among any 3 neighbouring slots at most 1 of the same category
    quota   "live:1:4"        at least 1 and at most 4 items whose dense field `live` is above 0

The decoders obey them slot by slot (`kernels.pointer_decode.rules`); a slot that no candidate may
have stays empty. Nobody knows what kind an unseen or missing id is: such candidates are alike to
none. Wang et al. (CMR, section 1, https://arxiv.org/abs/2306.05118) name scattering and flow
control as what re-ranking is asked for besides clicks.
"""

import re
from typing import Any

from jaxtyping import Array

from ...kernels.pointer_decode import Quota, Rules, Scatter
from ..batch import Batch
from ..checks import require_tuple
from ..features.schema import RESERVED_ROWS

_TEXT = re.compile(r"(.+):(\d+):(\d+)")


def parse(text: str) -> tuple[str, int, int]:
    """Field and the two numbers of a constraint. Raises ValueError if it is none."""
    found = _TEXT.fullmatch(text)
    if not found:
        raise ValueError(f"A constraint reads FIELD:NUMBER:NUMBER, got {text!r}.")
    return found[1], int(found[2]), int(found[3])


def check(config: Any) -> None:
    """Raises ValueError unless `config.scatter` and `config.quota` fit its schema and slots."""
    fields = {field.name: field for field in config.schema.role("candidate")}
    require_tuple(config, "scatter", "quota")
    for name, kind in (("scatter", "id"), ("quota", "dense")):
        for text in getattr(config, name):
            named, one, other = parse(text)
            field = fields.get(named)
            if field is None or field.kind != kind or field.width is not None:
                raise ValueError(
                    f"Config.{name} needs a candidate field of kind {kind}, a single one, got "
                    f"{named!r}."
                )
            if name == "scatter" and not 1 <= other < one <= config.slots:
                raise ValueError(
                    f"Config.scatter must be FIELD:WINDOW:MOST, 1 <= MOST < WINDOW <= slots, got "
                    f"{text!r}."
                )
            if name == "quota" and not one <= other <= config.slots:
                raise ValueError(
                    f"Config.quota must be FIELD:LEAST:MOST, LEAST <= MOST <= slots, got {text!r}."
                )


def rules_of(config: Any, batch: Batch) -> Rules | None:
    """The constraints of a config on a batch, as decoders take them; None without any."""
    if not (config.scatter or config.quota):
        return None
    return Rules(
        scatters=tuple(
            Scatter(_same(batch["candidate"][field]), window, most)
            for field, window, most in map(parse, config.scatter)
        ),
        quotas=tuple(
            Quota(batch["candidate"][field] > 0, least, most)
            for field, least, most in map(parse, config.quota)
        ),
    )


def _same(kind: Array) -> Array:
    return (kind[:, :, None] == kind[:, None]) & (kind >= RESERVED_ROWS)[:, :, None]
