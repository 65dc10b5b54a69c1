"""Arrays inside `shard_map`, whose types say over which axes they vary. Shared by every op here."""

import jax


def varying(args) -> frozenset[str]:
    """The axes of a `shard_map` over which some of the arrays vary."""
    types = [jax.typeof(x) for x in jax.tree.leaves(args)]
    return frozenset().union(*(t.manual_axis_type.varying for t in types))


def all_vary(args, axes: frozenset[str]):
    """The arrays as if all varied over the axes: their derivatives then say over which they add."""

    def cast_(x):
        missing = axes - jax.typeof(x).manual_axis_type.varying
        return jax.lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x

    return jax.tree.map(cast_, args)


def explicit_axes(tree) -> tuple[str, ...]:
    """The axes of a mesh that the arrays say they are sharded over, as part of their types."""
    names = {}
    for leaf in jax.tree.leaves(tree):
        mesh = getattr(getattr(jax.typeof(leaf), "sharding", None), "mesh", None)
        for name, kind in zip(
            getattr(mesh, "axis_names", ()), getattr(mesh, "axis_types", ()), strict=True
        ):
            if kind == jax.sharding.AxisType.Explicit:
                names[name] = None
    return tuple(names)
