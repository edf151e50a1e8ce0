//! Small numbers between the host and a device.

use super::stream::checked;
use crate::error::Result;
use std::cell::Cell;
use tch::kind::Element;
use tch::{Device, Kind, Tensor};

// torch/part.cc defines it.
unsafe extern "C" {
    fn facegrad_torch_upload(
        tensor: *const torch_sys::C_tensor,
        device: i32,
    ) -> *mut torch_sys::C_tensor;
}

thread_local! {
    static WAITS: Cell<u64> = const { Cell::new(0) };
}

/// How often this thread has read numbers back from a device. On a GPU, each read waits for the stream.
pub fn waits() -> u64 {
    WAITS.get()
}

/// `values` as a tensor `[n]` on `device`. On a GPU they go through pinned memory, and the host does not wait for the
/// copy; an ordinary copy would wait for everything that is on the stream.
pub fn upload<T: Element>(values: &[T], device: Device) -> Result<Tensor> {
    let host = Tensor::f_from_slice(values)?;
    let Device::Cuda(index) = device else {
        return Ok(host);
    };
    // SAFETY: the tensor is alive; the result is NULL or ours.
    let made = unsafe { facegrad_torch_upload(host.as_ptr(), index as i32) };
    checked(i32::from(made.is_null()))?;
    // SAFETY: not NULL, and nobody else owns it.
    Ok(unsafe { Tensor::from_ptr(made) })
}

/// The tensor on the host, without a graph. It waits for the tensor's device. Every read of what was computed goes through here, so
/// that [`waits`] counts them all.
pub fn to_host(tensor: &Tensor) -> Result<Tensor> {
    WAITS.set(WAITS.get() + 1);
    Ok(tensor.detach().f_to_device(Device::Cpu)?)
}

/// The elements in the order of the rows. It waits for the tensor's device.
pub fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    let host = to_host(tensor)?.f_to_kind(Kind::Double)?;
    Ok(Vec::try_from(host.f_reshape([-1i64])?)?)
}

/// The only element. It waits for the tensor's device.
pub fn number(tensor: &Tensor) -> Result<f64> {
    Ok(to_host(tensor)?.f_double_value(&[])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_as_they_went_up() {
        let up = upload(&[1.5f32, -2.0], Device::Cpu).unwrap();
        let before = waits();
        assert_eq!(numbers(&up).unwrap(), [1.5, -2.0]);
        assert_eq!(number(&up.f_sum(Kind::Double).unwrap()).unwrap(), -0.5);
        assert_eq!(waits() - before, 2);
    }
}
