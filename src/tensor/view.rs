//! Borrowed views of host memory (DLPack's `DLTensor`). A view is validated once, and then read or written as a
//! libtorch tensor without a copy.

use crate::error::{Result, bail};
use std::ffi::c_void;
use tch::{Device, Kind, Tensor};

/// DLPack device type of CPU memory.
const DL_CPU: i32 = 1;
/// DLPack device type of CUDA memory.
const DL_CUDA: i32 = 2;

/// A strided tensor in memory that the host owns: field for field DLPack's `DLTensor` (v1.x), so a
/// `const DLTensor *` can be cast to it. The library borrows it until the call returns and, on
/// CUDA, until the work that the call put on the stream has run.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RawTensor {
    /// First byte of the allocation; may be NULL only for a tensor without elements.
    pub data: *mut c_void,
    /// DLPack device type: 1 = CPU, 2 = CUDA.
    pub device_type: i32,
    /// Ordinal of the device; 0 on the CPU.
    pub device_id: i32,
    /// Number of dimensions.
    pub ndim: i32,
    /// DLPack type code: 0 = signed integer, 1 = unsigned integer, 2 = IEEE float, 4 = bfloat16.
    pub dtype_code: u8,
    /// Bits of one element.
    pub dtype_bits: u8,
    /// Must be 1.
    pub dtype_lanes: u16,
    /// `ndim` sizes.
    pub shape: *mut i64,
    /// `ndim` strides in elements; NULL means C order without gaps.
    pub strides: *mut i64,
    /// Bytes from `data` to the first element.
    pub byte_offset: u64,
}

impl RawTensor {
    /// A struct for a host to fill in.
    pub fn empty() -> Self {
        RawTensor {
            data: std::ptr::null_mut(),
            device_type: DL_CPU,
            device_id: 0,
            ndim: 0,
            dtype_code: 2,
            dtype_bits: 32,
            dtype_lanes: 1,
            shape: std::ptr::null_mut(),
            strides: std::ptr::null_mut(),
            byte_offset: 0,
        }
    }
}

/// Calls `receive` with the memory of a compact float32 tensor, which stays until it returns.
pub fn lent<R>(tensor: &Tensor, receive: impl FnOnce(*const RawTensor) -> R) -> Result<R> {
    if tensor.kind() != Kind::Float || !tensor.is_contiguous() {
        bail!(
            Internal,
            "a tensor to lend is {:?} and not compact",
            tensor.kind()
        );
    }
    let mut shape = tensor.size();
    let (device_type, device_id) = match tensor.device() {
        Device::Cuda(n) => (DL_CUDA, n as i32),
        _ => (DL_CPU, 0),
    };
    let raw = RawTensor {
        data: tensor.data_ptr(),
        device_type,
        device_id,
        ndim: shape.len() as i32,
        shape: shape.as_mut_ptr(),
        ..RawTensor::empty()
    };
    Ok(receive(&raw))
}

/// What a view is used for. Elements of an output must not overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Read only; a stride may be 0 (an expanded tensor).
    Input,
    /// Written; no two elements may share memory.
    Output,
}

/// A validated view. It holds a raw pointer to host memory. The host's call returns only after the view is
/// dropped.
#[derive(Debug, Clone)]
pub struct View {
    name: &'static str,
    data: *mut u8,
    shape: Vec<i64>,
    strides: Vec<i64>,
    kind: Kind,
    device: Device,
}

// SAFETY: the pointer is only dereferenced by libtorch while the host's call, which promised the
// memory, is waiting for the thread that holds the view.
unsafe impl Send for View {}

const MAX_DIMS: i32 = 8;

