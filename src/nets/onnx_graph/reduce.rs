//! Reductions, and operators that are made of them.

use super::budget::Cost;
use super::node::{
    Call, Class, Operator, axis, class, distinct_axes, elements, one, op, same, scalar,
};
use crate::error::{Result, bail};
use tch::{Kind, Tensor};

/// This file's operators.
pub const OPERATORS: &[Operator] = &[
    op("ReduceMean", REDUCE, floats, |c| {
        reduce(c, |x, d, k| x.f_mean_dim(d, k, None))
    }),
    op("ReduceSum", REDUCE, numbers, |c| {
        reduce(c, |x, d, k| x.f_sum_dim_intlist(d, k, None))
    }),
    op("ReduceMax", REDUCE, numbers, |c| {
        reduce(c, |x, d, k| x.f_amax(d, k))
    }),
    op("ReduceMin", REDUCE, numbers, |c| {
        reduce(c, |x, d, k| x.f_amin(d, k))
    }),
    op("ReduceProd", REDUCE, numbers, |c| {
        reduce(c, |x, axes, keep| {
            // libtorch multiplies along one dimension at a time.
            let mut axes = axes.to_vec();
            axes.sort_unstable_by(|a, b| b.cmp(a));
            let mut product = x.shallow_clone();
            for axis in axes {
                product = product.f_prod_dim_int(axis, keep, None)?;
            }
            Ok(product)
        })
    }),
    op("CumSum", &["exclusive", "reverse"], sums, cumulative_sum),
    // libtorch's norm has the gradient zero at zero; the root of a sum does not.
    op("ReduceL2", REDUCE, floats, |c| {
        reduce(c, |x, d, k| x.f_norm_scalaropt_dim(2.0, d, k))
    }),
    op("ReduceL1", REDUCE, numbers, |c| {
        reduce(c, |x, d, k| x.f_abs()?.f_sum_dim_intlist(d, k, None))
    }),
    op("ReduceSumSquare", REDUCE, numbers, |c| {
        reduce(c, |x, d, k| x.f_mul(x)?.f_sum_dim_intlist(d, k, None))
    }),
    op("LpNormalization", &["axis", "p"], floats, lp_normalization),
    op("Softmax", &["axis"], same, |c| {
        softmax(c, |x, d| x.f_softmax(d, x.kind()))
    }),
    op("LogSoftmax", &["axis"], same, |c| {
        softmax(c, |x, d| x.f_log_softmax(d, x.kind()))
    }),
];

const REDUCE: &[&str] = &["axes", "keepdims", "noop_with_empty_axes"];

type Reduced = std::result::Result<Tensor, tch::TchError>;

fn floats(call: &Call) -> Result<Cost> {
    call.float_input(0)?;
    numbers(call)
}

fn numbers(call: &Call) -> Result<Cost> {
    let x = call.full(0)?;
    if class(x) == Class::Truth {
        bail!(Format, "input 0: expected numbers, got truth values");
    }
    Ok(Cost::of(elements(x)).with_scratch(elements(x)))
}

/// Sums along a dimension, turned around twice where it runs backwards.
fn sums(call: &Call) -> Result<Cost> {
    let cost = numbers(call)?;
    Ok(cost.with_scratch(cost.elements.saturating_mul(3)))
}

fn cumulative_sum(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let Some(&[along]) = call.integers(1)?.as_deref() else {
        bail!(Format, "a cumulative sum without its one axis");
    };
    let along = axis(along, x.dim())?;
    let reverse = call.flag("reverse")?;
    let turned = |x: &Tensor| match reverse {
        true => x.f_flip([along].as_slice()),
        false => Ok(x.shallow_clone()),
    };
    let mut sums = turned(x)?.f_cumsum(along, x.kind())?;
    if call.flag("exclusive")? {
        let first = sums.f_narrow(along, 0, 1)?.f_zeros_like()?;
        let others = sums.f_narrow(along, 0, sums.size()[along as usize] - 1)?;
        sums = Tensor::f_cat(&[first, others], along)?;
    }
    one(turned(&sums))
}

fn reduce(call: &Call, op: impl Fn(&Tensor, &[i64], bool) -> Reduced) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let axes = match call.axes("axes", 1)? {
        Some(axes) if !axes.is_empty() => distinct_axes(&axes, x.dim())?,
        _ if call.flag("noop_with_empty_axes")? => {
            bail!(Operator, "noop_with_empty_axes without axes")
        }
        _ => (0..x.dim() as i64).collect(),
    };
    one(op(x, &axes, call.int("keepdims", 1)? != 0))
}

fn lp_normalization(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let axis = [axis(call.int("axis", -1)?, x.dim())?];
    let norm = match call.int("p", 2)? {
        1 => x.f_abs()?.f_sum_dim_intlist(axis.as_slice(), true, None)?,
        2 => x.f_norm_scalaropt_dim(2.0, axis.as_slice(), true)?,
        other => bail!(Operator, "the norm of order {other}"),
    };
    // A vector of length zero stays as it is.
    let zero = norm.f_eq_tensor(&scalar(0.0, Kind::Float)?)?;
    one(x.f_div(&norm.f_ones_like()?.f_where_self(&zero, &norm)?))
}

fn softmax(call: &Call, op: impl Fn(&Tensor, i64) -> Reduced) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    if call.opset >= 13 {
        return one(op(x, axis(call.int("axis", -1)?, x.dim())?));
    }
    // Before opset 13 everything from the axis on is one dimension.
    let from = axis(call.int("axis", 1)?, x.dim())?;
    let flat = x.f_flatten(from, -1)?;
    one(op(&flat, from)?.f_reshape(x.size()))
}
