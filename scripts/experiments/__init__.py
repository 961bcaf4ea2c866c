"""The tables of the papers and the benchmarks, behind reproduce.py and benchmark.py."""