impl View {
    /// Validates `raw`; errors name the argument `name`.
    ///
    /// # Safety
    /// `raw` is NULL or points to a `RawTensor` whose `shape` and `strides` (unless NULL)
    /// point to `ndim` readable numbers and whose memory holds the elements it describes, until
    /// the view is dropped.
    pub unsafe fn read(name: &'static str, raw: *const RawTensor, usage: Use) -> Result<View> {
        if raw.is_null() {
            bail!(Null, "{name}: expected a tensor, got NULL");
        }
        // SAFETY: not NULL, and the caller promises that it is readable.
        let raw = unsafe { &*raw };
        if raw.ndim < 0 || raw.ndim > MAX_DIMS {
            bail!(
                Shape,
                "{name}: expected 0 to {MAX_DIMS} dimensions, got ndim = {}",
                raw.ndim
            );
        }
        let rank = raw.ndim as usize;
        if rank > 0 && raw.shape.is_null() {
            bail!(Null, "{name}: shape is NULL but ndim = {rank}");
        }
        // SAFETY: the caller promises `ndim` readable numbers behind each.
        let (shape, strides) = unsafe {
            let read = |p: *mut i64| {
                (0..rank)
                    .map(|i| p.add(i).read_unaligned())
                    .collect::<Vec<_>>()
            };
            let shape = if rank == 0 { vec![] } else { read(raw.shape) };
            (shape, (!raw.strides.is_null()).then(|| read(raw.strides)))
        };
        let kind = kind_of(name, raw)?;
        let device = device_of(name, raw)?;
        let (shape, strides) = layout(name, shape, strides, kind, usage)?;
        let elements = shape.iter().product::<i64>();
        let size = kind.elt_size_in_bytes() as u64;
        if elements > 0 {
            if raw.data.is_null() {
                bail!(Null, "{name}: data is NULL but the shape is {shape:?}");
            }
            let address = (raw.data as u64).checked_add(raw.byte_offset);
            match address {
                Some(address) if address.is_multiple_of(size) => {}
                Some(_) => bail!(
                    Layout,
                    "{name}: data + byte_offset is not aligned to its {size}-byte elements"
                ),
                None => bail!(Layout, "{name}: byte_offset {} overflows", raw.byte_offset),
            }
        }
        let data = raw.data.cast::<u8>().wrapping_add(raw.byte_offset as usize);
        Ok(View {
            name,
            data,
            shape,
            strides,
            kind,
            device,
        })
    }

    /// The argument's name in errors.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// Element type.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where the memory is.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The view as a tensor over the host's own memory. It must not outlive the host's call.
    pub fn borrow(&self) -> Result<Tensor> {
        if self.shape.contains(&0) {
            return Ok(Tensor::f_zeros(&self.shape, (self.kind, self.device))?);
        }
        // SAFETY: `read` checked shape, strides, alignment and NULL; the host promised the memory
        // for the time of the call that the view belongs to.
        Ok(unsafe {
            Tensor::f_from_blob(
                self.data,
                &self.shape,
                &self.strides,
                self.kind,
                self.device,
            )?
        })
    }

    /// Copies `source` into the host's memory, converting to the view's dtype.
    pub fn write(&self, source: &Tensor) -> Result<()> {
        if source.size() != self.shape {
            bail!(
                Internal,
                "{}: result has shape {:?}, the output {:?}",
                self.name,
                source.size(),
                self.shape
            );
        }
        if self.shape.contains(&0) {
            return Ok(());
        }
        self.borrow()?.f_copy_(&source.detach())?;
        Ok(())
    }

    /// Checks the sizes; `None` stands for any size. The error shows `what`, such as `[N,3,H,W]`.
    pub fn expect_shape(&self, what: &str, sizes: &[Option<i64>]) -> Result<()> {
        let fits = self.shape.len() == sizes.len()
            && self
                .shape
                .iter()
                .zip(sizes)
                .all(|(&n, want)| want.is_none_or(|want| want == n));
        if !fits {
            bail!(
                Shape,
                "{}: expected {what}, got {:?}",
                self.name,
                self.shape
            );
        }
        Ok(())
    }

