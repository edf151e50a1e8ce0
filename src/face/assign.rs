//! One-to-one assignment of faces to people.

/// The one-to-one assignment with the largest sum of `scores[row][column]`, by the Hungarian method with shortest
/// augmenting paths (Jonker and Volgenant 1987). Returns the column of every row; `None` where there are fewer columns
/// than rows and the row gets none. All rows have the same length, and all scores are finite.
pub fn assign(scores: &[Vec<f64>]) -> Vec<Option<usize>> {
    let rows = scores.len();
    let columns = scores.first().map_or(0, Vec::len);
    if rows > columns {
        let turned: Vec<Vec<f64>> = (0..columns)
            .map(|column| scores.iter().map(|row| row[column]).collect())
            .collect();
        let mut owner = vec![None; rows];
        for (column, row) in assign(&turned).into_iter().enumerate() {
            if let Some(row) = row {
                owner[row] = Some(column);
            }
        }
        return owner;
    }
    // Column `columns` stands for the row that is being placed. The cost of a pair minus the potentials of its row and
    // column is never negative, and it is zero for assigned pairs.
    let mut row_potential = vec![0.0; rows];
    let mut column_potential = vec![0.0; columns + 1];
    let mut holder: Vec<Option<usize>> = vec![None; columns + 1];
    for new in 0..rows {
        holder[columns] = Some(new);
        let mut shortest = vec![f64::INFINITY; columns];
        let mut before = vec![columns; columns];
        let mut visited = vec![false; columns + 1];
        let mut here = columns;
        while let Some(row) = holder[here] {
            visited[here] = true;
            for column in (0..columns).filter(|&column| !visited[column]) {
                let cost = -scores[row][column] - row_potential[row] - column_potential[column];
                if cost < shortest[column] {
                    (shortest[column], before[column]) = (cost, here);
                }
            }
            let Some(next) = (0..columns)
                .filter(|&column| !visited[column])
                .min_by(|&a, &b| shortest[a].total_cmp(&shortest[b]))
            else {
                break;
            };
            let step = shortest[next];
            for column in 0..=columns {
                if let (true, Some(row)) = (visited[column], holder[column]) {
                    row_potential[row] += step;
                    column_potential[column] -= step;
                } else if column < columns {
                    shortest[column] -= step;
                }
            }
            here = next;
        }
        // Every row on the path moves to the next column of the path.
        while here != columns {
            let previous = before[here];
            holder[here] = holder[previous];
            here = previous;
        }
    }
    let mut found = vec![None; rows];
    for (column, row) in holder[..columns].iter().enumerate() {
        if let Some(row) = row {
            found[*row] = Some(column);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The largest sum over all assignments, found by trying each.
    fn best(scores: &[Vec<f64>], row: usize, taken: &mut Vec<usize>) -> f64 {
        if row == scores.len() {
            return 0.0;
        }
        let columns = scores[row].len();
        let mut most = f64::NEG_INFINITY;
        // A row may remain without a column only where there are fewer columns than rows.
        if scores.len() - row > columns - taken.len() {
            most = best(scores, row + 1, taken);
        }
        for column in 0..columns {
            if !taken.contains(&column) {
                taken.push(column);
                most = most.max(scores[row][column] + best(scores, row + 1, taken));
                taken.pop();
            }
        }
        most
    }

    proptest! {
        #[test]
        fn no_other_assignment_is_better(
            rows in 0usize..5, columns in 0usize..6, numbers in prop::collection::vec(-1.0..1.0f64, 30)
        ) {
            let scores: Vec<Vec<f64>> = (0..rows)
                .map(|row| numbers[row * columns..(row + 1) * columns].to_vec())
                .collect();
            let found = assign(&scores);
            let mut used: Vec<usize> = found.iter().flatten().copied().collect();
            prop_assert_eq!(used.len(), rows.min(columns));
            used.sort_unstable();
            used.dedup();
            prop_assert_eq!(used.len(), rows.min(columns));
            let sum: f64 = found.iter().enumerate().filter_map(|(r, c)| Some(scores[r][(*c)?])).sum();
            prop_assert!((sum - best(&scores, 0, &mut vec![])).abs() < 1e-9);
        }
    }

    #[test]
    fn the_best_pairs_together_beat_the_best_pair_alone() {
        // Greedily 0–0 (0.9) would leave 1–1 (0.1).
        assert_eq!(
            assign(&[vec![0.9, 0.8], vec![0.7, 0.1]]),
            [Some(1), Some(0)]
        );
        assert_eq!(assign(&[]), []);
        assert_eq!(assign(&[vec![], vec![]]), [None, None]);
    }
}
