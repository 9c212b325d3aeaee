"""Tables as CSV in long form: one line for each cell, numbers exact."""

import csv
import io
from collections.abc import Sequence

from lconvnet.report.cells import Table

HEADER = ("table", "row", "column", "mean", "std", "n", "best", "missing")


def to_csv(tables: Sequence[Table]) -> str:
    """Return all cells; of a missing one, `missing` is what would fill it, or `not run`.

    >>> from lconvnet.report.cells import Cell, Row
    >>> table = Table("1", "", ("BCOP",), (Row("MNIST", "Clean", (Cell(97.5, 0.25, 2),)),))
    >>> print(to_csv([table]).splitlines()[1])
    1,"MNIST, Clean",BCOP,97.5,0.25,2,false,
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                place = (table.number, f"{row.block}, {row.label}", column)
                if cell.mean is None:
                    writer.writerow((*place, "", "", 0, "false", cell.fill or "not run"))
                else:
                    writer.writerow((*place, cell.mean, cell.std, cell.n, str(cell.best).lower(), ""))
    return text.getvalue()
