"""Records as our JSON files hold them, and what a broken rule says.

Strict throughout: no field may be missing, unknown, of another type or out of bounds.
"""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

_BREAKING = {"Cc", "Cs", "Zl", "Zp"}  # controls, lone surrogates, line and paragraph separators


def one_line_only(text: str) -> str:
    """The text, if it is one line.

    Raises:
        ValueError: If it holds a line break or another control character.
    """
    if any(unicodedata.category(character) in _BREAKING for character in text):
        raise ValueError("must be one line without control characters")
    return text


Line = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(one_line_only)]
Count = Annotated[int, Field(ge=0, le=2**40)]


class Record(BaseModel):
    """Frozen, strict, and closed to unknown fields."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    def to_json(self) -> bytes:
        """The bytes of its file; the same record always gives the same bytes."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def first_problem(error: ValidationError) -> str:
    """The first problem as ``field: rule, got value``, and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    field = ".".join(map(str, first["loc"]))
    match first["type"]:
        case "missing":
            rule = "must be present"
        case "extra_forbidden":
            rule = "is not a field of this format"
        case "value_error":
            rule = str(first["ctx"]["error"])
        case _:
            rule = f"{first['msg'].replace('Input should', 'must')}, got {short(first['input'])}"
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{field}: {rule}{more}" if field else f"{rule}{more}"


def short(value: object) -> str:
    """Its repr, cut to 80 characters; the quote or bracket that opens it is closed.

    >>> short("x" * 100)[-8:]
    "xxxx...'"
    """
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"
