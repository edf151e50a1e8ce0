//! Operators on several values that are broadcast to each other.

use super::budget::{Cost, count, limited};
use super::node::{Call, Class, Operator, class, one, op};
use crate::error::{Result, bail};
use tch::{Device, Kind, Tensor};

/// This file's operators.
pub const OPERATORS: &[Operator] = &[
    op("Add", &[], numbers, |c| binary(c, Tensor::f_add)),
    op("Sub", &[], numbers, |c| binary(c, Tensor::f_sub)),
    op("Mul", &[], numbers, |c| binary(c, Tensor::f_mul)),
    op("Div", &[], numbers, div),
    op("Mod", &["fmod"], numbers, modulo),
    op("Pow", &[], power_cost, power),
    op("Sum", &[], numbers, |c| many(c, Tensor::f_add)),
    op("Max", &[], numbers, |c| many(c, Tensor::f_maximum)),
    op("Min", &[], numbers, |c| many(c, Tensor::f_minimum)),
    op("Equal", &[], alike, |c| binary(c, Tensor::f_eq_tensor)),
    op("Greater", &[], numbers, |c| binary(c, Tensor::f_gt_tensor)),
    op("GreaterOrEqual", &[], numbers, |c| {
        binary(c, Tensor::f_ge_tensor)
    }),
    op("Less", &[], numbers, |c| binary(c, Tensor::f_lt_tensor)),
    op("LessOrEqual", &[], numbers, |c| {
        binary(c, Tensor::f_le_tensor)
    }),
    op("Where", &[], select_cost, select),
];

type Two = fn(&Tensor, &Tensor) -> std::result::Result<Tensor, tch::TchError>;

/// The shape that values of these shapes are broadcast to.
///
/// # Errors
/// `Format` where they cannot be.
pub fn broadcast(shapes: &[Vec<i64>]) -> Result<Vec<i64>> {
    let rank = shapes.iter().map(Vec::len).max().unwrap_or(0);
    let mut all = vec![1; rank];
    for shape in shapes {
        for (to, &size) in all[rank - shape.len()..].iter_mut().zip(shape) {
            match (*to, size) {
                (a, b) if a == b => {}
                (1, b) => *to = b,
                (_, 1) => {}
                _ => bail!(
                    Format,
                    "values of shapes {shapes:?} cannot be broadcast to each other"
                ),
            }
        }
    }
    limited(all)
}

/// The cost of an operator whose inputs from `first` on are of one class and broadcast to each other.
fn alike_from(call: &Call, first: usize) -> Result<Cost> {
    let inputs = (first..call.inputs.len().max(first + 1))
        .map(|at| call.full(at))
        .collect::<Result<Vec<_>>>()?;
    if let Some(other) = inputs.iter().find(|x| class(x) != class(inputs[0])) {
        bail!(
            Format,
            "values of {:?} and {:?} together",
            inputs[0].kind(),
            other.kind()
        );
    }
    // The inputs are broadcast one after the other, so that thousands of inputs need no list of shapes.
    let mut shape = inputs[0].size();
    for x in &inputs[1..] {
        shape = broadcast(&[shape, x.size()])?;
    }
    Ok(Cost::of(count(&shape)).times(inputs.len() as u64))
}

fn alike(call: &Call) -> Result<Cost> {
    alike_from(call, 0)
}

fn numbers(call: &Call) -> Result<Cost> {
    if class(call.full(0)?) == Class::Truth {
        bail!(Format, "input 0: expected numbers, got truth values");
    }
    let cost = alike(call)?;
    Ok(cost.with_scratch(cost.elements))
}

fn power_cost(call: &Call) -> Result<Cost> {
    let (x, exponent) = (call.full(0)?, call.full(1)?);
    let whole = class(x) == Class::Integer && class(exponent) == Class::Float;
    if class(x) == Class::Truth || class(exponent) == Class::Truth || whole {
        bail!(
            Format,
            "{:?} to the power of {:?}",
            x.kind(),
            exponent.kind()
        );
    }
    Ok(Cost::of(count(&broadcast(&[x.size(), exponent.size()])?)))
}

fn power(call: &Call) -> Result<Vec<Tensor>> {
    let (x, exponent) = (call.input(0)?, call.input(1)?);
    if class(x) == Class::Integer {
        let negative = exponent.f_lt_tensor(&exponent.f_zeros_like()?)?.f_any()?;
        if negative.f_int64_value(&[])? != 0 {
            bail!(Operator, "an integer to a negative power");
        }
    }
    binary(call, Tensor::f_pow)
}

/// Both operands on one device. Shape arithmetic that was cast to floats comes from the CPU.
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

/// An integer divisor in which −1 is replaced by 1, and the places where it was. On most machines the division of the
/// smallest integer by −1 ends the process, as a division by zero does.
fn divisor(b: &Tensor) -> Result<(Tensor, Tensor)> {
    let zero = b.f_eq_tensor(&b.f_zeros_like()?)?.f_any()?;
    if zero.f_int64_value(&[])? != 0 {
        bail!(Format, "a division of integers by zero");
    }
    let minus = b.f_eq_tensor(&b.f_ones_like()?.f_neg()?)?;
    Ok((b.f_ones_like()?.f_where_self(&minus, b)?, minus))
}

fn div(call: &Call) -> Result<Vec<Tensor>> {
    let (a, b) = together(call.input(0)?, call.input(1)?)?;
    if class(&a) == Class::Float {
        return one(a.f_div(&b));
    }
    let (safe, minus) = divisor(&b)?;
    one(a
        .f_neg()?
        .f_where_self(&minus, &a.f_div_tensor_mode(&safe, "trunc")?))
}

fn modulo(call: &Call) -> Result<Vec<Tensor>> {
    let (a, b) = together(call.input(0)?, call.input(1)?)?;
    let fmod = call.flag("fmod")?;
    if class(&a) == Class::Float {
        // For floats, ONNX defines only the remainder with the sign of the dividend, `fmod`.
        return match fmod {
            true => one(a.f_fmod_tensor(&b)),
            false => bail!(
                Operator,
                "the remainder of floating-point numbers without fmod"
            ),
        };
    }
    // A remainder by −1 equals the one by 1.
    let (safe, _) = divisor(&b)?;
    one(match fmod {
        true => a.f_fmod_tensor(&safe),
        false => a.f_remainder_tensor(&safe),
    })
}

fn select_cost(call: &Call) -> Result<Cost> {
    let condition = call.full(0)?;
    if condition.kind() != Kind::Bool {
        bail!(
            Format,
            "input 0: expected truth values, got {:?}",
            condition.kind()
        );
    }
    alike_from(call, 1)?;
    let shapes = [condition.size(), call.full(1)?.size(), call.full(2)?.size()];
    Ok(Cost::of(count(&broadcast(&shapes)?)))
}

fn select(call: &Call) -> Result<Vec<Tensor>> {
    let (a, b) = together(call.input(1)?, call.input(2)?)?;
    one(a.f_where_self(&call.input(0)?.f_to_device(a.device())?, &b))
}
