"""What users were before the minutes that are in doubt: who is told lies remembers them, and then expects no better.

Knows nothing of gates, weights or logs. Shapes: B requests, L rows of memory.
"""

from dataclasses import replace

import numpy as np

from models.decoder import Context
from models.trie import IntArray


def earlier(context: Context, seconds: float) -> Context:
    """The same requests without the rows of the last `seconds` before their newest row.

    A row's gap is known as a power of 2, so that rows may be up to twice as old as they are taken to be: none that is in doubt is kept.
    """
    is_row_BL = context.kind_BL > 0
    gap_BL = np.where(is_row_BL, 2.0**context.gap_BL - 1, 0)
    age_BL = gap_BL[:, ::-1].cumsum(1)[:, ::-1] - gap_BL
    moved_B = (is_row_BL & (age_BL < seconds)).sum(1)
    from_BL = np.arange(is_row_BL.shape[1]) - moved_B[:, None]

    def moved(row_BL: IntArray) -> IntArray:
        return np.where(from_BL >= 0, np.take_along_axis(row_BL, np.maximum(from_BL, 0), 1), 0)

    return replace(context, item_BL=moved(context.item_BL), kind_BL=moved(context.kind_BL), gap_BL=moved(context.gap_BL))
