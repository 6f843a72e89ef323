"""Job files -> Job records. A directory is taken whole or not at all.

parsing.py makes a Job of one mapping, files.py a JobSet of a directory, sets.py is what one can ask
of a JobSet; checks.py tries what only shows between jobs, or when their templates are expanded.
"""

from apsislib.errors import JobErrors
from apsislib.jobs.checks import check, check_retention, check_scheduled
from apsislib.jobs.files import SUFFIX, load_dir, read_dir
from apsislib.jobs.parsing import Kinds, described, parse_job
from apsislib.jobs.sets import Diff, JobSet, NoMatch

__all__ = [
    "SUFFIX",
    "Diff",
    "JobErrors",
    "JobSet",
    "Kinds",
    "NoMatch",
    "check",
    "check_retention",
    "check_scheduled",
    "described",
    "load_dir",
    "parse_job",
    "read_dir",
]
