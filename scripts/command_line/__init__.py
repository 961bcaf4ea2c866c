"""The command line of every script, made of the signature of the function that it runs."""

from .parser import AtATime, Seed, run_command
