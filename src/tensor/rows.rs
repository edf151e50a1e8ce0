//! Rows of a batch: selects them, puts them back, and checks them for numbers that are not finite.

use super::transfer::{numbers, upload};
use crate::error::Result;
use tch::{Device, Tensor};

/// The given rows of `batch`. Where these are all rows in order, the result is a view of the batch. The gradient flows
/// back to `batch`.
pub fn select_rows(batch: &Tensor, rows: &[usize]) -> Result<Tensor> {
    if are_all(rows, batch) {
        return Ok(batch.shallow_clone());
    }
    Ok(batch.f_index_select(0, &index(rows, batch.device())?)?)
}

/// `batch` with `part` in place of the given rows. Where these are all rows in order, the result is `part`.
pub fn place_rows(batch: &Tensor, rows: &[usize], part: &Tensor) -> Result<Tensor> {
    if are_all(rows, batch) {
        return Ok(part.shallow_clone());
    }
    Ok(batch.f_index_copy(0, &index(rows, batch.device())?, part)?)
}

/// Per row whether all its numbers are finite: `[N]` of bool on the batch's device.
pub fn finite_rows(batch: &Tensor) -> Result<Tensor> {
    let finite = batch.f_isfinite()?;
    if finite.dim() < 2 {
        return Ok(finite);
    }
    Ok(finite.f_flatten(1, -1)?.f_all_dim(1, false)?)
}

/// The values of a tensor of bool. It waits for the tensor's device.
pub fn flags(values: &Tensor) -> Result<Vec<bool>> {
    Ok(numbers(values)?.into_iter().map(|v| v != 0.0).collect())
}

fn are_all(rows: &[usize], batch: &Tensor) -> bool {
    rows.len() as i64 == batch.size()[0] && rows.is_sorted_by(|a, b| a < b)
}

fn index(rows: &[usize], device: Device) -> Result<Tensor> {
    let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
    upload(&rows, device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn rows_are_picked_and_put_back() {
        let batch = Tensor::f_arange(6, (Kind::Float, Device::Cpu)).unwrap();
        let batch = batch.f_view([3, 2]).unwrap();
        let numbers = |t: Tensor| Vec::<f32>::try_from(t.f_reshape(-1).unwrap()).unwrap();
        let picked = select_rows(&batch, &[2, 0]).unwrap();
        assert_eq!(numbers(picked.shallow_clone()), [4., 5., 0., 1.]);
        let zeros = batch.f_zeros_like().unwrap();
        let back = place_rows(&zeros, &[2, 0], &picked).unwrap();
        assert_eq!(numbers(back), [0., 1., 0., 0., 4., 5.]);
        let twice = select_rows(&batch, &[1, 1, 1]).unwrap();
        assert_eq!(numbers(twice), [2., 3., 2., 3., 2., 3.]);
    }

    #[test]
    fn a_row_with_one_bad_number_is_not_finite() {
        let batch = Tensor::f_from_slice(&[1.0, f64::NAN, 2.0, 3.0]).unwrap();
        let finite = |t: &Tensor| flags(&finite_rows(t).unwrap()).unwrap();
        assert_eq!(finite(&batch), [true, false, true, true]);
        assert_eq!(finite(&batch.f_view([2, 1, 2]).unwrap()), [false, true]);
    }
}
