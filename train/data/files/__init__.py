"""Files of any usual kind, opened as a stream of bytes or read as one table."""

from .archives import READ_ERRORS as READ_ERRORS
from .archives import files_in as files_in
from .archives import folder_of as folder_of
from .archives import is_file as is_file
from .archives import name_of as name_of
from .archives import one_line as one_line
from .archives import open_bytes as open_bytes
from .archives import open_counted as open_counted
from .archives import packed as packed
from .archives import size_of as size_of
from .in_memory import InMemory as InMemory
from .in_memory import Where as Where
from .reading import read_table as read_table
from .table import BadRow as BadRow
from .table import RawTable as RawTable
