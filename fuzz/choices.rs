//! How an input's bytes become the decisions of a structure-aware target.

/// Decisions out of the input's bytes; zeros after their end.
pub struct Choices<'a>(pub &'a [u8]);

impl Choices<'_> {
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let (&first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        first
    }

    /// One of a table.
    pub fn of<'t, T>(&mut self, table: &'t [T]) -> &'t T {
        &table[usize::from(self.byte()) % table.len()]
    }

    /// Mostly small, sometimes one of the numbers that break things.
    pub fn number(&mut self) -> i64 {
        const EDGES: [i64; 12] = [
            i64::MIN,
            i64::MAX,
            i64::MIN + 1,
            -1 << 32,
            1 << 32,
            i32::MAX as i64,
            i32::MIN as i64,
            1 << 62,
            100_000,
            -100_000,
            65_536,
            1 << 20,
        ];
        match self.byte() {
            edge @ 244.. => EDGES[usize::from(edge - 244)],
            small => i64::from(small as i8) / 8,
        }
    }

    /// Up to eight of them.
    pub fn numbers(&mut self) -> Vec<i64> {
        let count = self.byte() % 9;
        (0..count).map(|_| self.number()).collect()
    }
}
