//! Audits compare the gradients through windows with those through whole images. Where they differ too much, windows
//! are no longer used.

use crate::batch::{Audit, Decoded};
use crate::config::{DecodeMode, LossConfig, NormStats};
use crate::error::{Result, bail};
use crate::log::{Level, emit, warn_host};
use crate::tensor::numbers;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// What audits still allow. It never rises again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum WindowTrust {
    /// No windows: whole images are decoded.
    Full,
    /// Windows with statistics of the same step.
    Exact,
    /// Windows as configured.
    Configured,
}

/// The configured ways to save work, limited by what audits allow.
pub(super) struct AuditPolicy {
    /// What audits still allow.
    pub(super) trust: WindowTrust,
    /// Whether the host was told that the decoder has no windows.
    told: bool,
    decode: DecodeMode,
    norm_stats: NormStats,
    min_cosine: f64,
    max_norm_ratio: f64,
}

impl AuditPolicy {
    pub(super) fn new(config: &LossConfig) -> Self {
        Self {
            trust: WindowTrust::Configured,
            told: false,
            decode: config.decode,
            norm_stats: config.norm_stats,
            min_cosine: config.audit_cosine,
            max_norm_ratio: config.audit_norm_ratio,
        }
    }

    /// Whether this step decodes windows. `obstacle`: why the decoder cannot.
    ///
    /// # Errors
    /// `Unsupported` where windows alone are asked for and the decoder has none.
    pub(super) fn allow_windows(&mut self, obstacle: Option<&str>) -> Result<bool> {
        match (self.decode, obstacle) {
            (DecodeMode::Full, _) => Ok(false),
            (_, None) => Ok(self.trust > WindowTrust::Full),
            (DecodeMode::WindowOnly, Some(why)) => bail!(
                Unsupported,
                "decode: \"window_only\" is not possible: {why}; \"window\" decodes whole images instead"
            ),
            (DecodeMode::Window, Some(why)) => {
                if !self.told {
                    self.told = true;
                    emit(
                        Level::Info,
                        &format!("decode: {why}, so whole images are decoded"),
                    );
                }
                Ok(false)
            }
        }
    }

    /// Where GroupNorm statistics come from.
    pub(super) fn norm_stats(&self) -> NormStats {
        match self.trust {
            WindowTrust::Configured => self.norm_stats,
            _ => NormStats::Exact,
        }
    }

    /// Takes the audit of sample `number`, decoded as `decoded` says, into account.
    pub(super) fn record(&mut self, number: usize, decoded: Decoded, audit: &Audit) {
        let Audit { cosine, norm_ratio } = *audit;
        let text = format!(
            "audit of sample {number}: window against whole image: cosine {cosine:.4}, norms {norm_ratio:.3}"
        );
        emit(Level::Info, &text);
        let near = (1.0 / self.max_norm_ratio..=self.max_norm_ratio).contains(&norm_ratio);
        // A cosine of NaN fails this comparison, so the audit fails.
        if cosine >= self.min_cosine && near {
            return;
        }
        let (left, what) = match decoded {
            Decoded::WindowExact => (WindowTrust::Full, "whole images are decoded"),
            _ => (WindowTrust::Exact, "statistics are those of the same step"),
        };
        if left < self.trust {
            self.trust = left;
            warn_host!("{text}; {what} from here on");
        }
    }
}

/// Compares two gradients of one sample: through its window and through its whole image. Two gradients of zero
/// agree; both are zero where the face lies outside the image.
pub(super) fn compare_gradients(window: &Tensor, whole: &Tensor) -> Result<Audit> {
    let (a, b) = (
        window.f_to_kind(Kind::Double)?,
        whole.f_to_kind(Kind::Double)?,
    );
    let all = [a.f_norm()?, b.f_norm()?, a.f_mul(&b)?.f_sum(Kind::Double)?];
    let &[na, nb, product] = numbers(&Tensor::f_stack(&all, 0)?)?.as_slice() else {
        bail!(Internal, "three numbers came back as others");
    };
    if na == 0.0 && nb == 0.0 {
        return Ok(Audit {
            cosine: 1.0,
            norm_ratio: 1.0,
        });
    }
    Ok(Audit {
        cosine: product / (na * nb),
        norm_ratio: na / nb,
    })
}
