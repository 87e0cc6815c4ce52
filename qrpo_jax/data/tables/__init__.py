"""Tables: data sets as others keep them, as records with named columns; one module a kind of storage.

Each module has `open_table`. It finds files, splits, columns and the number of records; records are read afterwards.
"""
