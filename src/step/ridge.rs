//! Ridge regression with many features and few rows, in its dual form.
//!
//! With standardised features A (`[n,F]`, divided by √F) and targets Y (`[n,T]`), the prediction for features a is
//! ȳ + a·Aᵀ·(A·Aᵀ + λI)⁻¹·(Y − ȳ) (Saunders, Gammerman, Vovk 1998, "Ridge regression learning algorithm in dual
//! variables").

use crate::error::Result;
use tch::{Kind, Tensor};

/// λ, chosen on photographs that the figures of `benches/window_average.py` do not show.
const PENALTY: f64 = 1e-3;
/// A feature with a smaller deviation than this part of the others' is scaled as if it had this one.
const LEAST_SPREAD: f64 = 1e-2;
/// Rows that differ by less than this, relative to their size, are all alike.
const ALIKE: f64 = 1e-6;

/// A fitted regression. All tensors are f64 on the CPU.
pub(super) struct Ridge {
    mean: Tensor,
    scale: Tensor,
    /// A.
    rows: Tensor,
    /// (A·Aᵀ + λI)⁻¹.
    inverse: Tensor,
    target: Tensor,
    /// (A·Aᵀ + λI)⁻¹·(Y − ȳ).
    weights: Tensor,
    /// The variance that nine of ten rows of the fit do not exceed in the eyes of the others.
    variance: f64,
}

impl Ridge {
    /// Fits targets `[n,T]` to features `[n,F]`, both f64 on the CPU; n ≥ 2. `None` where the rows are all alike.
    pub(super) fn fit(features: &Tensor, targets: &Tensor) -> Result<Option<Ridge>> {
        let (count, width) = (features.size()[0] as usize, features.size()[1] as f64);
        let batch: &[i64] = &[0];
        let mean = features.f_mean_dim(batch, false, Kind::Double)?;
        let off = features.f_sub(&mean)?;
        let variances = off.f_mul(&off)?.f_mean_dim(batch, false, Kind::Double)?;
        let spread = number(&variances.f_mean(Kind::Double)?)?.sqrt();
        let size = number(&features.f_mul(features)?.f_mean(Kind::Double)?)?.sqrt();
        if spread.is_nan() || spread <= ALIKE * size {
            return Ok(None);
        }
        let scale = variances
            .f_sqrt()?
            .f_clamp_min(LEAST_SPREAD * spread)?
            .f_mul_scalar(width.sqrt())?;
        let rows = off.f_div(&scale)?;
        let mut kernel = values(&rows.f_matmul(&rows.f_transpose(0, 1)?)?)?;
        for at in 0..count {
            kernel[at * count + at] += PENALTY;
        }
        let Some(inverse) = inverse(&kernel, count) else {
            return Ok(None);
        };
        // Not the largest: one picture unlike the others must not make all such pictures look known.
        // The rows add up to zero, by which every row would follow from the others; 1/(λn) takes that out.
        let centre = 1.0 / (PENALTY * count as f64);
        let left = |at: usize| (inverse[at * count + at] - centre).max(f64::MIN_POSITIVE);
        let mut variances: Vec<f64> = (0..count).map(|at| 1.0 / left(at)).collect();
        variances.sort_by(f64::total_cmp);
        let variance = variances[(count - 1) * 9 / 10];
        let side = count as i64;
        let inverse = Tensor::f_from_slice(&inverse)?.f_view([side, side])?;
        let target = targets.f_mean_dim(batch, false, Kind::Double)?;
        let weights = inverse.f_matmul(&targets.f_sub(&target)?)?;
        Ok(Some(Ridge {
            mean,
            scale,
            rows,
            inverse,
            target,
            weights,
            variance,
        }))
    }

    /// The targets `[T]` for features `[F]`, and how far these are from the rows of the fit: the variance of the Gaussian
    /// process that the regression is the mean of, in units of the one that nine of ten rows of the fit do not
    /// exceed in the eyes of the others.
    pub(super) fn predict(&self, features: &Tensor) -> Result<(Tensor, f64)> {
        let a = features.f_sub(&self.mean)?.f_div(&self.scale)?;
        let near = self.rows.f_mv(&a)?;
        let known = near.f_mul(&self.inverse.f_mv(&near)?)?;
        let own = number(&a.f_mul(&a)?.f_sum(Kind::Double)?)?;
        let left = own - number(&known.f_sum(Kind::Double)?)? + PENALTY;
        let targets = self.weights.f_transpose(0, 1)?.f_mv(&near)?;
        Ok((targets.f_add(&self.target)?, left / self.variance))
    }
}

