"""What a test holds a message to: the facts in it - paths, keys, numbers, options - whatever its words."""

import re


def facts(*values: object) -> str:
    """A pattern for `match=`: texts that hold all the values, in any order and case; numbers not as part of others."""
    return r"(?is)\A" + "".join(f"(?=.*{_pattern(value)})" for value in values)


def says(text: object, *values: object) -> bool:
    """Whether a text, an error or some of them hold all these values."""
    return re.search(facts(*values), str(text)) is not None


def lines_with(text: str, *values: object) -> list[str]:
    """The lines that hold all these values."""
    return [line for line in text.splitlines() if says(line, *values)]


def numbers(text: str) -> list[int]:
    """The whole numbers in a text, in their order."""
    return [int(digits.replace(",", "")) for digits in re.findall(r"\d+(?:,\d{3})*", text)]


def _pattern(value: object) -> str:
    if type(value) not in (int, float):
        return re.escape(str(value))
    digits = re.escape(str(value)) if isinstance(value, float) else f"(?:{value}|{value:,})"
    return rf"(?<![\w./-])(?<!\d,){digits}(?![\d_]|[.,]\d)"  # a path may hold the same digits
