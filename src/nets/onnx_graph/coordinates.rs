//! The places in a value from which each element of the resized value is computed, along one dimension, for ONNX's
//! operator Resize. They are computed in float32 as in ONNX Runtime (`core/providers/cpu/tensor/upsample.cc`), because
//! ties between two places must be decided in the same way.

use crate::error::{Result, bail};

/// How one dimension is resized.
#[derive(Debug, Clone)]
pub struct Axis {
    /// Which dimension.
    pub at: usize,
    /// Its size.
    pub from: i64,
    /// Its size afterwards.
    pub to: i64,
    /// `to / from`, or what the model says.
    pub scale: f32,
    /// Start and end of the part that is resized, for `tf_crop_and_resize`.
    pub part: (f32, f32),
}

/// What `mode` and its attributes ask for.
#[derive(Debug, Clone, Copy)]
pub enum Filter {
    /// The nearest element.
    Nearest(Rounding),
    /// Two neighbours.
    Linear,
    /// Four neighbours, with Keys' parameter.
    Cubic(f32),
}

/// Which of two elements is the nearest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Half down.
    PreferFloor,
    /// Half up.
    PreferCeil,
    /// Always down.
    Floor,
    /// Always up.
    Ceil,
    /// Before operator set 11: up where the value shrinks.
    Simple,
}

/// `coordinate_transformation_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Coordinates {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
    TfHalfPixelForNn,
    TfCropAndResize,
}

/// Weights of elements, for one element of the resized dimension.
pub type Taps = Vec<(usize, f32)>;

impl Coordinates {
    /// By its name in a file.
    pub fn named(name: &str) -> Result<Coordinates> {
        Ok(match name {
            "half_pixel" => Coordinates::HalfPixel,
            "half_pixel_symmetric" => Coordinates::HalfPixelSymmetric,
            "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
            "align_corners" => Coordinates::AlignCorners,
            "asymmetric" => Coordinates::Asymmetric,
            "tf_half_pixel_for_nn" => Coordinates::TfHalfPixelForNn,
            "tf_crop_and_resize" => Coordinates::TfCropAndResize,
            other => bail!(Operator, "coordinate_transformation_mode {other}"),
        })
    }
}

impl Rounding {
    /// By its name in a file.
    pub fn named(name: &str) -> Result<Rounding> {
        Ok(match name {
            "round_prefer_floor" => Rounding::PreferFloor,
            "round_prefer_ceil" => Rounding::PreferCeil,
            "floor" => Rounding::Floor,
            "ceil" => Rounding::Ceil,
            other => bail!(Operator, "nearest_mode {other}"),
        })
    }

    fn of(self, place: f32, shrinks: bool) -> i64 {
        let whole = match self {
            Rounding::PreferFloor if place == place.trunc() + 0.5 => place.floor(),
            Rounding::PreferFloor | Rounding::PreferCeil => place.round(),
            Rounding::Floor => place.floor(),
            Rounding::Ceil => place.ceil(),
            Rounding::Simple if shrinks => place.ceil(),
            Rounding::Simple => place.trunc(),
        };
        whole as i64
    }
}

impl Axis {
    /// The place in the value that corresponds to element `i` of the resized value.
    fn place(&self, i: i64, coordinates: Coordinates) -> f32 {
        let (x, scale) = (i as f32, self.scale);
        let (from, to) = (self.from as f32, self.to as f32);
        match coordinates {
            Coordinates::HalfPixel => (x + 0.5) / scale - 0.5,
            Coordinates::PytorchHalfPixel if self.to > 1 => (x + 0.5) / scale - 0.5,
            Coordinates::PytorchHalfPixel => 0.0,
            Coordinates::HalfPixelSymmetric => {
                let adjustment = to / (scale * from);
                let offset = from / 2.0 * (1.0 - adjustment);
                offset + ((x + 0.5) / scale - 0.5)
            }
            Coordinates::AlignCorners if self.to == 1 => 0.0,
            Coordinates::AlignCorners => x * (from - 1.0) / (to - 1.0),
            Coordinates::Asymmetric => x / scale,
            Coordinates::TfHalfPixelForNn => (x + 0.5) / scale,
            Coordinates::TfCropAndResize => {
                let (start, end) = self.part;
                match self.to > 1 {
                    true => start * (from - 1.0) + x * (end - start) * (from - 1.0) / (to - 1.0),
                    false => 0.5 * (start + end) * (from - 1.0),
                }
            }
        }
    }

