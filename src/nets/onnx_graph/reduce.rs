//! Reductions and what is built from them.

use super::node::{Call, Operator, axis, one};
use crate::error::Result;
use tch::Tensor;

/// This file's operators.
pub const OPERATORS: &[(&str, Operator)] = &[
    ("ReduceMean", |c| {
        reduce(c, |x, d, k| x.f_mean_dim(d, k, None))
    }),
    ("ReduceSum", |c| {
        reduce(c, |x, d, k| x.f_sum_dim_intlist(d, k, None))
    }),
    ("ReduceMax", |c| reduce(c, |x, d, k| x.f_amax(d, k))),
    ("ReduceMin", |c| reduce(c, |x, d, k| x.f_amin(d, k))),
    ("ReduceL2", |c| {
        reduce(c, |x, d, k| x.f_norm_scalaropt_dim(2.0, d, k))
    }),
    ("ReduceSumSquare", |c| {
        reduce(c, |x, d, k| x.f_mul(x)?.f_sum_dim_intlist(d, k, None))
    }),
    ("LpNormalization", lp_normalization),
    ("Softmax", softmax),
];

fn reduce(
    call: &Call,
    op: impl Fn(&Tensor, &[i64], bool) -> std::result::Result<Tensor, tch::TchError>,
) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let axes = match call.axes("axes", 1)? {
        Some(axes) if !axes.is_empty() => axes
            .iter()
            .map(|&a| axis(a, x.dim()))
            .collect::<Result<Vec<_>>>()?,
        _ if call.int("noop_with_empty_axes", 0) != 0 => return Ok(vec![x.shallow_clone()]),
        _ => (0..x.dim() as i64).collect(),
    };
    one(op(x, &axes, call.int("keepdims", 1) != 0))
}

fn lp_normalization(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let axis = axis(call.int("axis", -1), x.dim())?;
    let order = call.int("p", 2) as f64;
    let norm = x.f_norm_scalaropt_dim(order, [axis].as_slice(), true)?;
    one(x.f_div(&norm.f_clamp_min(1e-12)?))
}

fn softmax(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    if call.opset >= 13 {
        return one(x.f_softmax(axis(call.int("axis", -1), x.dim())?, x.kind()));
    }
    // Before opset 13 everything from the axis on is one dimension.
    let from = axis(call.int("axis", 1), x.dim())?;
    let flat = x.f_flatten(from, -1)?;
    one(flat.f_softmax(from, x.kind())?.f_view_as(x))
}
