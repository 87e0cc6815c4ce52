"""What programs print, compared as the judges of programming contests do.

Texts are equal if they have the same tokens between blanks and line ends, where two numbers may differ by 1e-6 of the
expected one's size, or by 1e-6 if that is below 1; whole numbers are exact. Blanks at the end of lines and empty lines
at the end of the text do not count, therefore. The checker of CodeContests compares tokens, and numbers approximately;
that of APPS compares lines without blanks around them, then numbers approximately.
"""

import math
import re

WITHIN = 1e-6
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,3})?")


def same_text(printed: str, expected: str) -> bool:
    """Whether a program printed what was expected.

    >>> same_text("1 2 \\n0.33333333\\n\\n", "1 2\\n0.3333333"), same_text("12", "1 2")
    (True, False)
    """
    given, wanted = printed.split(), expected.split()
    return len(given) == len(wanted) and all(map(_same_token, given, wanted))


def _same_token(given: str, wanted: str) -> bool:
    if given == wanted:
        return True
    if not NUMBER.fullmatch(given) or not NUMBER.fullmatch(wanted) or (_whole(given) and _whole(wanted)):
        return False
    number, right = float(given), float(wanted)
    return math.isfinite(number) and abs(number - right) <= WITHIN * max(1.0, abs(right))


def _whole(token: str) -> bool:
    return token.lstrip("+-").isdigit()
