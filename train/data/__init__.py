"""Sources: each reads files as their publishers ship them, or makes a world."""
