"""The parts of suite `last`: worlds of slates, LAST and its rivals in them."""
