//! Converts between tensors and the arrays of a weights file.

use super::transfer::to_host;
use crate::error::{Result, bail};
use crate::weights::{Array, Dtype, buffer};
use tch::{Device, Kind, Tensor};

/// Copies an array to a tensor of its own dtype on `device`.
pub fn from_array(array: &Array, device: Device) -> Result<Tensor> {
    let kind = match array.dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::Bf16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        Dtype::Bool => Kind::Bool,
    };
    let shape: Vec<i64> = array.shape.iter().map(|&n| n as i64).collect();
    if shape.iter().product::<i64>() == 0 {
        return Ok(Tensor::f_zeros(&shape, (kind, device))?);
    }
    if array.data.len() as i64 != shape.iter().product::<i64>() * kind.elt_size_in_bytes() as i64 {
        bail!(
            Internal,
            "array of {shape:?} holds {} bytes",
            array.data.len()
        );
    }
    Ok(Tensor::f_from_data_size(&array.data, &shape, kind)?.f_to_device(device)?)
}

/// Copies a tensor's elements to the host.
pub fn to_array(tensor: &Tensor) -> Result<Array> {
    let dtype = match tensor.kind() {
        Kind::Double => Dtype::F64,
        Kind::Float => Dtype::F32,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::Bf16,
        Kind::Int64 => Dtype::I64,
        Kind::Int => Dtype::I32,
        Kind::Int16 => Dtype::I16,
        Kind::Int8 => Dtype::I8,
        Kind::Uint8 => Dtype::U8,
        Kind::Bool => Dtype::Bool,
        other => bail!(Internal, "no file has tensors of {other:?}"),
    };
    let elements = tensor.numel();
    let mut data = buffer(elements * dtype.size())?;
    data.resize(elements * dtype.size(), 0);
    let host = to_host(tensor)?.f_contiguous()?;
    host.f_copy_data_u8(&mut data, elements)?;
    Ok(Array {
        dtype,
        shape: tensor.size().into_iter().map(|n| n as usize).collect(),
        data,
    })
}
