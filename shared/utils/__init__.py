"""Errors that name the file at fault, output files that are either whole or absent, and a clean end of a rank."""

from .errors import DataError, data_error_message, fault_list, flag, show_errors_briefly
from .files import append_csv, atomic_path, writable_folder, write_csv, write_json
from .process_group import leave_process_group

__all__ = [
    "DataError",
    "append_csv",
    "atomic_path",
    "data_error_message",
    "fault_list",
    "flag",
    "leave_process_group",
    "show_errors_briefly",
    "writable_folder",
    "write_csv",
    "write_json",
]
