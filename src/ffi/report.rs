//! Writes a report to the host's structs.

use super::detector::flat;
use super::read::{struct_size, write_versioned};
use super::types::*;
use crate::batch::{Report, Sample};
use crate::error::{Result, bail};

/// The host's structs that receive a report.
pub(super) struct ReportSink {
    samples: Option<(*mut facegrad_sample, usize)>,
    result: Option<(*mut facegrad_result, usize)>,
}

impl ReportSink {
    /// # Safety
    /// `samples` is NULL or points to `capacity` structs, `result` is NULL or points to one; both are
    /// as long as their `struct_size` says.
    pub unsafe fn read(
        samples: *mut facegrad_sample,
        capacity: usize,
        result: *mut facegrad_result,
        count: i64,
    ) -> Result<ReportSink> {
        if !samples.is_null() && (capacity as u64) < count as u64 {
            bail!(
                Argument,
                "samples_capacity: expected at least {count}, one per image, got {capacity}"
            );
        }
        // SAFETY: the caller's promise is the same.
        unsafe {
            Ok(ReportSink {
                samples: match samples.is_null() || count == 0 {
                    true => None,
                    false => Some((samples, struct_size("samples", samples)?)),
                },
                result: match result.is_null() {
                    true => None,
                    false => Some((result, struct_size("result", result)?)),
                },
            })
        }
    }

    /// # Safety
    /// The pointers that `read` got are still writable.
    pub unsafe fn write(&self, report: &Report) {
        if let Some((samples, stride)) = self.samples {
            for (at, sample) in report.samples.iter().enumerate() {
                // SAFETY: `read` checked that there are as many elements as samples.
                unsafe {
                    let pointer = samples.cast::<u8>().add(at * stride).cast();
                    write_versioned(pointer, stride, &c_sample(sample));
                }
            }
        }
        if let Some((result, size)) = self.result {
            let audit = report.worst_audit();
            let distances = report.level_distances();
            let distance = |at: usize| distances.get(at).copied().unwrap_or(0.0);
            let value = facegrad_result {
                struct_size: size,
                loss: report.loss,
                mean_distance: report.mean_distance,
                counted: report.counted() as i64,
                samples: report.samples.len() as i64,
                exact_passes: report.exact_passes() as i64,
                audit_cosine: audit.map_or(f64::NAN, |a| a.cosine),
                audit_norm_ratio: audit.map_or(f64::NAN, |a| a.norm_ratio),
                levels: distances.len() as i64,
                level_distances: std::array::from_fn(distance),
            };
            // SAFETY: the caller's promise is the same.
            unsafe { write_versioned(result, size, &value) };
        }
    }
}

fn c_sample(sample: &Sample) -> facegrad_sample {
    facegrad_sample {
        struct_size: size_of::<facegrad_sample>(),
        outcome: sample.outcome as i32,
        located: sample.located as i32,
        alignment: sample.alignment as i32,
        has_bbox: sample.bbox.is_some() as i32,
        has_landmarks: sample.landmarks.is_some() as i32,
        similarity: sample.similarity as f32,
        weight: sample.weight as f32,
        score: sample.score as f32,
        bbox: sample.bbox.unwrap_or_default().map(|v| v as f32),
        landmarks: flat(sample.landmarks.as_ref()),
        decoded: sample.decoded as i32,
        exact_pass: sample.exact_pass as i32,
        audit_cosine: sample.audit.map_or(f32::NAN, |a| a.cosine as f32),
        audit_norm_ratio: sample.audit.map_or(f32::NAN, |a| a.norm_ratio as f32),
    }
}
