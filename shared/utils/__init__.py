"""Errors that name the file at fault, and output files that are either whole or absent."""

from .errors import DataError, data_error_message, fault_list, flag, show_errors_briefly
from .files import append_csv, atomic_path, writable_folder, write_csv, write_json

__all__ = [
    "DataError",
    "append_csv",
    "atomic_path",
    "data_error_message",
    "fault_list",
    "flag",
    "show_errors_briefly",
    "writable_folder",
    "write_csv",
    "write_json",
]
