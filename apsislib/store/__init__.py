"""Everything on disk: one thread writes, any thread reads. The only importer of sqlite3.

store     Store: the mailbox, the writer's thread, the brake. Read it first
batches   one batch, one transaction; what cannot be written is left out and named
backlog   output that is not on disk yet
outputs   output as chunks
vacuum    a compact copy beside the file, that takes its name
archive   the file that old runs go to
oldfile   a database of Apsis 2, read
importing a database that is being made out of it
pool      read-only connections, lent to threads
reader    the queries, each by an index
searching searches of the whole history, as SQL
bytime   the same in the order of latest transitions
history   how a job's runs ended
timeline  runs by job over a span of time, and what fails now
rows      runs as rows
damage    rows that can't be read
mending   what `apsis check-db --repair` does about them
files     opening, creating, migrating, locking the file; ../schema.sql has the tables
backups   a copy of it while it is in use
records   what goes in and comes out, besides the kernel's effects
"""

from apsislib.store.archive import Archive
from apsislib.store.damage import CANT_READ
from apsislib.store.files import APPLICATION_ID, ARCHIVE_ID, is_imported
from apsislib.store.history import Past
from apsislib.store.mending import aside_of
from apsislib.store.reader import Reader
from apsislib.store.records import (
    Chunk,
    Copied,
    Deleted,
    DeleteRuns,
    DropJob,
    Entry,
    Grew,
    OutputInfo,
    SaveJob,
    SetMeta,
    Sweep,
    Version,
)
from apsislib.store.store import Store
from apsislib.store.timeline import Lane

__all__ = [
    "APPLICATION_ID",
    "ARCHIVE_ID",
    "CANT_READ",
    "Archive",
    "Chunk",
    "Copied",
    "DeleteRuns",
    "Deleted",
    "DropJob",
    "Entry",
    "Grew",
    "Lane",
    "OutputInfo",
    "Past",
    "Reader",
    "SaveJob",
    "SetMeta",
    "Store",
    "Sweep",
    "Version",
    "aside_of",
    "is_imported",
]
