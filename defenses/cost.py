"""What a learner's message costs in bytes."""

import math
from collections.abc import Sequence

from metaleak.defenses.defense import Costed, Defense, Shapes


def bytes_sent(defenses: Sequence[Defense], shapes: Shapes) -> int:
    """Return the bytes that carry one learner's meta-gradient of these `shapes` after all its defenses.

    The last `shared` defense decides: its output can be sent in its own form whatever went before, and what went
    before need not show in it (noise on a pruned gradient is dense). Float32 entries where it is not `Costed`, or
    there is none. So an upper bound: a chain of two sparse forms may be sent in less.
    """
    shared = [defense for defense in defenses if defense.place == "shared"]
    last = shared[-1] if shared else None
    return last.bytes_sent(shapes) if isinstance(last, Costed) else dense_bytes(shapes)


def dense_bytes(shapes: Shapes) -> int:
    """Return the bytes of all entries in float32."""
    return 4 * entries(shapes)


def entries(shapes: Shapes) -> int:
    """Return how many entries tensors of these shapes have together."""
    return sum(math.prod(shape) for shape in shapes.values())
