"""The device mesh, and what processes of one job agree on."""
