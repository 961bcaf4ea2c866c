"""What people prepare, a file for each data set and for each synthetic one; scripts and tests import these by name.
Each ends in a datalist that a run reads with `data`. Packages leave the room out.

May import: data, layers, metrics, networks, utils.
"""