    /// Checks that the elements are f64, f32, f16 or bf16: what small host-side numbers may be.
    pub fn expect_numbers(&self) -> Result<()> {
        match self.kind {
            Kind::Double => Ok(()),
            _ => self.expect_float(),
        }
    }

    /// Checks that the elements are f32, f16 or bf16.
    pub fn expect_float(&self) -> Result<()> {
        match self.kind {
            Kind::Float | Kind::Half | Kind::BFloat16 => Ok(()),
            other => bail!(
                Dtype,
                "{}: expected float32, float16 or bfloat16, got {other:?}",
                self.name
            ),
        }
    }

    /// Checks that the memory is on `device`.
    pub fn expect_device(&self, device: Device) -> Result<()> {
        if self.device != device {
            bail!(
                Device,
                "{}: expected a tensor on {}, got one on {}",
                self.name,
                device_name(device),
                device_name(self.device)
            );
        }
        Ok(())
    }
}

/// `cpu` or `cuda:N`, as hosts write it.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".into(),
        Device::Cuda(n) => format!("cuda:{n}"),
        other => format!("{other:?}"),
    }
}

fn kind_of(name: &str, raw: &RawTensor) -> Result<Kind> {
    Ok(match (raw.dtype_code, raw.dtype_bits, raw.dtype_lanes) {
        (2, 32, 1) => Kind::Float,
        (2, 16, 1) => Kind::Half,
        (4, 16, 1) => Kind::BFloat16,
        (2, 64, 1) => Kind::Double,
        (0, 64, 1) => Kind::Int64,
        (0, 32, 1) => Kind::Int,
        (1, 8, 1) => Kind::Uint8,
        (code, bits, lanes) => bail!(
            Dtype,
            "{name}: expected float32, float16 or bfloat16, got DLPack code {code}, {bits} bits, {lanes} lanes"
        ),
    })
}

fn device_of(name: &str, raw: &RawTensor) -> Result<Device> {
    match (raw.device_type, raw.device_id) {
        (DL_CPU, _) => Ok(Device::Cpu),
        (DL_CUDA, id) if id >= 0 => Ok(Device::Cuda(id as usize)),
        (kind, id) => bail!(
            Device,
            "{name}: expected DLPack device 1 (CPU) or 2 (CUDA), got type {kind}, id {id}"
        ),
    }
}

/// Checked shape and strides: no overflow, no negative stride, no overlap in an output.
fn layout(
    name: &str,
    shape: Vec<i64>,
    strides: Option<Vec<i64>>,
    kind: Kind,
    usage: Use,
) -> Result<(Vec<i64>, Vec<i64>)> {
    if let Some(size) = shape.iter().find(|&&n| n < 0) {
        bail!(Shape, "{name}: negative size {size} in shape {shape:?}");
    }
    let mut compact = vec![1i64; shape.len()];
    let mut elements = 1i64;
    for (stride, &size) in compact.iter_mut().zip(&shape).rev() {
        *stride = elements;
        elements = match elements.checked_mul(size.max(1)) {
            Some(n) if n.checked_mul(kind.elt_size_in_bytes() as i64).is_some() => n,
            _ => bail!(
                Shape,
                "{name}: shape {shape:?} holds more bytes than there can be"
            ),
        };
    }
    let Some(strides) = strides else {
        return Ok((shape, compact));
    };
    let mut extent = 0i64;
    for (&size, &stride) in shape.iter().zip(&strides) {
        if stride < 0 {
            bail!(Layout, "{name}: negative stride in {strides:?}");
        }
        extent = match (size - 1)
            .max(0)
            .checked_mul(stride)
            .and_then(|n| n.checked_add(extent))
        {
            Some(n) if n.checked_mul(kind.elt_size_in_bytes() as i64).is_some() => n,
            _ => bail!(
                Layout,
                "{name}: strides {strides:?} over shape {shape:?} overflow"
            ),
        };
    }
    if usage == Use::Output && overlaps(&shape, &strides) {
        bail!(
            Layout,
            "{name}: an output's elements must not share memory, got strides {strides:?} over shape {shape:?}"
        );
    }
    Ok((shape, strides))
}

