//! Ridge regression with many features and few rows, in its dual form.
//!
//! With standardised features A (`[n,F]`, divided by √F) and targets Y (`[n,T]`), the prediction for features a is
//! ȳ + a·Aᵀ·(A·Aᵀ + λI)⁻¹·(Y − ȳ) (Saunders, Gammerman, Vovk 1998, "Ridge regression learning algorithm in dual
//! variables").

use crate::error::Result;
use tch::{Device, Kind, Tensor};

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
        let penalty = Tensor::f_eye(count as i64, (Kind::Double, Device::Cpu))?;
        let kernel = rows.f_matmul(&rows.f_transpose(0, 1)?)?;
        let kernel = kernel.f_add(&penalty.f_mul_scalar(PENALTY)?)?;
        // The factor, and 0 where the matrix is positive definite.
        let (factor, failed) = kernel.f_linalg_cholesky_ex(false, false)?;
        if number(&failed.f_to_kind(Kind::Double)?)? != 0.0 {
            return Ok(None);
        }
        let inverse = factor.f_cholesky_inverse(false)?;
        // Not the largest: one picture unlike the others must not make all such pictures look known.
        // The rows add up to zero, by which every row would follow from the others; 1/(λn) takes that out.
        let centre = 1.0 / (PENALTY * count as f64);
        let left = |own: f64| (own - centre).max(f64::MIN_POSITIVE);
        let own = values(&inverse.f_diagonal(0, 0, 1)?)?;
        let mut variances: Vec<f64> = own.into_iter().map(|own| 1.0 / left(own)).collect();
        variances.sort_by(f64::total_cmp);
        let variance = variances[(count - 1) * 9 / 10];
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
}
