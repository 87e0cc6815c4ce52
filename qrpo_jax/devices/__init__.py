"""The device mesh, number types, and synchronisation of processes."""
