"""Fields of a schema, made from attributes, statistics and crosses."""
