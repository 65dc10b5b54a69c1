"""From raw values to a batch: schema, signatures, row maps, records."""

from .check import require_batch as require_batch
from .check import require_rows as require_rows
from .example import example_batch as example_batch
from .record import encode as encode
from .record import record_type as record_type
from .request_encoder import RequestEncoder as RequestEncoder
from .row_map import HashedRows as HashedRows
from .row_map import KnownRows as KnownRows
from .row_map import RowMap as RowMap
from .schema import PADDING_ROW as PADDING_ROW
from .schema import RESERVED_ROWS as RESERVED_ROWS
from .schema import ROLES as ROLES
from .schema import UNSEEN_ROW as UNSEEN_ROW
from .schema import Field as Field
from .schema import Role as Role
from .schema import Schema as Schema
from .schema import Table as Table
from .signature import signatures as signatures
from .vocabulary import DistinctCounts as DistinctCounts
