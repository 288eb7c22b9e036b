"""What a learner's message costs in bytes."""

import math
from collections.abc import Sequence

from metaleak.defenses.defense import Costed, Defense, Shapes


def bytes_sent(defenses: Sequence[Defense], shapes: Shapes) -> int:
    """Return the bytes that carry one learner's meta-gradient of these `shapes` after all its defenses.

    The last `shared` defense decides, since its output is what is sent: noise on a pruned gradient, for example, is
    dense again. Entries take 4 bytes (float32) where it is not `Costed`, or where there is none. This is an upper
    bound: two defenses that both compress may allow for less.

    Example:
        >>> from metaleak.defenses import Sign
        >>> shapes = {"weight": (10, 10)}
        >>> bytes_sent([], shapes), bytes_sent([Sign()], shapes)
        (400, 17)
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
