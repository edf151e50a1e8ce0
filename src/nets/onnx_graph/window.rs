//! The windows of a convolution or a pool, by ONNX's rules (operators Conv, MaxPool, AveragePool).

use super::budget::{count, limited};
use super::node::Call;
use crate::error::{Result, bail};
use tch::Tensor;

/// The largest kernel, stride, dilation or pad: larger than in any face network.
const MAX_REACH: i64 = 1 << 14;

/// The geometry of the windows. Every list has one number per spatial dimension.
pub struct Window {
    /// Elements of a window.
    pub kernel: Vec<i64>,
    /// Distance from one window to the next.
    pub stride: Vec<i64>,
    /// Pad before the first element.
    pub begin: Vec<i64>,
    /// Pad after the last element.
    pub end: Vec<i64>,
    /// Distance from one element of a window to the next.
    pub dilation: Vec<i64>,
    /// How many windows there are.
    pub output: Vec<i64>,
    /// How far the last window reaches beyond the end pad, which `ceil_mode` allows.
    pub over: Vec<i64>,
}

impl Window {
    /// For a kernel over `x` `[N,C,…]`.
    ///
    /// # Errors
    /// `Format` where the attributes do not fit together or no window fits in, `Limit` where one is huge.
    pub fn read(call: &Call, x: &Tensor, kernel: Vec<i64>, ceil: bool) -> Result<Window> {
        let rank = kernel.len();
        let given = |name: &str, default: i64, length: usize| -> Result<Vec<i64>> {
            Ok(call.ints(name)?.unwrap_or_else(|| vec![default; length]))
        };
        let stride = given("strides", 1, rank)?;
        let dilation = given("dilations", 1, rank)?;
        let pads = given("pads", 0, 2 * rank)?;
        let sizes = x.size();
        let lengths = [stride.len(), dilation.len()] == [rank; 2] && pads.len() == 2 * rank;
        if rank == 0 || sizes.len() != rank + 2 || !lengths {
            bail!(
                Format,
                "kernel {kernel:?}, strides {stride:?}, dilations {dilation:?} and pads {pads:?} over a value of \
                 shape {sizes:?}"
            );
        }
        let steps = kernel.iter().chain(&stride).chain(&dilation);
        if steps.clone().any(|&n| !(1..=MAX_REACH).contains(&n))
            || pads.iter().any(|&n| !(0..=MAX_REACH).contains(&n))
        {
            bail!(
                Limit,
                "kernel {kernel:?}, strides {stride:?}, dilations {dilation:?}: expected 1 to {MAX_REACH}; \
                 pads {pads:?}: expected 0 to {MAX_REACH}"
            );
        }
        let spatial = limited(sizes)?.split_off(2);
        let mut window = Window {
            begin: pads[..rank].to_vec(),
            end: pads[rank..].to_vec(),
            output: vec![0; rank],
            over: vec![0; rank],
            kernel,
            stride,
            dilation,
        };
        let mode = call.text("auto_pad", "NOTSET")?;
        if !matches!(mode, "NOTSET" | "VALID" | "SAME_UPPER" | "SAME_LOWER") {
            bail!(Operator, "auto_pad {mode}");
        }
        for (i, &size) in spatial.iter().enumerate() {
            let (stride, reach) = (window.stride[i], window.reach(i));
            match mode {
                "VALID" => (window.begin[i], window.end[i]) = (0, 0),
                "SAME_UPPER" | "SAME_LOWER" => {
                    let windows = (size + stride - 1) / stride;
                    let total = ((windows - 1) * stride + reach - size).max(0);
                    let (small, large) = (total / 2, total - total / 2);
                    (window.begin[i], window.end[i]) = match mode {
                        "SAME_UPPER" => (small, large),
                        _ => (large, small),
                    };
                }
                _ => {}
            }
            let room = size + window.begin[i] + window.end[i] - reach;
            if room < 0 {
                bail!(
                    Format,
                    "a window of {reach} elements over {size}, padded to {}",
                    room + reach
                );
            }
            let mut windows = room / stride + 1;
            // The number is rounded up, but the last window must start inside the value or its begin pad.
            if ceil && room % stride != 0 && windows * stride < size + window.begin[i] {
                windows += 1;
            }
            window.output[i] = windows;
            window.over[i] = ((windows - 1) * stride - room).max(0);
        }
        Ok(window)
    }

    /// The length of a window in dimension `i`, from its first to after its last element.
    pub fn reach(&self, i: usize) -> i64 {
        (self.kernel[i] - 1) * self.dilation[i] + 1
    }

    /// Elements of a window over all dimensions.
    pub fn elements(&self) -> u64 {
        count(&self.kernel)
    }

    /// `x` padded with `value`, also as far as the last windows reach beyond the pads. The same windows then need no
    /// pads.
    pub fn padded(&self, x: &Tensor, value: f64) -> Result<Tensor> {
        let ends = self
            .end
            .iter()
            .zip(&self.over)
            .map(|(end, over)| end + over);
        let pads: Vec<i64> = self
            .begin
            .iter()
            .zip(ends)
            .rev()
            .flat_map(|(&b, e)| [b, e])
            .collect();
        match pads.iter().all(|&n| n == 0) {
            true => Ok(x.shallow_clone()),
            false => Ok(x.f_pad(&pads, "constant", value)?),
        }
    }

    /// Whether the pads are the same on both sides, and no window reaches beyond them.
    pub fn is_even(&self) -> bool {
        self.begin == self.end && self.over.iter().all(|&n| n == 0)
    }

    /// Elements of one channel of the padded value of spatial shape `sizes`.
    pub fn padded_elements(&self, sizes: &[i64]) -> u64 {
        let padded: Vec<i64> = sizes
            .iter()
            .enumerate()
            .map(|(i, size)| size + self.begin[i] + self.end[i] + self.over[i])
            .collect();
        count(&padded)
    }
}
