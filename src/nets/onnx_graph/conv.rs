//! Convolutions, pools, norms and matrix products.

use super::node::{Call, Operator, one};
use crate::error::{Result, bail};
use tch::Tensor;

/// This file's operators.
pub const OPERATORS: &[(&str, Operator)] = &[
    ("Conv", conv),
    ("BatchNormalization", batch_norm),
    ("InstanceNormalization", instance_norm),
    ("Gemm", gemm),
    ("MatMul", |c| one(c.input(0)?.f_matmul(c.input(1)?))),
    ("MaxPool", max_pool),
    ("AveragePool", average_pool),
    ("GlobalAveragePool", |c| {
        global(c, Tensor::f_adaptive_avg_pool2d)
    }),
    ("GlobalMaxPool", |c| {
        global(c, |x, size| {
            x.f_adaptive_max_pool2d(size).map(|pair| pair.0)
        })
    }),
];

/// Kernel geometry: `(kernel, stride, begin pads, end pads, dilation)` per spatial dimension.
struct Window {
    kernel: Vec<i64>,
    stride: Vec<i64>,
    begin: Vec<i64>,
    end: Vec<i64>,
    dilation: Vec<i64>,
}

impl Window {
    fn read(call: &Call, x: &Tensor, kernel: Vec<i64>) -> Result<Window> {
        let rank = kernel.len();
        let ones = || vec![1; rank];
        let stride = call.ints("strides").unwrap_or_else(ones);
        let dilation = call.ints("dilations").unwrap_or_else(ones);
        let pads = call.ints("pads").unwrap_or_else(|| vec![0; 2 * rank]);
        let sizes = x.size();
        if rank == 0
            || sizes.len() != rank + 2
            || stride.len() != rank
            || dilation.len() != rank
            || pads.len() != 2 * rank
            || stride.iter().any(|&s| s < 1)
        {
            bail!(
                Format,
                "a window of rank {rank} over a value of shape {sizes:?}"
            );
        }
        let mut window = Window {
            begin: pads[..rank].to_vec(),
            end: pads[rank..].to_vec(),
            kernel,
            stride,
            dilation,
        };
        match call.text("auto_pad", "NOTSET") {
            "NOTSET" => {}
            "VALID" => {
                window.begin.fill(0);
                window.end.fill(0);
            }
            mode @ ("SAME_UPPER" | "SAME_LOWER") => {
                for i in 0..rank {
                    let (size, stride) = (sizes[i + 2], window.stride[i]);
                    let reach = (window.kernel[i] - 1) * window.dilation[i] + 1;
                    let total = (((size + stride - 1) / stride - 1) * stride + reach - size).max(0);
                    let (small, large) = (total / 2, total - total / 2);
                    let upper = mode == "SAME_UPPER";
                    window.begin[i] = if upper { small } else { large };
                    window.end[i] = if upper { large } else { small };
                }
            }
            other => bail!(Operator, "auto_pad {other}"),
        }
        Ok(window)
    }

    /// The pads that libtorch applies itself, after padding the rest by hand with `value`.
    fn pad(&self, x: &Tensor, value: f64) -> Result<(Tensor, Vec<i64>)> {
        if self.begin == self.end {
            return Ok((x.shallow_clone(), self.begin.clone()));
        }
        let pads: Vec<i64> = self
            .begin
            .iter()
            .zip(&self.end)
            .rev()
            .flat_map(|(&b, &e)| [b, e])
            .collect();
        Ok((
            x.f_pad(&pads, "constant", value)?,
            vec![0; self.begin.len()],
        ))
    }
}

fn conv(call: &Call) -> Result<Vec<Tensor>> {
    let (x, weight) = (call.input(0)?, call.input(1)?);
    let window = Window::read(call, x, weight.size().split_off(2.min(weight.dim())))?;
    let (x, pads) = window.pad(x, 0.0)?;
    let zeros = vec![0; pads.len()];
    one(x.f_convolution(
        weight,
        call.optional(2),
        &window.stride,
        &pads,
        &window.dilation,
        false,
        &zeros,
        call.int("group", 1),
    ))
}

fn batch_norm(call: &Call) -> Result<Vec<Tensor>> {
    if call.int("training_mode", 0) != 0 {
        bail!(Operator, "training_mode; export the model in eval mode");
    }
    one(call.input(0)?.f_batch_norm(
        Some(call.input(1)?),
        Some(call.input(2)?),
        Some(call.input(3)?),
        Some(call.input(4)?),
        false,
        0.0,
        call.float("epsilon", 1e-5),
        false,
    ))
}

fn instance_norm(call: &Call) -> Result<Vec<Tensor>> {
    one(call.input(0)?.f_instance_norm(
        Some(call.input(1)?),
        Some(call.input(2)?),
        None::<&Tensor>,
        None::<&Tensor>,
        true,
        0.0,
        call.float("epsilon", 1e-5),
        false,
    ))
}

fn gemm(call: &Call) -> Result<Vec<Tensor>> {
    let turned = |at: usize, name: &str| -> Result<Tensor> {
        let x = call.input(at)?;
        Ok(if call.int(name, 0) != 0 {
            x.f_transpose(0, 1)?
        } else {
            x.shallow_clone()
        })
    };
    let (a, b) = (turned(0, "transA")?, turned(1, "transB")?);
    let mut y = a.f_matmul(&b)?;
    let alpha = call.float("alpha", 1.0);
    if alpha != 1.0 {
        y = y.f_mul_scalar(alpha)?;
    }
    if let Some(c) = call.optional(2) {
        let beta = call.float("beta", 1.0);
        y = if beta == 1.0 {
            y.f_add(c)?
        } else {
            y.f_add(&c.f_mul_scalar(beta)?)?
        };
    }
    Ok(vec![y])
}

fn max_pool(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let window = Window::read(call, x, call.ints("kernel_shape").unwrap_or_default())?;
    let (x, pads) = window.pad(x, f64::NEG_INFINITY)?;
    let ceil = call.int("ceil_mode", 0) != 0;
    if window.kernel.len() != 2 {
        bail!(Operator, "pooling over {} dimensions", window.kernel.len());
    }
    one(x.f_max_pool2d(
        &window.kernel,
        &window.stride,
        &pads,
        &window.dilation,
        ceil,
    ))
}

fn average_pool(call: &Call) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    let window = Window::read(call, x, call.ints("kernel_shape").unwrap_or_default())?;
    let counted = call.int("count_include_pad", 0) != 0;
    if window.kernel.len() != 2 || window.dilation.iter().any(|&d| d != 1) {
        bail!(
            Operator,
            "average pooling over other than two plain dimensions"
        );
    }
    if window.begin != window.end && !counted {
        bail!(
            Operator,
            "average pooling with uneven pads that are not counted"
        );
    }
    let (x, pads) = window.pad(x, 0.0)?;
    let ceil = call.int("ceil_mode", 0) != 0;
    one(x.f_avg_pool2d(&window.kernel, &window.stride, &pads, ceil, counted, None))
}

fn global(
    call: &Call,
    pool: impl Fn(&Tensor, [i64; 2]) -> std::result::Result<Tensor, tch::TchError>,
) -> Result<Vec<Tensor>> {
    let x = call.input(0)?;
    if x.dim() != 4 {
        bail!(
            Operator,
            "global pooling of a value of shape {:?}",
            x.size()
        );
    }
    one(pool(x, [1, 1]))
}
