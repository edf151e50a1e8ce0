//! Convolutions, norms and matrix products.

use super::budget::{Cost, count};
use super::node::{Call, Class, Operator, class, elements, one, op, same, scalar};
use super::window::Window;
use crate::error::{Result, bail};
use tch::Tensor;

/// This file's operators.
pub const OPERATORS: &[Operator] = &[
    op(
        "Conv",
        &[
            "kernel_shape",
            "strides",
            "pads",
            "auto_pad",
            "dilations",
            "group",
        ],
        conv_cost,
        conv,
    ),
    op(
        "BatchNormalization",
        &["epsilon", "momentum", "training_mode"],
        batch_norm_cost,
        batch_norm,
    ),
    op(
        "InstanceNormalization",
        &["epsilon"],
        norm_cost,
        instance_norm,
    ),
    op(
        "LayerNormalization",
        &["axis", "epsilon", "stash_type"],
        layer_norm_cost,
        layer_norm,
    ),
    op(
        "Gemm",
        &["alpha", "beta", "transA", "transB"],
        gemm_cost,
        gemm,
    ),
    op("MatMul", &[], matmul_cost, |c| {
        one(c.input(0)?.f_matmul(c.input(1)?))
    }),
];

/// Input, weight, windows and groups of a convolution.
fn geometry<'a>(call: &Call<'a>) -> Result<(&'a Tensor, &'a Tensor, Window, i64)> {
    let (x, weight) = (call.float_input(0)?, call.float_input(1)?);
    let sizes = weight.size();
    let Some((&[outputs, inputs], kernel)) = sizes.split_first_chunk() else {
        bail!(Format, "a weight of shape {sizes:?}");
    };
    if let Some(told) = call.ints("kernel_shape")?
        && told != kernel
    {
        bail!(
            Format,
            "kernel_shape {told:?}, but a weight of shape {sizes:?}"
        );
    }
    let window = Window::read(call, x, kernel.to_vec(), false)?;
    let group = call.int("group", 1)?;
    if group < 1 || outputs % group != 0 || inputs.checked_mul(group) != Some(x.size()[1]) {
        bail!(
            Format,
            "{group} groups of a weight of shape {sizes:?} over a value of shape {:?}",
            x.size()
        );
    }
    if let Some(bias) = call.optional(2)
        && (bias.size() != [outputs] || class(bias) != Class::Float)
    {
        bail!(
            Format,
            "a bias of shape {:?} for {outputs} channels",
            bias.size()
        );
    }
    Ok((x, weight, window, group))
}

fn conv_cost(call: &Call) -> Result<Cost> {
    let (x, weight, window, _) = geometry(call)?;
    let (windows, sizes) = (count(&window.output), x.size());
    let channels = count(&weight.size()[..1]);
    let out = count(&sizes[..1])
        .saturating_mul(channels)
        .saturating_mul(windows);
    // Where libtorch computes a convolution as a matrix product, it copies the windows of one image.
    let columns = count(&sizes[1..2])
        .saturating_mul(window.elements())
        .saturating_mul(windows);
    let padded = match window.is_even() {
        true => 0,
        false => count(&sizes[..2]).saturating_mul(window.padded_elements(&sizes[2..])),
    };
    let row = elements(weight) / channels.max(1);
    Ok(Cost::of(out)
        .times(row)
        .with_scratch(columns.saturating_add(padded)))
}

fn conv(call: &Call) -> Result<Vec<Tensor>> {
    let (x, weight, window, group) = geometry(call)?;
    let zeros = vec![0; window.kernel.len()];
    let (x, pads) = match window.is_even() {
        true => (x.shallow_clone(), window.begin.clone()),
        false => (window.padded(x, 0.0)?, zeros.clone()),
    };
    one(x.f_convolution(
        weight,
        call.optional(2),
        &window.stride,
        &pads,
        &window.dilation,
        false,
        &zeros,
        group,
    ))
}

/// A norm over `x` with a scale and a shift of floats.
fn norm_cost(call: &Call) -> Result<Cost> {
    call.float_input(1)?;
    if call.optional(2).is_some() {
        call.float_input(2)?;
    }
    let cost = same(call)?;
    Ok(cost.with_scratch(cost.elements))
}

/// Checks that inputs 1 to `last` are one float per channel.
fn channels(call: &Call, last: usize) -> Result<()> {
    let sizes = call.input(0)?.size();
    for at in 1..=last {
        let values = call.float_input(at)?;
        if sizes.len() < 2 || values.size() != [sizes[1]] {
            bail!(
                Format,
                "input {at} has the shape {:?}, for a value of shape {sizes:?}",
                values.size()
            );
        }
    }
    Ok(())
}

fn batch_norm_cost(call: &Call) -> Result<Cost> {
    channels(call, 4)?;
    norm_cost(call)
}

fn batch_norm(call: &Call) -> Result<Vec<Tensor>> {
    if call.flag("training_mode")? {
        bail!(Operator, "training_mode; export the model in eval mode");
    }
    one(call.input(0)?.f_batch_norm(
        Some(call.input(1)?),
        Some(call.input(2)?),
        Some(call.input(3)?),
        Some(call.input(4)?),
        false,
        0.0,
        call.float("epsilon", 1e-5)?,
        false,
    ))
}

