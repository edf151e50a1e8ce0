//! Ranges of numbers, and writes to parts of a value. Exporters write these for loops and assignments.

use super::budget::{Cost, count, limited};
use super::node::{Call, Class, Operator, class, elements, one, op};
use crate::error::{Result, bail};
use crate::tensor::upload;
use tch::{Device, Kind, Tensor};

/// This file's operators.
pub const OPERATORS: &[Operator] = &[
    op("Range", &[], range_cost, range),
    op("ScatterND", &["reduction"], scatter_cost, scatter),
];

/// One number of an input: start, limit or step of a range.
fn bound(call: &Call, at: usize) -> Result<Tensor> {
    let (x, first) = (call.full(at)?, call.full(0)?);
    if x.numel() != 1 || class(x) == Class::Truth || class(x) != class(first) {
        bail!(
            Format,
            "input {at}: expected one number of the kind of the first, {:?}, got {:?} of shape {:?}",
            first.kind(),
            x.kind(),
            x.size()
        );
    }
    Ok(x.f_to_device(Device::Cpu)?.f_reshape([1i64])?)
}

/// How many numbers a range has: ⌈(limit − start) / step⌉, at least 0.
fn length(call: &Call) -> Result<i64> {
    let bounds = [bound(call, 0)?, bound(call, 1)?, bound(call, 2)?];
    let [start, limit, step] = &bounds;
    let (distance, step) = if class(start) == Class::Integer {
        let whole = |x: &Tensor| x.f_int64_value(&[0]).map(i128::from);
        let (distance, step) = (whole(limit)? - whole(start)?, whole(step)?);
        (distance as f64, step as f64)
    } else {
        let number = |x: &Tensor| x.f_double_value(&[0]);
        (number(limit)? - number(start)?, number(step)?)
    };
    let length = (distance / step).ceil();
    if step == 0.0 || !length.is_finite() {
        bail!(Format, "a range over {distance} in steps of {step}");
    }
    // A length beyond the largest integer becomes the largest integer, which `limited` refuses.
    Ok(limited(vec![(length as i64).max(0)])?[0])
}

fn range_cost(call: &Call) -> Result<Cost> {
    Ok(Cost::of(length(call)? as u64).times(3))
}

fn range(call: &Call) -> Result<Vec<Tensor>> {
    let (start, step) = (bound(call, 0)?, bound(call, 2)?);
    let places = Tensor::f_arange(length(call)?, (start.kind(), Device::Cpu))?;
    one(places.f_mul(&step)?.f_add(&start))
}

/// The indices of a ScatterND: the value's leading dimensions that an index names, and the sizes of the part that each
/// index writes.
struct Places {
    named: Vec<i64>,
    part: Vec<i64>,
    /// How many indices there are.
    count: i64,
}

impl Places {
    fn read(call: &Call) -> Result<Places> {
        let (x, indices, updates) = (call.full(0)?, call.full(1)?, call.full(2)?);
        let (own, shape) = (x.size(), indices.size());
        let depth = shape.last().copied().unwrap_or(0) as usize;
        if class(indices) != Class::Integer || depth == 0 || depth > own.len() {
            bail!(
                Format,
                "indices of {:?} and shape {shape:?} into a value of shape {own:?}",
                indices.kind()
            );
        }
        let (named, part) = own.split_at(depth);
        let wanted = [&shape[..shape.len() - 1], part].concat();
        if updates.size() != wanted || class(updates) != class(x) {
            bail!(
                Format,
                "updates of {:?} and shape {:?}; expected {:?} and {wanted:?}",
                updates.kind(),
                updates.size(),
                x.kind()
            );
        }
        Ok(Places {
            named: named.to_vec(),
            part: part.to_vec(),
            count: count(&shape[..shape.len() - 1]) as i64,
        })
    }

    /// The indices as row numbers of the value, whose named dimensions are flattened to one.
    fn rows(&self, indices: &Tensor) -> Result<Vec<i64>> {
        let flat = indices
            .f_to_device(Device::Cpu)?
            .f_to_kind(Kind::Int64)?
            .f_reshape([-1i64])?;
        let flat = Vec::<i64>::try_from(flat)?;
        let row = |index: &[i64]| {
            let mut row = 0;
            for (&at, &size) in index.iter().zip(&self.named) {
                if at < -size || at >= size {
                    bail!(Format, "index {at} into a dimension of {size}");
                }
                row = row * size + if at < 0 { at + size } else { at };
            }
            Ok(row)
        };
        flat.chunks_exact(self.named.len()).map(row).collect()
    }
}

fn scatter_cost(call: &Call) -> Result<Cost> {
    Places::read(call)?;
    let scratch = elements(call.input(1)?).saturating_mul(3);
    Ok(Cost::of(elements(call.input(0)?)).with_scratch(scratch))
}

fn scatter(call: &Call) -> Result<Vec<Tensor>> {
    let (x, indices, updates) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let places = Places::read(call)?;
    let mut rows = places.rows(indices)?;
    let row = upload(&rows, x.device())?;
    let shape = |n: i64| [&[n], places.part.as_slice()].concat();
    let flat = x.f_reshape(shape(count(&places.named) as i64))?;
    let updates = updates
        .f_to_device(x.device())?
        .f_to_kind(x.kind())?
        .f_reshape(shape(places.count))?;
    let made = match call.text("reduction", "none")? {
        "none" => {
            rows.sort_unstable();
            if rows.windows(2).any(|pair| pair[0] == pair[1]) {
                bail!(Operator, "one place written twice without a reduction");
            }
            flat.f_index_copy(0, &row, &updates)
        }
        "add" => flat.f_index_add(0, &row, &updates),
        other => bail!(Operator, "reduction {other}"),
    };
    one(made?.f_reshape(x.size()))
}
