"""SQL of the user's own: one query, or one condition. It may say what it likes, but only within its place."""

import re

from shared.errors import Unsupported
from shared.policy.sql.names import TableName

_TOKEN = re.compile(
    r"""
    '(?:[^'])*'                                   # text; a doubled quote reads as two texts side by side
  | "(?:[^"])*"
  | \[(?:[^\]])*\]                                # a name of T-SQL, or an index of an array
  | `(?:[^`])*`
  | --[^\n]*
  | /\*.*?\*/
  | (?<![\w$@\#])(?P<tag>\$(?:[A-Za-z_]\w*)?\$).*?(?P=tag)     # PostgreSQL; within a name, T-SQL's too, it is none
  | (?P<sign>[();'"`]|/\*)
    """,
    re.VERBOSE | re.DOTALL,
)


def checked_query(sql: str, table: TableName) -> str:
    """One SELECT, without a semicolon at its end. Raises Unsupported for several statements."""
    return _checked(sql, f"the query of {table}")


def checked_condition(sql: str) -> str:
    """A condition of a rule. Raises Unsupported."""
    return _checked(sql, "the sql of a rule")


def _checked(sql: str, what: str) -> str:
    text = sql.strip()
    while text.endswith(";"):
        text = text[:-1].rstrip()
    if not text or "\x00" in text:
        raise _unfit(what, "is empty" if not text else "holds a zero character")
    depth = 0
    for match in _TOKEN.finditer(text):
        sign = match["sign"]
        if sign == "(":
            depth += 1
        elif sign == ")":
            depth -= 1
            if depth < 0:
                raise _unfit(what, "closes a parenthesis that it does not open")
        elif sign == ";":
            raise _unfit(what, "has more than one statement; leave away what follows the ';'")
        elif sign is not None:
            raise _unfit(what, f"opens {sign} and does not close it")
    if depth:
        raise _unfit(what, "opens a parenthesis that it does not close")
    return text


def _unfit(what: str, why: str) -> Unsupported:
    return Unsupported(f"{what} {why}", code="sql_unfit")
