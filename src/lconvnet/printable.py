"""Text of files, names and users on a terminal: what would move the cursor or hide text is shown as an escape."""


def printable(text: str) -> str:
    r"""Return a text with every character that is not printable as its escape, so that it is one line.

    >>> printable("a\x1b[31m\n")
    'a\\x1b[31m\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
