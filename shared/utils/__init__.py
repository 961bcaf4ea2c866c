"""What every room needs: errors that name the file at fault, output files that are whole or absent, the ranks of a
distributed run, lists and tables as text, the settings of the bundles and the command line that gives them.

May import: no other room.
"""

from .bundle_run import check_command_line, is_federated, without_export
from .device import prepare_device
from .errors import DataError, DiskFullError, data_error_message, fault_list, flag, is_disk_full, show_errors_briefly
from .files import (
    append_csv,
    atomic_path,
    cell_text,
    file_in_the_way,
    name_full_disk,
    parse_json,
    read_csv,
    read_json_object,
    writable_folder,
    write_csv,
    write_json,
)
from .locks import lock_folder, unlock_folder
from .process_group import gather_list, join_process_group, leave_process_group, own_cores, share_list
from .rank_watch import progress
from .temporary import EARLIER, temporary_folder
from .text import text_table