fn instance_norm(call: &Call) -> Result<Vec<Tensor>> {
    channels(call, 2)?;
    one(call.input(0)?.f_instance_norm(
        Some(call.input(1)?),
        Some(call.input(2)?),
        None::<&Tensor>,
        None::<&Tensor>,
        true,
        0.0,
        call.float("epsilon", 1e-5)?,
        false,
    ))
}

fn layer_norm_cost(call: &Call) -> Result<Cost> {
    let x = call.float_input(0)?;
    let from = super::node::axis(call.int("axis", -1)?, x.dim())?;
    let shape = x.size().split_off(from as usize);
    for at in 1..3 {
        if let Some(values) = call.optional(at)
            && super::arithmetic::broadcast(&[shape.clone(), values.size()])? != shape
        {
            bail!(
                Format,
                "input {at} has the shape {:?}, for a norm over {shape:?}",
                values.size()
            );
        }
    }
    norm_cost(call)
}

fn layer_norm(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    if call
        .node
        .outputs
        .iter()
        .skip(1)
        .any(|name| !name.is_empty())
    {
        bail!(
            Operator,
            "the mean and the deviation of a LayerNormalization"
        );
    }
    let from = super::node::axis(call.int("axis", -1)?, x.dim())?;
    let shape = &x.size()[from as usize..];
    // The scale and the shift may be broadcast.
    let whole = |at: usize| -> Result<Option<Tensor>> {
        Ok(match call.optional(at) {
            Some(values) => Some(values.f_expand(shape, false)?.f_contiguous()?),
            None => None,
        })
    };
    one(x.f_layer_norm(
        shape,
        whole(1)?,
        whole(2)?,
        call.float("epsilon", 1e-5)?,
        false,
    ))
}

/// The sizes of two matrices' product.
fn product(a: &[i64], b: &[i64]) -> Result<Cost> {
    // A value of one dimension is a row on the left and a column on the right.
    let (rows, inner) = match *a {
        [] => bail!(Format, "the product of a number"),
        [inner] => (1, inner),
        [.., rows, inner] => (rows, inner),
    };
    let (height, columns) = match *b {
        [] => bail!(Format, "the product of a number"),
        [height] => (height, 1),
        [.., height, columns] => (height, columns),
    };
    if inner != height {
        bail!(Format, "the product of values of shapes {a:?} and {b:?}");
    }
    let stack = |sizes: &[i64]| sizes[..sizes.len().saturating_sub(2)].to_vec();
    let stacks = super::arithmetic::broadcast(&[stack(a), stack(b)])?;
    let depth = count(&stacks);
    let out = depth.saturating_mul(count(&[rows, columns]));
    // libtorch copies an operand that it has to repeat, except where the other operand is a single matrix.
    let sides =
        depth.saturating_mul(count(&[rows, inner]).saturating_add(count(&[inner, columns])));
    let repeats = a.len().min(b.len()) > 2 && stack(a) != stack(b);
    let copies = if repeats { sides } else { 0 };
    Ok(Cost::of(out).times(count(&[inner])).with_scratch(copies))
}

fn matmul_cost(call: &Call) -> Result<Cost> {
    product(&call.float_input(0)?.size(), &call.float_input(1)?.size())
}

/// The two matrices of a Gemm, transposed as its attributes say.
fn matrices(call: &Call) -> Result<[Tensor; 2]> {
    let turned = |at: usize, name: &str| -> Result<Tensor> {
        let x = call.float_input(at)?;
        if x.dim() != 2 {
            bail!(
                Format,
                "input {at}: expected a matrix, got a value of shape {:?}",
                x.size()
            );
        }
        Ok(match call.flag(name)? {
            true => x.f_transpose(0, 1)?,
            false => x.shallow_clone(),
        })
    };
    Ok([turned(0, "transA")?, turned(1, "transB")?])
}

fn gemm_cost(call: &Call) -> Result<Cost> {
    let [a, b] = matrices(call)?;
    let cost = product(&a.size(), &b.size())?;
    if call.optional(2).is_some() {
        let added = call.float_input(2)?.size();
        let shape = vec![a.size()[0], b.size()[1]];
        if super::arithmetic::broadcast(&[shape.clone(), added.clone()])? != shape {
            bail!(
                Format,
                "a bias of shape {added:?} for a product of shape {shape:?}"
            );
        }
    }
    Ok(cost.with_scratch(cost.elements))
}

fn gemm(call: &Call) -> Result<Vec<Tensor>> {
    let [a, b] = matrices(call)?;
    let (alpha, beta) = (call.float("alpha", 1.0)?, call.float("beta", 1.0)?);
    let scaled = |x: Tensor, factor: f64| -> Result<Tensor> {
        Ok(match factor == 1.0 {
            true => x,
            false => x.f_mul(&scalar(factor, x.kind())?)?,
        })
    };
    let y = scaled(a.f_matmul(&b)?, alpha)?;
    match call.optional(2) {
        Some(c) => one(y.f_add(&scaled(c.shallow_clone(), beta)?)),
        None => Ok(vec![y]),
    }
}
