"""Names of transforms as configs write them: "log", "power(0.7)", "affine(log, 0.5, 2)", "package.module:function".

A name is a word, or a word with arguments in parentheses; an argument is a name, a number, or a pair of numbers.
`transforms` holds the words.
"""

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

from qrpo_jax.errors import UserError, shown
from qrpo_jax.transform_record import Transform

Families = Mapping[str, Callable[..., Transform]]


def read(text: str, transforms: Mapping[str, Transform], families: Families, allowed: str) -> Transform:
    """The transform that a name describes.

    Args:
      text: the name.
      transforms: the words without arguments.
      families: the words with arguments, each with the constructor that receives them.
      allowed: list of the allowed names, for the message.

    Raises:
      UserError: the text is no such name, or a constructor rejects the arguments.

    >>> double = lambda inner: inner._replace(name=f"double({inner.name})")
    >>> read("double(double(one))", {"one": Transform("one", abs, abs)}, {"double": double}, "").name
    'double(double(one))'
    """
    try:
        # Python would read the hyphen of a word as a minus.
        tree = ast.parse(re.sub(r"(?<=[a-z])-(?=[a-z])", "_", text.strip()), mode="eval").body
        return _build(tree, transforms, families)
    except (SyntaxError, KeyError, TypeError, RecursionError, MemoryError):
        raise UserError(f"transform is {shown(text)}; allowed: {allowed}", about="transform") from None
    except ValueError as error:
        raise UserError(f"transform is {text!r}: {error}", about="transform") from None


def _build(tree: ast.expr, transforms: Mapping[str, Transform], families: Families) -> Transform:
    if isinstance(tree, ast.Name):
        return transforms[tree.id.replace("_", "-")]
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.keywords:
        arguments = [
            _build(argument, transforms, families) if isinstance(argument, ast.Name | ast.Call) else _literal(argument)
            for argument in tree.args
        ]
        return families[tree.func.id.replace("_", "-")](*arguments)
    raise TypeError("neither a word nor a word with arguments")


def _literal(tree: ast.expr) -> Any:
    try:
        return ast.literal_eval(tree)
    except ValueError:
        raise TypeError("neither a name nor a literal") from None


def of_numbers(make: Callable[..., Transform], *, transforms: int = 0) -> Callable[..., Transform]:
    """A constructor that accepts numbers only, after as many transforms as it takes.

    Args:
      make: the constructor.
      transforms: how many of its first arguments are transforms.

    Returns:
      The constructor; it raises TypeError for any other argument.

    >>> of_numbers(lambda p: p)("0.7")
    Traceback (most recent call last):
    TypeError: not a number
    """

    def checked(*arguments: Any) -> Transform:
        if not all(isinstance(argument, Transform) for argument in arguments[:transforms]):
            raise TypeError("not a transform")
        numbers = arguments[transforms:]
        if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
            raise TypeError("not a number")
        return make(*arguments)

    return checked


def shortest(x: float) -> str:
    """The shortest text that reads back as exactly x, for names that contain numbers.

    >>> shortest(2.0), shortest(1 / 3)
    ('2', '0.3333333333333333')
    """
    return f"{x:g}" if float(f"{x:g}") == x else repr(float(x))
