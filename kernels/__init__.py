"""The hot loops, one folder per op. Arrays in, arrays out."""
