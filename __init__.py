"""Production recommendation models in JAX.

A request (one user, one history, C candidates) goes in, a slate comes out. Models live in
`recjax.zoo`, their hot loops in `recjax.kernels`, training in `recjax.train`.
"""

__version__ = "0.1.0"
