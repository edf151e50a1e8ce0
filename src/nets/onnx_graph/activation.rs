//! Activations and other functions of a single value. Their gradients are finite wherever the function's own is: no
//! branch that is not taken may overflow, because infinity times zero is not a number.

use super::budget::Cost;
use super::node::{Call, Class, Operator, class, elements, one, op, same, scalar};
use crate::error::{Result, bail};
use tch::{Kind, Tensor};

/// This file's operators.
pub const OPERATORS: &[Operator] = &[
    op("Relu", &[], same, relu),
    op("Sigmoid", &[], same, |c| one(c.input(0)?.f_sigmoid())),
    op("Tanh", &[], same, |c| one(c.input(0)?.f_tanh())),
    op("Exp", &[], same, |c| one(c.input(0)?.f_exp())),
    op("Log", &[], same, |c| one(c.input(0)?.f_log())),
    op("Sqrt", &[], same, |c| one(c.input(0)?.f_sqrt())),
    op("Abs", &[], signed, |c| one(c.input(0)?.f_abs())),
    op("Neg", &[], signed, |c| one(c.input(0)?.f_neg())),
    op("Floor", &[], same, |c| one(c.input(0)?.f_floor())),
    op("Ceil", &[], same, |c| one(c.input(0)?.f_ceil())),
    op("Reciprocal", &[], same, |c| one(c.input(0)?.f_reciprocal())),
    op("Not", &[], truth, |c| one(c.input(0)?.f_logical_not())),
    op("Sin", &[], same, |c| one(c.input(0)?.f_sin())),
    op("Cos", &[], same, |c| one(c.input(0)?.f_cos())),
    op("Erf", &[], same, |c| one(c.input(0)?.f_erf())),
    op("Softplus", &[], same, |c| one(c.input(0)?.f_softplus())),
    op("Softsign", &[], same, softsign),
    op("Mish", &[], same, |c| one(c.input(0)?.f_mish())),
    op("Gelu", &["approximate"], same, gelu),
    op("HardSwish", &[], same, |c| one(c.input(0)?.f_hardswish())),
    op("HardSigmoid", &["alpha", "beta"], same, hard_sigmoid),
    op("Elu", &["alpha"], bent, |c| {
        elu(c, c.float("alpha", 1.0)?, 1.0)
    }),
    op("Selu", &["alpha", "gamma"], bent, |c| {
        elu(
            c,
            c.float("alpha", 1.673_263_192_176_819)?,
            c.float("gamma", 1.050_701_022_148_132)?,
        )
    }),
    op("LeakyRelu", &["alpha"], same, leaky_relu),
    op("PRelu", &[], prelu_cost, prelu),
    op("Clip", &["min", "max"], signed, clip),
    op("Identity", &[], super::node::view, |c| {
        Ok(vec![c.input(0)?.shallow_clone()])
    }),
    op(
        "Dropout",
        &["ratio", "seed", "is_test"],
        super::node::view,
        dropout,
    ),
    op("Cast", &["to", "saturate"], cast_cost, cast),
];

/// The cost of an operator over truth values.
fn truth(call: &Call) -> Result<Cost> {
    let x = call.full(0)?;
    if class(x) != Class::Truth {
        bail!(Format, "input 0: expected truth values, got {:?}", x.kind());
    }
    Ok(Cost::of(elements(x)))
}

/// The cost of an operator over floats or integers.
fn signed(call: &Call) -> Result<Cost> {
    let x = call.full(0)?;
    if class(x) == Class::Truth {
        bail!(Format, "input 0: expected numbers, got truth values");
    }
    Ok(Cost::of(elements(x)))
}

/// The cost of an activation that is computed in several steps.
fn bent(call: &Call) -> Result<Cost> {
    let cost = same(call)?;
    Ok(cost.with_scratch(cost.elements.saturating_mul(3)))
}

fn relu(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    one(match call.in_place {
        true => x.shallow_clone().f_relu_(),
        false => x.f_relu(),
    })
}

/// gamma · (max(x, 0) + alpha · (exp(min(x, 0)) − 1)).
fn elu(call: &Call, alpha: f64, gamma: f64) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let number = |value: f64| scalar(value, x.kind());
    let below = x.f_clamp_tensor(None, Some(number(0.0)?))?.f_expm1()?;
    let y = x.f_relu()?.f_add(&below.f_mul(&number(alpha)?)?)?;
    match gamma == 1.0 {
        true => Ok(vec![y]),
        false => one(y.f_mul(&number(gamma)?)),
    }
}

fn softsign(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    one(x.f_div(&x.f_abs()?.f_add(&scalar(1.0, x.kind())?)?))
}

fn gelu(call: &Call) -> Result<Vec<Tensor>> {
    match call.text("approximate", "none")? {
        how @ ("none" | "tanh") => one(call.input(0)?.f_gelu(how)),
        other => bail!(Operator, "approximate {other}"),
    }
}

fn leaky_relu(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let slope = scalar(call.float("alpha", 0.01)?, x.kind())?;
    one(x.f_prelu(&slope.f_reshape([1i64])?.f_to_device(x.device())?))
}

fn hard_sigmoid(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let number = |value: f64| scalar(value, x.kind());
    let line = x
        .f_mul(&number(call.float("alpha", 0.2)?)?)?
        .f_add(&number(call.float("beta", 0.5)?)?)?;
    one(line.f_clamp_tensor(Some(number(0.0)?), Some(number(1.0)?)))
}

