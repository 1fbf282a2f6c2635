"""What Dagster loads and what a person types."""

import atexit
import gc

# What is imported from here on (Dagster, Crawlee, pandas) stays to the end of the process: a million objects. By
# default the collector walks them again and again while they come, and twice more on the way out: half of the time of
# a short command or of a load of the code location. It goes on collecting, only less often.
gc.set_threshold(100_000, 50, 100)
atexit.register(gc.freeze)