/// Whether two elements of the layout can lie at one place (sufficient for dense outputs:
/// sorted by stride, every dimension must step past all smaller ones).
fn overlaps(shape: &[i64], strides: &[i64]) -> bool {
    let mut dims: Vec<(i64, i64)> = strides
        .iter()
        .copied()
        .zip(shape.iter().copied())
        .filter(|d| d.1 > 1)
        .collect();
    dims.sort_unstable();
    let mut reach = 0i64;
    for (stride, size) in dims {
        if stride <= reach {
            return true;
        }
        reach += stride * (size - 1);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(data: &mut [f32], shape: &mut [i64], strides: Option<&mut [i64]>) -> RawTensor {
        RawTensor {
            data: data.as_mut_ptr().cast(),
            device_type: DL_CPU,
            device_id: 0,
            ndim: shape.len() as i32,
            dtype_code: 2,
            dtype_bits: 32,
            dtype_lanes: 1,
            shape: shape.as_mut_ptr(),
            strides: strides.map_or(std::ptr::null_mut(), |s| s.as_mut_ptr()),
            byte_offset: 0,
        }
    }

    fn read(raw: &RawTensor, usage: Use) -> Result<View> {
        // SAFETY: every test builds `raw` over arrays that outlive the view.
        unsafe { View::read("x", raw, usage) }
    }

    #[test]
    fn borrows_and_writes_strided_memory() {
        let mut data = [0f32, 1., 2., 3., 4., 5.];
        let (mut shape, mut strides) = ([3i64, 2], [1i64, 3]);
        let raw = raw(&mut data, &mut shape, Some(&mut strides));
        let view = read(&raw, Use::Output).unwrap();
        let tensor = view.borrow().unwrap();
        assert_eq!(
            Vec::<f32>::try_from(tensor.f_reshape(-1).unwrap()).unwrap(),
            [0., 3., 1., 4., 2., 5.]
        );
        view.write(&tensor.f_mul_scalar(2.0).unwrap()).unwrap();
        assert_eq!(data, [0., 2., 4., 6., 8., 10.]);
    }

    #[test]
    fn refuses_what_cannot_be_used() {
        let mut data = [0f32; 8];
        type Case<'a> = (&'a mut [i64], Option<&'a mut [i64]>, i32);
        let cases: [Case; 5] = [
            (&mut [-1, 3], None, 5),
            (&mut [i64::MAX, 4], None, 5),
            (&mut [2, 3], Some(&mut [-3, 1]), 6),
            (&mut [2, 3], Some(&mut [0, 1]), 6),
            (&mut [2, 3], Some(&mut [i64::MAX, 1]), 6),
        ];
        for (shape, strides, status) in cases {
            let raw = raw(&mut data, shape, strides);
            assert_eq!(read(&raw, Use::Output).unwrap_err().status(), status);
        }
        let (mut shape, mut strides) = ([2i64, 3], [0i64, 1]);
        let mut raw = raw(&mut data, &mut shape, Some(&mut strides));
        assert!(read(&raw, Use::Input).is_ok(), "an expanded input is fine");
        raw.dtype_lanes = 4;
        assert_eq!(read(&raw, Use::Input).unwrap_err().status(), 4);
        raw.dtype_lanes = 1;
        raw.byte_offset = 2;
        assert_eq!(read(&raw, Use::Input).unwrap_err().status(), 6);
        raw.byte_offset = 0;
        raw.device_type = 7;
        assert_eq!(read(&raw, Use::Input).unwrap_err().status(), 7);
        raw.data = std::ptr::null_mut();
        raw.device_type = DL_CPU;
        assert_eq!(read(&raw, Use::Input).unwrap_err().status(), 1);
        assert_eq!(
            read(&raw, Use::Input).unwrap_err().message(),
            "x: data is NULL but the shape is [2, 3]"
        );
    }
}
