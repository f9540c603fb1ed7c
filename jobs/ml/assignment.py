"""The assignment problem: one column for each row, so that what is gained is largest in all."""

import numpy as np


def best_assignment(gain: np.ndarray) -> np.ndarray:
    """int64 [n]: the column of each row of gain [n, m], n <= m. By shortest augmenting paths (Jonker and Volgenant
    1987; the Hungarian method with potentials), exact."""
    cost = -np.asarray(gain, dtype=np.float64)
    n, m = cost.shape
    if n > m:
        raise ValueError(f"{n} rows cannot each have one of {m} columns.")
    potential_row, potential_column = np.zeros(n), np.zeros(m)
    row_of, column_of = np.full(m, -1), np.full(n, -1)
    for start in range(n):
        shortest, before = np.full(m, np.inf), np.full(m, -1)
        done, row, length = np.zeros(m, dtype=bool), start, 0.0
        while True:
            reduced = length + cost[row] - potential_row[row] - potential_column
            nearer = ~done & (reduced < shortest)
            shortest[nearer], before[nearer] = reduced[nearer], row
            column = int(np.where(done, np.inf, shortest).argmin())
            length = float(shortest[column])
            done[column] = True
            if row_of[column] < 0:
                break
            row = int(row_of[column])
        passed = done.copy()
        passed[column] = False
        potential_row[start] += length
        potential_row[row_of[passed]] += length - shortest[passed]
        potential_column[passed] -= length - shortest[passed]
        while True:  # turn the path round
            row = int(before[column])
            row_of[column], column_of[row], column = row, column, int(column_of[row])
            if row == start:
                break
    return column_of
