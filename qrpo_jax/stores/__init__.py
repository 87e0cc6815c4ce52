"""Object stores such as gs:// and s3://, as far as fsspec reaches: paths in them, calls to them, local copies.

An object appears whole when it is put. A store has no folders, no rename, no append and no locks, its listings may be
late, and any call may fail. So a folder in a store is complete when its list of objects is there, which is put last.
"""
