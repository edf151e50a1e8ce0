//! Windows watched: their gradients against those of the whole image, and what follows.

use super::report::{Audit, Decoded};
use crate::config::{Decode, LossConfig, NormStats};
use crate::error::Result;
use crate::log::{Level, emit, warn_host};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// How far windows are trusted. It only ever falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Degree {
    /// Not at all: whole images.
    Full,
    /// With statistics of the same step.
    Exact,
    /// As configured.
    Configured,
}

/// The configured ways to save work, as far as audits still allow them.
pub(super) struct Trust {
    /// What audits have left of it.
    pub(super) degree: Degree,
    said: bool,
    decode: Decode,
    norm_stats: NormStats,
    cosine: f64,
    norm_ratio: f64,
}

impl Trust {
    pub(super) fn new(config: &LossConfig) -> Self {
        Self {
            degree: Degree::Configured,
            said: false,
            decode: config.decode,
            norm_stats: config.norm_stats,
            cosine: config.audit_cosine,
            norm_ratio: config.audit_norm_ratio,
        }
    }

    /// Whether windows are decoded, by a decoder that can or cannot.
    pub(super) fn windows(&mut self, possible: bool) -> bool {
        if self.decode == Decode::Window && !possible && !self.said {
            self.said = true;
            emit(
                Level::Info,
                "decode: a TorchScript decoder shows none of its layers, so whole images are decoded",
            );
        }
        match self.decode {
            Decode::Full => false,
            Decode::Window => possible && self.degree > Degree::Full,
            // Without windows the decoder says why.
            Decode::WindowOnly => !possible || self.degree > Degree::Full,
        }
    }

    /// Where statistics come from.
    pub(super) fn norm_stats(&self) -> NormStats {
        match self.degree {
            Degree::Configured => self.norm_stats,
            _ => NormStats::Exact,
        }
    }

    /// Takes note of the audit of a sample that was decoded in one way or another.
    pub(super) fn judge(&mut self, number: usize, decoded: Decoded, audit: &Audit) {
        let Audit { cosine, norm_ratio } = *audit;
        let text = format!(
            "audit of sample {number}: window against whole image: cosine {cosine:.4}, norms {norm_ratio:.3}"
        );
        emit(Level::Info, &text);
        let near = (1.0 / self.norm_ratio..=self.norm_ratio).contains(&norm_ratio);
        // NaN is no agreement.
        if cosine >= self.cosine && near {
            return;
        }
        let (left, what) = match decoded {
            Decoded::WindowExact => (Degree::Full, "whole images are decoded"),
            _ => (Degree::Exact, "statistics are those of the same step"),
        };
        if left < self.degree {
            self.degree = left;
            warn_host!("{text}; {what} from here on");
        }
    }
}

/// Two gradients of one sample: that of its window and that of its whole image. Zero in both, as where
/// the face lies outside the picture, is agreement.
pub(super) fn audit(window: &Tensor, whole: &Tensor) -> Result<Audit> {
    let (a, b) = (
        window.f_to_kind(Kind::Double)?,
        whole.f_to_kind(Kind::Double)?,
    );
    let number = |t: Tensor| t.f_double_value(&[]);
    let (na, nb) = (number(a.f_norm()?)?, number(b.f_norm()?)?);
    if na == 0.0 && nb == 0.0 {
        return Ok(Audit {
            cosine: 1.0,
            norm_ratio: 1.0,
        });
    }
    Ok(Audit {
        cosine: number(a.f_mul(&b)?.f_sum(Kind::Double)?)? / (na * nb),
        norm_ratio: na / nb,
    })
}
