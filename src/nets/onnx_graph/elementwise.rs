//! Operators that work element by element.

use super::node::{Call, Operator, one};
use crate::error::{Result, bail};
use tch::{Device, Kind, Tensor};

/// This file's operators.
pub const OPERATORS: &[(&str, Operator)] = &[
    ("Relu", |c| one(c.input(0)?.f_relu())),
    ("Sigmoid", |c| one(c.input(0)?.f_sigmoid())),
    ("Tanh", |c| one(c.input(0)?.f_tanh())),
    ("Exp", |c| one(c.input(0)?.f_exp())),
    ("Log", |c| one(c.input(0)?.f_log())),
    ("Sqrt", |c| one(c.input(0)?.f_sqrt())),
    ("Abs", |c| one(c.input(0)?.f_abs())),
    ("Neg", |c| one(c.input(0)?.f_neg())),
    ("Floor", |c| one(c.input(0)?.f_floor())),
    ("Ceil", |c| one(c.input(0)?.f_ceil())),
    ("Reciprocal", |c| one(c.input(0)?.f_reciprocal())),
    ("Erf", |c| one(c.input(0)?.f_erf())),
    ("Softplus", |c| one(c.input(0)?.f_softplus())),
    ("Identity", |c| Ok(vec![c.input(0)?.shallow_clone()])),
    ("Dropout", |c| Ok(vec![c.input(0)?.shallow_clone()])),
    ("HardSwish", |c| one(c.input(0)?.f_hardswish())),
    ("Elu", elu),
    ("LeakyRelu", leaky_relu),
    ("HardSigmoid", hard_sigmoid),
    ("PRelu", prelu),
    ("Clip", clip),
    ("Add", |c| binary(c, Tensor::f_add)),
    ("Sub", |c| binary(c, Tensor::f_sub)),
    ("Mul", |c| binary(c, Tensor::f_mul)),
    ("Div", div),
    ("Pow", |c| binary(c, Tensor::f_pow)),
    ("Sum", |c| many(c, Tensor::f_add)),
    ("Max", |c| many(c, Tensor::f_maximum)),
    ("Min", |c| many(c, Tensor::f_minimum)),
    ("Where", select),
    ("Equal", |c| binary(c, Tensor::f_eq_tensor)),
    ("Greater", |c| binary(c, Tensor::f_gt_tensor)),
    ("Less", |c| binary(c, Tensor::f_lt_tensor)),
    ("Cast", cast),
];

type Two = fn(&Tensor, &Tensor) -> std::result::Result<Tensor, tch::TchError>;

/// Both sides on one device: shape arithmetic made into floats comes from the CPU.
fn together(a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
    let device = if a.device() == Device::Cpu {
        b.device()
    } else {
        a.device()
    };
    let moved = |x: &Tensor| match x.dim() {
        0 => Ok(x.shallow_clone()),
        _ => x.f_to_device(device),
    };
    Ok((moved(a)?, moved(b)?))
}

fn binary(call: &Call, op: Two) -> Result<Vec<Tensor>> {
    let (a, b) = together(call.input(0)?, call.input(1)?)?;
    one(op(&a, &b))
}

fn many(call: &Call, op: Two) -> Result<Vec<Tensor>> {
    let mut all = call.input(0)?.shallow_clone();
    for at in 1..call.inputs.len() {
        let (a, b) = together(&all, call.input(at)?)?;
        all = op(&a, &b)?;
    }
    Ok(vec![all])
}

fn div(call: &Call) -> Result<Vec<Tensor>> {
    let (a, b) = together(call.input(0)?, call.input(1)?)?;
    if a.kind() == Kind::Int64 && b.kind() == Kind::Int64 {
        return one(a.f_div_tensor_mode(&b, "trunc"));
    }
    one(a.f_div(&b))
}

fn elu(call: &Call) -> Result<Vec<Tensor>> {
    let (x, alpha) = (call.input(0)?, call.float("alpha", 1.0));
    one(x.f_where_self(
        &x.f_gt(0.0)?,
        &x.f_exp()?.f_sub_scalar(1.0)?.f_mul_scalar(alpha)?,
    ))
}

fn leaky_relu(call: &Call) -> Result<Vec<Tensor>> {
    let (x, slope) = (call.input(0)?, call.float("alpha", 0.01));
    one(x.f_where_self(&x.f_ge(0.0)?, &x.f_mul_scalar(slope)?))
}

fn hard_sigmoid(call: &Call) -> Result<Vec<Tensor>> {
    let (alpha, beta) = (call.float("alpha", 0.2), call.float("beta", 0.5));
    one(call
        .input(0)?
        .f_mul_scalar(alpha)?
        .f_add_scalar(beta)?
        .f_clamp(0.0, 1.0))
}

fn prelu(call: &Call) -> Result<Vec<Tensor>> {
    let (x, slope) = (call.input(0)?, call.input(1)?);
    let channels = x.size().get(1).copied().unwrap_or(1);
    let (count, sizes) = (slope.numel() as i64, slope.size());
    // [C], [C,1,1] and a single number are what libtorch's own operator takes.
    let per_channel = count == channels
        && (sizes.len() == 1
            || sizes.first() == Some(&channels)
            || sizes.get(1) == Some(&channels));
    if count == 1 || per_channel {
        return one(x.f_prelu(&slope.f_to_device(x.device())?.f_reshape([-1i64])?));
    }
    one(x.f_where_self(&x.f_ge(0.0)?, &x.f_mul(slope)?))
}

fn clip(call: &Call) -> Result<Vec<Tensor>> {
    let bound = |at: usize, name: &str, default: f64| -> Result<f64> {
        Ok(match call.optional(at) {
            Some(value) => value.f_double_value(&[])?,
            None => call.float(name, default),
        })
    };
    let low = bound(1, "min", f64::NEG_INFINITY)?;
    let high = bound(2, "max", f64::INFINITY)?;
    one(call.input(0)?.f_clamp(low, high))
}

fn select(call: &Call) -> Result<Vec<Tensor>> {
    let (a, b) = together(call.input(1)?, call.input(2)?)?;
    one(a.f_where_self(&call.input(0)?.f_to_device(a.device())?, &b))
}

fn cast(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let float = matches!(
        x.kind(),
        Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16
    );
    // onnx.proto3, TensorProto.DataType.
    let kind = match call.int("to", 0) {
        // The model's own float type stands for all of them, whatever the file was written with.
        1 | 10 | 11 | 16 if float => x.kind(),
        1 | 10 | 11 | 16 => Kind::Float,
        2 | 3 | 5 | 6 | 7 => Kind::Int64,
        9 => Kind::Bool,
        other => bail!(Operator, "cast to element type {other}"),
    };
    one(x.f_to_kind(kind))
}
