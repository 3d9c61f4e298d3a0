"""LeRobot v3.0 data sets: `Writer` assembles one, `Dataset` reads one back as (Observation, ActionChunk).

The two meet in `vla_runtime.data.schema`, which states the layout. Neither needs LeRobot or pandas.
"""

from vla_runtime.data.reader import Dataset, DatasetError, EpisodeRecord
from vla_runtime.data.writer import Writer

__all__ = ["Dataset", "DatasetError", "EpisodeRecord", "Writer"]
