"""Numbers and untrusted text as readers see them."""

import math
import unicodedata

SHOWN_CHARACTERS = 1200  # of a prompt or completion
INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # Unicode categories


def number(value: float, sign: bool = False) -> str:
    """Three decimals for values from 0.01 to 1000, four significant digits for others.

    >>> number(0.5), number(-0.25, sign=True), number(12345.6), number(math.nan)
    ('0.500', '−0.250', '1.235e+04', '–')
    """
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
    digits = ".3f" if value == 0 or 0.01 <= abs(value) < 1000 else ".4g"
    return format(value, f"+{digits}" if sign else digits).replace("-", "−")


def visible(text: str) -> str:
    """Text with control, direction and other invisible characters spelled out, and cut if very long.

    >>> visible("a" + chr(0x202E) + "b")
    'a⟨U+202E⟩b'
    """
    shown = []
    for character in text[:SHOWN_CHARACTERS]:
        if character == "\n":
            shown.append("↵\n")
        elif unicodedata.category(character) in INVISIBLE:
            shown.append(f"⟨U+{ord(character):04X}⟩")
        else:
            shown.append(character)
    cut = len(text) - SHOWN_CHARACTERS
    return "".join(shown) + (f" … ({cut} more characters)" if cut > 0 else "")
