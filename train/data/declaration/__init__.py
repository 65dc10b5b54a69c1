"""Declarations of a log's columns: given, or guessed and said.

`columns` is the declaration, which names every column of a file with its role, kind and unit;
`guess` makes one of names and values; `values` and `clock` read by it. With a declaration nothing
is guessed, so that another day's file, in which prices happen to be whole or one id is a text,
means the same.
"""
