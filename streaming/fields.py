"""What is read of records as columns, by name: kinds, fates, and where which number stands. Knows nothing of how it is read.

Compiled code takes these as they were when it was compiled: whoever changes one changes columns.py and slots.py too, or empties
the folder that compiled code is kept in.
"""

from enum import IntEnum

OTHER, EXPOSURE, FEEDBACK, INTERACTION, TICK, OWN, TAUGHT, FOREIGN = range(8)
"""Kinds of records; the last three are decisions. OTHER is what is not plain."""
COUNTED, FORGED, LATE = range(3)
"""Fates of what was said of a decision."""
ODD, SILENT, ANSWERED, SPOKEN_OF = range(4)
"""How a decision that closes is read: by a parser; shown once, and nothing said; shown once, then one thing said; event by event."""
ID_LENGTH = 32
MAX_VALUE = 1e12
"""The largest magnitude a feedback value can have; what is beyond it, or no number, is quarantined."""
LATEST_MS = 1 << 53
"""The latest time a record can have: some sums of it must be numbers too."""


class Of(IntEnum):
    """Columns of what is read of a record. A text is where it begins and how long it is."""

    TIME_MS = 0
    ID = 1
    ID_LENGTH = 2
    # Kept of a decision that closes.
    NEEDS = 3
    FIRST_EVENT = 4
    # Kept of what was said of it.
    KIND = 3
    FATE = 4
    APPEND_MS = 5
    SLOTS = 6
    NUM_MARKS = 7
    LAST_SLOT = 8  # the largest shown, or the one spoken of
    SAID = 9
    SAID_LENGTH = 10
    VALUE = 11  # the bits of a double
    # Of both, and not kept.
    USER = 12
    USER_LENGTH = 13
    TOKEN = 14
    TOKEN_LENGTH = 15
    VARIANT = 16
    VARIANT_LENGTH = 17
    NUM_SLOTS = 18
    MEMORY_OFFSET = 19


DECISION_COLUMNS, EVENT_COLUMNS, ALL_COLUMNS = 5, 12, 20
"""How many of them are kept, and how many there are."""
