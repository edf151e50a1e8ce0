//! The limits of a graph's memory and work. A file of a few hundred bytes can ask for terabytes. Therefore every
//! operator says what it is about to allocate and to compute, and the sum is checked before.

use crate::error::{Result, bail};
use crate::weights::Array;

/// The most nodes: more than any face network has.
pub const MAX_NODES: usize = 1 << 16;
/// The most names of inputs and outputs over all nodes: more than any face network has.
pub const MAX_NAMES: usize = 1 << 20;
/// The most dimensions of a value.
pub const MAX_RANK: usize = 16;
/// The most elements of a value, even where the budget allows more.
const MAX_ELEMENTS: u64 = 1 << 36;

/// The memory and work of one operator call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Elements of the outputs, unless they are views.
    pub elements: u64,
    /// Elements that are needed only during the call.
    pub scratch: u64,
    /// Elements visited or multiplied.
    pub work: u64,
}

impl Cost {
    /// The cost of a view.
    pub const FREE: Cost = Cost {
        elements: 0,
        scratch: 0,
        work: 0,
    };

    /// The cost of a value of `elements`, each computed once.
    pub fn of(elements: u64) -> Cost {
        Cost {
            elements,
            scratch: 0,
            work: elements,
        }
    }

    /// The same cost with `scratch` elements during the call.
    #[must_use]
    pub fn with_scratch(self, scratch: u64) -> Cost {
        Cost { scratch, ..self }
    }

    /// The same cost with `steps` steps per element.
    #[must_use]
    pub fn times(self, steps: u64) -> Cost {
        Cost {
            work: self.work.saturating_mul(steps),
            ..self
        }
    }
}

/// The number of elements of a shape; `u64::MAX` where it overflows.
pub fn count(sizes: &[i64]) -> u64 {
    let sizes = sizes.iter().map(|&size| u64::try_from(size).unwrap_or(0));
    sizes.fold(1, u64::saturating_mul)
}

/// Checks a shape: no negative size, at most [`MAX_RANK`] dimensions, and at most `MAX_ELEMENTS` elements, where a
/// size of 0 counts as 1.
///
/// # Errors
/// `Limit`.
pub fn limited(sizes: Vec<i64>) -> Result<Vec<i64>> {
    let hidden = sizes.iter().map(|&size| size.max(1)).collect::<Vec<_>>();
    if sizes.len() > MAX_RANK || sizes.iter().any(|&size| size < 0) || count(&hidden) > MAX_ELEMENTS
    {
        let shown = &sizes[..sizes.len().min(MAX_RANK)];
        bail!(
            Limit,
            "a value of {} dimensions, {shown:?}; the most is {MAX_RANK} dimensions and {MAX_ELEMENTS} elements",
            sizes.len()
        );
    }
    Ok(sizes)
}

/// Checks that an array of a file is one that the graph may hold, before it becomes a tensor.
///
/// # Errors
/// `Limit`.
pub fn limited_array(array: &Array) -> Result<()> {
    let size = |&size: &usize| i64::try_from(size).unwrap_or(-1);
    limited(array.shape.iter().map(size).collect()).map(drop)
}

/// The limits of a run, and what has been taken so far.
#[derive(Debug)]
pub struct Budget {
    live: (u64, u64),
    made: (u64, u64),
    work: (u64, u64),
}

impl Budget {
    /// For values that are computed from constants alone. The file has constants of `elements`; allowed are twice as
    /// many elements plus 2²⁴, and 2⁹ steps per element plus 2³⁰.
    pub fn folding(elements: u64) -> Budget {
        let made = elements.saturating_mul(2).saturating_add(1 << 24);
        let work = elements.saturating_mul(1 << 9).saturating_add(1 << 30);
        Budget {
            live: (0, made),
            made: (0, made),
            work: (0, work),
        }
    }

    /// For a run over inputs of `elements`. Per element of the input, 2⁸ elements at a time, 2¹³ elements in all and
    /// 2²¹ steps are allowed, plus 2²⁴ elements and 2³⁰ steps. The largest recognisers (IResNet-200, ViT-L) take a
    /// third of that.
    pub fn running(elements: u64) -> Budget {
        let times = |factor: u64, more: u64| elements.saturating_mul(factor).saturating_add(more);
        Budget {
            live: (0, times(1 << 8, 1 << 24)),
            made: (0, times(1 << 13, 1 << 24)),
            work: (0, times(1 << 21, 1 << 30)),
        }
    }

    /// Takes the cost of a call off the budget.
    ///
    /// # Errors
    /// `Limit`, and then nothing may be allocated.
    pub fn take(&mut self, cost: Cost) -> Result<()> {
        let meanwhile = self
            .live
            .0
            .saturating_add(cost.elements)
            .saturating_add(cost.scratch);
        self.made.0 = self.made.0.saturating_add(cost.elements);
        self.work.0 = self.work.0.saturating_add(cost.work);
        let parts = [
            ("elements at a time", meanwhile, self.live.1),
            ("elements in all", self.made.0, self.made.1),
            ("steps", self.work.0, self.work.1),
        ];
        for (what, wanted, most) in parts {
            if wanted > most {
                bail!(
                    Limit,
                    "the model asks for {wanted} {what}, and {most} are allowed for a model and an input of this size"
                );
            }
        }
        Ok(())
    }

    /// Counts the elements of a value that is kept. Those of a view count too, because it keeps the viewed value.
    pub fn hold(&mut self, elements: u64) {
        self.live.0 = self.live.0.saturating_add(elements);
    }

    /// Gives back the elements of a value that is dropped.
    pub fn release(&mut self, elements: u64) {
        self.live.0 = self.live.0.saturating_sub(elements);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_that_cannot_be_is_refused() {
        assert!(limited(vec![2, 0, 3]).is_ok());
        for bad in [
            vec![-1],
            vec![0, 1 << 62, 1 << 62],
            vec![1; 17],
            vec![i64::MAX, i64::MAX],
        ] {
            assert_eq!(limited(bad).unwrap_err().status(), 102);
        }
        assert_eq!(count(&[i64::MAX, i64::MAX]), u64::MAX);
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_but_not_for_ever() {
        let most = Cost::of(1 << 24);
        let mut small = Budget::running(0);
        assert!(small.take(Cost::of((1 << 24) + 1)).is_err());
        let mut full = Budget::running(0);
        full.hold(1);
        assert!(full.take(most).is_err());
        full.release(1);
        let mut large = Budget::running(1 << 20);
        let runs = (0..1100).take_while(|_| large.take(most).is_ok()).count();
        assert!((500..600).contains(&runs), "{runs}");
    }
}