fn number(tensor: &Tensor) -> Result<f64> {
    Ok(tensor.f_double_value(&[])?)
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::try_from(tensor.f_reshape(-1)?)?)
}

/// The inverse of a symmetric positive definite matrix by Cholesky's factors; `None` where it is not one.
fn inverse(matrix: &[f64], side: usize) -> Option<Vec<f64>> {
    // Row by row: the factor L in `lower`, and its inverse beside it.
    let mut lower = vec![0.0; side * side];
    let mut inverse = vec![0.0; side * side];
    for row in 0..side {
        for column in 0..=row {
            let (a, b) = (row * side, column * side);
            let done: f64 = (0..column).map(|k| lower[a + k] * lower[b + k]).sum();
            let left = matrix[a + column] - done;
            lower[a + column] = match column == row {
                true if left > 0.0 => left.sqrt(),
                true => return None,
                false => left / lower[b + column],
            };
        }
        let pivot = lower[row * side + row];
        for column in 0..=row {
            let unit = f64::from(u8::from(column == row));
            let done: f64 = (column..row)
                .map(|k| lower[row * side + k] * inverse[k * side + column])
                .sum();
            inverse[row * side + column] = (unit - done) / pivot;
        }
    }
    let mut product = vec![0.0; side * side];
    for row in 0..side {
        for column in 0..=row {
            let terms = (row..side).map(|k| inverse[k * side + row] * inverse[k * side + column]);
            let sum: f64 = terms.sum();
            product[row * side + column] = sum;
            product[column * side + row] = sum;
        }
    }
    Some(product)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: &[[f64; 2]]) -> Tensor {
        let flat: Vec<f64> = values.iter().flatten().copied().collect();
        Tensor::f_from_slice(&flat)
            .unwrap()
            .f_view([-1, 2])
            .unwrap()
    }

    #[test]
    fn a_linear_function_is_found_and_its_limits_are_known() {
        let points = [
            [0.0, 1.0],
            [1.0, 3.0],
            [2.0, -1.0],
            [3.0, 0.5],
            [4.0, 2.0],
            [5.0, -2.0],
        ];
        let of = |p: &[f64; 2]| [2.0 * p[0] - p[1], 7.0];
        let ridge = Ridge::fit(&rows(&points), &rows(&points.map(|p| of(&p)))).unwrap();
        let ridge = ridge.unwrap();
        let (near, novelty) = ridge.predict(&Tensor::from_slice(&[2.5, 0.7])).unwrap();
        let near = values(&near).unwrap();
        assert!(
            (near[0] - 4.3).abs() < 0.01 && (near[1] - 7.0).abs() < 1e-9,
            "{near:?}"
        );
        assert!(novelty <= 1.0, "{novelty}");
        let (_, novelty) = ridge.predict(&Tensor::from_slice(&[900.0, 0.7])).unwrap();
        assert!(novelty > 4.0, "{novelty}");
    }

    #[test]
    fn rows_that_are_all_alike_fit_nothing() {
        let same = rows(&[[1.0, 2.0]; 4]);
        assert!(Ridge::fit(&same, &same).unwrap().is_none());
        let nan = rows(&[[1.0, f64::NAN], [0.0, 1.0]]);
        assert!(
            Ridge::fit(&nan, &same.f_narrow(0, 0, 2).unwrap())
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn an_inverse_times_its_matrix_is_one() {
        let matrix = [4.0, 2.0, 0.6, 2.0, 5.0, 1.0, 0.6, 1.0, 3.0];
        let inverse = inverse(&matrix, 3).unwrap();
        for row in 0..3 {
            for column in 0..3 {
                let sum: f64 = (0..3)
                    .map(|k| matrix[row * 3 + k] * inverse[k * 3 + column])
                    .sum();
                assert!((sum - f64::from(u8::from(row == column))).abs() < 1e-12);
            }
        }
        assert!(super::inverse(&[1.0, 2.0, 2.0, 1.0], 2).is_none());
    }
}
