"""The parts of suite `gpu`."""