/// Whether a PRelu's slopes are one number per channel. Before operator set 7 they always were; later ONNX broadcasts
/// their shape to the value's. mxnet's exports have one number per channel in later sets too, where that cannot be
/// broadcast.
fn per_channel(x: &[i64], slope: &[i64], opset: i64) -> bool {
    let channels = x.get(1).copied().unwrap_or(1);
    let fits = |shape: &[i64]| {
        super::arithmetic::broadcast(&[x.to_vec(), shape.to_vec()]).is_ok_and(|y| y == x)
    };
    match *slope {
        [count] => count == channels && (opset < 7 || x.len() == 2 || !fits(slope)),
        [.., _, _] => {
            let mut lined = vec![1; x.len()];
            match lined.get_mut(1) {
                Some(size) => *size = channels,
                None => return false,
            }
            let missing = x.len().saturating_sub(slope.len());
            let slope = [vec![1; missing], slope.to_vec()].concat();
            slope == lined
        }
        _ => false,
    }
}

fn prelu_cost(call: &Call) -> Result<Cost> {
    let (x, slope) = (call.float_input(0)?, call.float_input(1)?);
    if slope.numel() != 1
        && !per_channel(&x.size(), &slope.size(), call.opset)
        && super::arithmetic::broadcast(&[x.size(), slope.size()])? != x.size()
    {
        bail!(
            Format,
            "slopes of shape {:?} for a value of shape {:?}",
            slope.size(),
            x.size()
        );
    }
    let cost = same(call)?;
    Ok(cost.with_scratch(cost.elements))
}

fn prelu(call: &Call) -> Result<Vec<Tensor>> {
    let (x, slope) = (call.input(0)?, call.input(1)?);
    let slope = slope.f_to_device(x.device())?;
    if slope.numel() == 1 || per_channel(&x.size(), &slope.size(), call.opset) {
        return one(x.f_prelu(&slope.f_reshape([-1i64])?));
    }
    one(x.f_where_self(&x.f_gt_tensor(&scalar(0.0, x.kind())?)?, &x.f_mul(&slope)?))
}

fn clip(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let bound = |at: usize, name: &str| -> Result<Option<f64>> {
        Ok(match call.number(at)? {
            Some(value) => Some(value),
            None if call.node.attributes.contains_key(name) => Some(call.float(name, 0.0)?),
            None => None,
        })
    };
    let (low, high) = (bound(1, "min")?, bound(2, "max")?);
    if class(x) == Class::Float && low == Some(0.0) && high == Some(6.0) {
        return one(match call.in_place {
            true => x.shallow_clone().f_relu6_(),
            false => x.f_relu6(),
        });
    }
    if class(x) == Class::Float && low == Some(0.0) && high.is_none() {
        return relu(call);
    }
    // Integers are bounded by integers, because a double cannot represent the largest ones.
    let value = |at: usize, bound: Option<f64>| -> Result<Option<Tensor>> {
        Ok(match (call.optional(at), bound) {
            (Some(given), _) if class(given) != class(x) => {
                bail!(Format, "input {at}: a bound of another type than the value")
            }
            (Some(given), _) => Some(
                given
                    .f_reshape([1i64])?
                    .f_squeeze_dim(0)?
                    .f_to_device(x.device())?,
            ),
            (None, Some(bound)) if class(x) == Class::Float => Some(scalar(bound, x.kind())?),
            (None, Some(_)) => bail!(Format, "bounds that are attributes, for integers"),
            (None, None) => None,
        })
    };
    let (low, high) = (value(1, low)?, value(2, high)?);
    match (&low, &high) {
        (None, None) => Ok(vec![x.shallow_clone()]),
        _ => one(x.f_clamp_tensor(low, high)),
    }
}

fn dropout(call: &Call) -> Result<Vec<Tensor>> {
    if call.optional(2).is_some_and(|mode| mode.numel() > 0) && call.number(2)? != Some(0.0) {
        bail!(Operator, "training_mode; export the model in eval mode");
    }
    Ok(vec![call.input(0)?.shallow_clone()])
}

fn cast_cost(call: &Call) -> Result<Cost> {
    Ok(Cost::of(elements(call.input(0)?)))
}

fn cast(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    // onnx.proto3, TensorProto.DataType. Integers are kept in 64 bits, after the narrower type has cut them off.
    let kinds: &[Kind] = match call.int("to", 0)? {
        // All of the file's float types become the float type that the model computes in.
        1 | 10 | 11 | 16 if class(x) == Class::Float => &[],
        1 | 10 | 11 | 16 => &[Kind::Float],
        2 => &[Kind::Int64, Kind::Uint8, Kind::Int64],
        3 => &[Kind::Int64, Kind::Int8, Kind::Int64],
        5 => &[Kind::Int64, Kind::Int16, Kind::Int64],
        6 => &[Kind::Int64, Kind::Int, Kind::Int64],
        7 => &[Kind::Int64],
        9 => &[Kind::Bool],
        other => bail!(Operator, "cast to element type {other}"),
    };
    let mut y = x.shallow_clone();
    for &kind in kinds {
        y = y.f_to_kind(kind)?;
    }
    Ok(vec![y])
}
