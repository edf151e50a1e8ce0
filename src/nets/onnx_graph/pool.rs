//! Pools. libtorch's pools take only symmetric pads of at most half a window. Where the number of windows is rounded
//! up, they count the pads differently from ONNX. Where either matters, the value is padded first.

use super::budget::Cost;
use super::node::{Call, Operator, elements, one, op};
use super::window::Window;
use crate::error::{Result, bail};
use tch::{Kind, Tensor};

/// This file's operators.
pub const OPERATORS: &[Operator] = &[
    op(
        "MaxPool",
        &[
            "kernel_shape",
            "strides",
            "pads",
            "auto_pad",
            "ceil_mode",
            "dilations",
            "storage_order",
        ],
        cost,
        max_pool,
    ),
    op(
        "AveragePool",
        &[
            "kernel_shape",
            "strides",
            "pads",
            "auto_pad",
            "ceil_mode",
            "dilations",
            "count_include_pad",
        ],
        cost,
        average_pool,
    ),
    op("GlobalAveragePool", &[], global_cost, |c| {
        global(
            c,
            |x| x.f_adaptive_avg_pool2d([1, 1]),
            |x, d| x.f_mean_dim(d, true, None),
        )
    }),
    op("GlobalMaxPool", &[], global_cost, |c| {
        global(
            c,
            |x| Ok(x.f_adaptive_max_pool2d([1, 1])?.0),
            |x, d| x.f_amax(d, true),
        )
    }),
];

/// The input and its windows. A single spatial dimension becomes two, of which the first has size 1.
fn read(call: &Call) -> Result<(Tensor, Window)> {
    let x = call.float_input(0)?;
    let kernel = call.ints("kernel_shape")?.unwrap_or_default();
    let mut window = Window::read(call, x, kernel, call.flag("ceil_mode")?)?;
    for i in 0..window.kernel.len() {
        if window.begin[i].max(window.end[i]) >= window.reach(i) {
            bail!(
                Format,
                "pads {:?} and {:?} around a window of {:?}",
                window.begin,
                window.end,
                window.kernel
            );
        }
    }
    if call
        .node
        .outputs
        .iter()
        .skip(1)
        .any(|name| !name.is_empty())
    {
        bail!(Operator, "the indices of a pool");
    }
    match window.kernel.len() {
        1 => {
            for (one, values) in [
                (1, &mut window.kernel),
                (1, &mut window.stride),
                (1, &mut window.dilation),
                (1, &mut window.output),
                (0, &mut window.begin),
                (0, &mut window.end),
                (0, &mut window.over),
            ] {
                values.insert(0, one);
            }
            Ok((x.f_unsqueeze(2)?, window))
        }
        2 => Ok((x.shallow_clone(), window)),
        other => bail!(Operator, "pooling over {other} dimensions"),
    }
}

fn cost(call: &Call) -> Result<Cost> {
    let (x, window) = read(call)?;
    let planes = elements(&x) / super::budget::count(&x.size()[2..]).max(1);
    let out = planes.saturating_mul(super::budget::count(&window.output));
    let padded = planes.saturating_mul(window.padded_elements(&x.size()[2..]));
    // Beside every maximum, its place is stored.
    Ok(Cost::of(out.saturating_mul(2))
        .with_scratch(padded)
        .times(window.elements()))
}

/// Removes the dimension that [`read`] added.
fn finish(call: &Call, y: Tensor) -> Result<Vec<Tensor>> {
    match call.input(0)?.dim() {
        3 => one(y.f_squeeze_dim(2)),
        _ => Ok(vec![y]),
    }
}

fn max_pool(call: &Call) -> Result<Vec<Tensor>> {
    let (x, window) = read(call)?;
    let halves = window
        .begin
        .iter()
        .zip(&window.kernel)
        .all(|(&pad, &kernel)| pad <= kernel / 2);
    let (x, pads) = match window.is_even() && halves {
        true => (x, window.begin.clone()),
        false => (window.padded(&x, f64::NEG_INFINITY)?, vec![0, 0]),
    };
    finish(
        call,
        x.f_max_pool2d(
            &window.kernel,
            &window.stride,
            &pads,
            &window.dilation,
            false,
        )?,
    )
}

fn average_pool(call: &Call) -> Result<Vec<Tensor>> {
    let (x, window) = read(call)?;
    if window.dilation.iter().any(|&d| d != 1) {
        bail!(
            Operator,
            "average pooling with dilations {:?}",
            window.dilation
        );
    }
    let counted = call.flag("count_include_pad")?;
    let halves = window
        .begin
        .iter()
        .zip(&window.kernel)
        .all(|(&pad, &kernel)| pad <= kernel / 2);
    if window.is_even() && halves {
        let pads = window.begin.clone();
        return finish(
            call,
            x.f_avg_pool2d(&window.kernel, &window.stride, &pads, false, counted, None)?,
        );
    }
    // The sum of every window is divided by the number of its elements that count.
    let sums = |x: &Tensor| x.f_avg_pool2d(&window.kernel, &window.stride, [0, 0], false, true, 1);
    let over = &window.over;
    let ones = Tensor::f_ones(
        [&[1, 1], &x.size()[2..]].concat(),
        (Kind::Float, x.device()),
    )?;
    let counts = match counted {
        false => window.padded(&ones, 0.0)?,
        true => {
            let padded = [0, 1].map(|i| x.size()[i + 2] + window.begin[i] + window.end[i]);
            let ones = Tensor::f_ones([1, 1, padded[0], padded[1]], (Kind::Float, x.device()))?;
            ones.f_pad([0, over[1], 0, over[0]], "constant", 0.0)?
        }
    };
    let counts = sums(&counts)?.f_to_kind(x.kind())?;
    finish(call, sums(&window.padded(&x, 0.0)?)?.f_div(&counts)?)
}

fn global_cost(call: &Call) -> Result<Cost> {
    let x = call.float_input(0)?;
    if x.dim() < 3 {
        bail!(Format, "global pooling of a value of shape {:?}", x.size());
    }
    Ok(Cost::of(elements(x)))
}

type Reduced = std::result::Result<Tensor, tch::TchError>;

fn global(
    call: &Call,
    plane: impl Fn(&Tensor) -> Reduced,
    other: impl Fn(&Tensor, &[i64]) -> Reduced,
) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let spatial: Vec<i64> = (2..x.dim() as i64).collect();
    match spatial.len() {
        2 => one(plane(x)),
        _ => one(other(x, &spatial)),
    }
}