    /// Per element whether its place lies outside the value.
    pub fn outside(&self, coordinates: Coordinates) -> Vec<bool> {
        let inside = 0.0..=(self.from - 1) as f32;
        (0..self.to)
            .map(|i| !inside.contains(&self.place(i, coordinates)))
            .collect()
    }

    /// The nearest element of every place.
    pub fn nearest(&self, coordinates: Coordinates, rounding: Rounding) -> Vec<i64> {
        let shrinks = self.scale < 1.0;
        let near = |i| {
            rounding
                .of(self.place(i, coordinates), shrinks)
                .clamp(0, self.from - 1)
        };
        (0..self.to).map(near).collect()
    }

    /// Per place the weights of the elements around it. Outside the value, the outermost element is used; with
    /// `exclude_outside`, elements outside have no weight.
    pub fn taps(
        &self,
        coordinates: Coordinates,
        filter: Filter,
        exclude_outside: bool,
    ) -> Vec<Taps> {
        (0..self.to)
            .map(|i| self.around(self.place(i, coordinates), filter, exclude_outside))
            .collect()
    }

    fn around(&self, place: f32, filter: Filter, exclude_outside: bool) -> Taps {
        let last = self.from - 1;
        match filter {
            Filter::Nearest(rounding) => {
                let near = rounding.of(place, self.scale < 1.0).clamp(0, last);
                vec![(near as usize, 1.0)]
            }
            Filter::Linear => {
                let place = place.clamp(0.0, last as f32);
                let first = (place as i64).min(last);
                let second = (first + 1).min(last);
                if first == second {
                    return vec![(first as usize, 1.0)];
                }
                let part = place - first as f32;
                vec![(first as usize, 1.0 - part), (second as usize, part)]
            }
            Filter::Cubic(a) => {
                let first = place.floor();
                let part = place - first;
                let weights = [1.0 + part, part, 1.0 - part, 2.0 - part].map(|d| keys(d, a));
                let places = (-1..=2).map(|k| (first as i64).saturating_add(k));
                gathered(places.zip(weights), last, exclude_outside)
            }
        }
    }

    /// [`Axis::taps`] with `antialias` where the value shrinks: the filter is as wide as the elements that one element
    /// of the result replaces, as in Pillow (`Resample.c`).
    pub fn wide_taps(
        &self,
        coordinates: Coordinates,
        filter: Filter,
        exclude_outside: bool,
    ) -> Vec<Taps> {
        let wide = (1.0 / self.scale).max(1.0);
        let support = wide
            * if matches!(filter, Filter::Cubic(_)) {
                2.0
            } else {
                1.0
            };
        let weight = |distance: f32| match filter {
            Filter::Cubic(a) => keys(distance.abs(), a),
            _ => (1.0 - distance.abs()).max(0.0),
        };
        (0..self.to)
            .map(|i| {
                let center = self.place(i, coordinates) + 0.5;
                let first = (center - support + 0.5).floor() as i64;
                let end = (center + support + 0.5).floor() as i64;
                let taps = (first..end).map(|k| (k, weight((k as f32 - center + 0.5) / wide)));
                gathered(taps, self.from - 1, exclude_outside)
            })
            .collect()
    }
}

/// Keys' cubic at a distance from 0 to 2.
fn keys(d: f32, a: f32) -> f32 {
    match d {
        d if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
        d if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
        _ => 0.0,
    }
}

/// Taps whose places outside 0 to `last` are moved inside or left out. Their weights add up to 1.
fn gathered(taps: impl Iterator<Item = (i64, f32)>, last: i64, exclude_outside: bool) -> Taps {
    let inside = taps.filter(|(at, _)| !exclude_outside || (0..=last).contains(at));
    let taps: Taps = inside
        .map(|(at, weight)| (at.clamp(0, last) as usize, weight))
        .collect();
    let sum: f32 = taps.iter().map(|(_, weight)| weight).sum();
    match sum == 0.0 {
        true => taps,
        false => taps
            .into_iter()
            .map(|(at, weight)| (at, weight / sum))
            .collect(),
    }
}
