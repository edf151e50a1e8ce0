//! The node graph: the same loss, built node by node.

use super::backbone::Backbone;
use super::boundary::call;
use super::context::Model;
use super::context::{Context, make};
use super::handle::get;
use super::handle::{self, Object};
use super::loss::LossObject;
use super::read::{self, optional_text, output};
use super::report::ReportSink;
use super::sampler::Levels;
use super::targets::RawTargets;
use super::types::*;
use super::views;
use crate::config::{ClampPolicy, LatentFormat, Packing, Prediction, PredictionConfig, Rect};
use crate::error::{Result, bail};
use crate::graph::{Decode, Graph, Local, NodeId, Operation, Unpacking, predict_x0, unpack};
use crate::latent::{coefficients, sampler_step};
use crate::loss::node::face_loss;
use crate::nets::EMBEDDING;
use crate::nets::vae::Decoder;
use crate::shared::{Shared, lock};
use crate::tensor::{RawTensor, Stream, Use, View, in_use};
use crate::worker::Owned;
use serde::Deserialize;
use std::ffi::{c_char, c_void};
use std::sync::Mutex;
use tch::{Kind, Tensor};

/// The object behind a `facegrad_graph`, and the stream of its nodes.
struct GraphObject(Owned<Graph>, Mutex<Option<Stream>>);

impl GraphObject {
    /// The stream that nodes are computed on. A tensor that a node keeps for its gradient returns to the allocator of
    /// the stream that it was made on. A gradient on another stream could therefore read memory that is already used
    /// again.
    fn computes_on(&self, stream: *mut c_void) -> Result<Stream> {
        let stream = Stream::new(stream);
        let mut first = lock(&self.1);
        if *first.get_or_insert(stream) != stream {
            bail!(
                Device,
                "stream: the nodes of a graph are computed on one stream, that of its first node; values and gradients may be \
                 read on any"
            );
        }
        Ok(stream)
    }

    /// The decoder of a VAE, which must be of the graph's context.
    fn decoder(&self, vae: *const facegrad_vae) -> Result<Shared<Decoder>> {
        let vae = get::<Model<Decoder>, _>("vae", vae)?;
        views::same_context("vae", self.0.worker(), vae.owned.worker())?;
        Ok(vae.owned.share())
    }

    /// Makes a node on the context's thread and writes its number to `node`.
    ///
    /// # Safety
    /// `node` is NULL or writable.
    unsafe fn add(
        &self,
        node: *mut i64,
        stream: *mut c_void,
        make: impl FnOnce(&mut Graph) -> Result<NodeId> + Send + 'static,
    ) -> Result<()> {
        let node = output("node", node)?;
        let made = self.0.with(self.computes_on(stream)?, make)?;
        // SAFETY: not NULL, and the caller promises that it is writable.
        unsafe { node.write(made as i64) };
        Ok(())
    }
}

impl Object for GraphObject {
    const NAME: &'static str = "graph";
}

/// Makes an empty graph. Nodes are numbered from 0 in the order in which they are made. A node is computed when
/// it is made, and it stays until the graph is freed.
///
/// @param[out] out the new graph; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_graph_new(
    context: *const facegrad_context,
    out: *mut *mut facegrad_graph,
) -> facegrad_status {
    let body = || {
        let context = get::<Context, _>("context", context)?;
        Ok(GraphObject(
            Owned::build(&context.worker, |_| Ok(Graph::new()))?,
            Mutex::new(None),
        ))
    };
    // SAFETY: the host promises that `out` is NULL or writable.
    unsafe { make(out, body) }
}

/// Adds a copy of a tensor as a node.
///
/// @param[in] tensor float32, float16 or bfloat16, any shape
/// @param[in] needs_gradient not 0 where the host wants its `facegrad_graph_gradient`
/// @param[out] node the new node
/// @param[in] stream cudaStream_t that `tensor` is ready on; NULL on a CPU
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_graph_input(
    graph: *mut facegrad_graph,
    tensor: *const RawTensor,
    needs_gradient: i32,
    node: *mut i64,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let graph = get::<GraphObject, _>("graph", graph)?;
        // SAFETY: the host's promise is `View::read`'s.
        let view = unsafe { View::read("tensor", tensor, Use::Input) }?;
        view.expect_float()?;
        view.expect_device(graph.0.worker().device())?;
        let make = move |graph: &mut Graph| {
            let host = view.borrow()?;
            // A node that gets a gradient is float32, so that its unscaled gradient does not underflow.
            let kind = match needs_gradient {
                0 => host.kind(),
                _ => Kind::Float,
            };
            let mut copy = Tensor::f_empty(host.size(), (kind, host.device()))?;
            copy.f_copy_(&host)?;
            Ok(graph.input(copy, needs_gradient != 0))
        };
        // SAFETY: the host promises that `node` is writable.
        unsafe { graph.add(node, stream, make) }
    })
}

/// Adds the clean latent x0 = a·x_t + b·prediction, in the prediction's layout, float32.
///
/// @param[in] x_t a node with the noisy latents, or -1 where the model predicts x0 itself
/// @param[in] prediction a node with the model's prediction, of the same shape
/// @param[in] times `[N]` noise levels in the unit that `config` says, or `[N,2]` pairs a, b for kind "custom";
/// NULL for "sample"; on any device
/// @param[in] config JSON, the object `prediction` of `facegrad_loss_new`; NULL for flow matching
/// @param[out] node the new node
/// @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_graph_predict_x0(
    graph: *mut facegrad_graph,
    x_t: i64,
    prediction: i64,
    times: *const RawTensor,
    config: *const c_char,
    node: *mut i64,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let graph = get::<GraphObject, _>("graph", graph)?;
        // SAFETY: the host promises NULL or a string, and `View::read`'s for the tensor.
        let (config, times) = unsafe {
            let config: PredictionConfig = read::config("prediction config", config)?;
            let width = if config.kind == Prediction::Custom {
                2
            } else {
                1
            };
            (config, views::optional_numbers("times", times, width)?)
        };
        let prediction = id("prediction", prediction)?;
        let x_t = match x_t {
            -1 => None,
            other => Some(id("x_t", other)?),
        };
        let make = move |graph: &mut Graph| {
            let count = graph
                .value(prediction)?
                .size()
                .first()
                .copied()
                .unwrap_or(0) as usize;
            let numbers = match &times {
                Some(view) => views::numbers(view)?,
                None => vec![],
            };
            let pairs = match config.kind {
                Prediction::Custom => numbers.chunks_exact(2).map(|p| (p[0], p[1])).collect(),
                Prediction::Sample if numbers.is_empty() => vec![(0.0, 1.0); count],
                _ => coefficients(&config, &numbers)?,
            };
            let inputs: Vec<NodeId> = x_t.into_iter().chain([prediction]).collect();
            graph.apply(predict_x0(pairs), &inputs)
        };
        // SAFETY: the host promises that `node` is writable.
        unsafe { graph.add(node, stream, make) }
    })
}

/// Adds the sample at another noise level, as in `facegrad_sampler_step`: a node of `x_t`'s dtype and layout. No
/// gradient flows through it.
///
/// @param[in] x_t a node: the noisy latents
/// @param[in] prediction a node of the same shape
/// @param[in] times `[N]`, the noise levels of `x_t`, as `config` says
/// @param[in] next_times `[N]`, the noise levels to go to
/// @param[in] config JSON, the object `prediction` of `facegrad_loss_new`; NULL for flow matching
/// @param[out] node the new node
/// @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_graph_sampler_step(
    graph: *mut facegrad_graph,
    x_t: i64,
    prediction: i64,
    times: *const RawTensor,
    next_times: *const RawTensor,
    config: *const c_char,
    node: *mut i64,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let graph = get::<GraphObject, _>("graph", graph)?;
        // SAFETY: the host's promise is `Levels::read`'s.
        let levels = unsafe { Levels::read(times, next_times, config) }?;
        let x_t = id("x_t", x_t)?;
        let prediction = id("prediction", prediction)?;
        let make = move |graph: &mut Graph| {
            let pairs = levels.pairs()?;
            let next = sampler_step(graph.value(x_t)?, graph.value(prediction)?, &pairs)
                .map_err(|e| e.context("sampler_step"))?;
            Ok(graph.input(next, false))
        };
        // SAFETY: the host promises that `node` is writable.
        unsafe { graph.add(node, stream, make) }
    })
}

/// What `facegrad_graph_unpack` reads from its config.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct UnpackConfig {
    packing: Packing,
    latent_crop: Option<Rect>,
    latent_format: Option<LatentFormat>,
}

/// Converts model-space latents in the host's packing to the latents that the VAE decodes: `[B,C,H,W]` float32.
///
/// @param[in] latents a node
/// @param[in] vae a VAE of the same context: its files may tell the latent format, and hold FLUX.2's statistics
/// @param[in] config JSON: `packing`, `latent_crop`, `latent_format` as in `facegrad_loss_new`; NULL for the
/// defaults
/// @param[in] height, width of the unpacked latent in latent pixels; 0 where the layout tells
/// @param[out] node the new node
/// @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_graph_unpack(
    graph: *mut facegrad_graph,
    latents: i64,
    vae: *const facegrad_vae,
    config: *const c_char,
    height: i64,
    width: i64,
    node: *mut i64,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let graph = get::<GraphObject, _>("graph", graph)?;
        let decoder = graph.decoder(vae)?;
        // SAFETY: the host promises NULL or a string.
        let config: UnpackConfig = unsafe { read::config("unpack config", config) }?;
        let latents = id("latents", latents)?;
        let unpacking = Unpacking {
            packing: config.packing,
            size: (height != 0 || width != 0).then_some((height, width)),
            crop: config.latent_crop,
            format: config.latent_format,
        };
        let make = move |graph: &mut Graph| graph.apply(unpack(unpacking, &decoder)?, &[latents]);
        // SAFETY: the host promises that `node` is writable.
        unsafe { graph.add(node, stream, make) }
    })
}

/// What `facegrad_graph_decode` reads from its config.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct DecodeConfig {
    clamp: ClampPolicy,
}

/// Decodes VAE-space latents to images `[B,3,H,W]`, RGB in [0, 1], float32.
///
/// @param[in] latents a node of shape `[B,C,h,w]`
/// @param[in] vae a VAE of the same context
/// @param[in] config JSON: `clamp` as in `facegrad_loss_new`; NULL for the default
/// @param[out] node the new node
/// @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_graph_decode(
    graph: *mut facegrad_graph,
    latents: i64,
    vae: *mut facegrad_vae,
    config: *const c_char,
    node: *mut i64,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let graph = get::<GraphObject, _>("graph", graph)?;
        let decoder = graph.decoder(vae)?;
        // SAFETY: the host promises NULL or a string.
        let config: DecodeConfig = unsafe { read::config("decode config", config) }?;
        let latents = id("latents", latents)?;
        let operation: Box<dyn Operation> = Box::new(Decode::new(decoder, config.clamp));
        let make = move |graph: &mut Graph| graph.apply(operation, &[latents]);
        // SAFETY: the host promises that `node` is writable.
        unsafe { graph.add(node, stream, make) }
    })
}

/// Adds a recogniser's features of aligned crops at one of its levels: float32, not normalised. The gradient flows to
/// the crops.
///
/// @param[in] crops a node of shape `[M,3,S,S]`, RGB in [0, 1]; S is the recogniser's `input_size`
/// @param[in] backbone a recogniser of the same context
/// @param[in] level "embedding", the last level, `[M,D]`; of an IResNet also "layer1" to "layer4", `[M,C,h,w]`; of an
/// ONNX model also its further outputs by name. NULL: "embedding"
/// @param[out] node the new node
/// @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
///
/// Errors: `CONFIG` for a level that the recogniser does not have.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_graph_features(
    graph: *mut facegrad_graph,
    crops: i64,
    backbone: *mut facegrad_backbone,
    level: *const c_char,
    node: *mut i64,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let graph = get::<GraphObject, _>("graph", graph)?;
        let backbone = get::<Backbone, _>("backbone", backbone)?;
        views::same_context("backbone", graph.0.worker(), backbone.owned.worker())?;
        // SAFETY: the host promises NULL or a string.
        let level = unsafe { optional_text("level", level) }?.unwrap_or_else(|| EMBEDDING.into());
        let crops = id("crops", crops)?;
        let recogniser = backbone.owned.share();
        let make = move |graph: &mut Graph| {
            let side = lock(&recogniser).input_size();
            let shape = graph.value(crops)?.size();
            if !matches!(*shape, [count, 3, h, w] if count > 0 && h == side && w == side) {
                bail!(
                    Shape,
                    "crops: expected a node of shape [M,3,{side},{side}], node {crops} has {shape:?}"
                );
            }
            let features = Local::new("features", move |inputs: &[&Tensor]| {
                let crops = inputs[0].f_to_kind(Kind::Float)?;
                Ok(lock(&recogniser)
                    .features(&crops, &[&level])?
                    .swap_remove(0))
            });
            graph.apply(Box::new(features), &[crops])
        };
        // SAFETY: the host promises that `node` is writable.
        unsafe { graph.add(node, stream, make) }
    })
}

/// Adds the loss of a node of images: a scalar float32 node with the value that `facegrad_loss_images` computes.
///
/// @param[in] images a node of shape `[N,3,H,W]`
/// @param[in] loss a loss of the same context
/// @param[in] targets, samples, samples_capacity, result as in `facegrad_loss_images`
/// @param[out] node the new node
/// @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_graph_face_loss(
    graph: *mut facegrad_graph,
    images: i64,
    loss: *mut facegrad_loss,
    targets: *const facegrad_targets,
    samples: *mut facegrad_sample,
    samples_capacity: usize,
    result: *mut facegrad_result,
    node: *mut i64,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let graph = get::<GraphObject, _>("graph", graph)?;
        let loss = get::<LossObject, _>("loss", loss)?;
        views::same_context("loss", graph.0.worker(), loss.owned.worker())?;
        let node = output("node", node)?;
        let images = id("images", images)?;
        let stream = graph.computes_on(stream)?;
        let count = graph.0.with(stream, move |graph| {
            match graph.value(images)?.size().as_slice() {
                &[count, 3, h, w] if h > 0 && w > 0 => Ok(count),
                shape => bail!(
                    Shape,
                    "images: expected a node of shape [N,3,H,W], node {images} has {shape:?}"
                ),
            }
        })?;
        // SAFETY: the host's promises are those of the functions called.
        let (targets, sink) = unsafe {
            let targets = RawTargets::read(targets, graph.0.worker().device(), count)?;
            let sink = ReportSink::read(samples, samples_capacity, result, count)?;
            (targets, sink)
        };
        let (shared, watch) = (loss.owned.share(), loss.watch.clone());
        let (id, report) = graph.0.with(stream, move |graph| {
            face_loss(graph, images, &shared, &targets.into_targets(&watch)?)
        })?;
        // SAFETY: `read` checked the pointers, `node` is not NULL, and the host promises that all are
        // writable.
        unsafe {
            sink.write(&report);
            node.write(id as i64);
        }
        Ok(())
    })
}

/// Returns the shape of a node's value.
///
/// @param[out] shape receives the first `capacity` sizes, outermost first; may be NULL with `capacity` 0
/// @param[out] ndim the number of dimensions; 0 for a scalar
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_graph_shape(
    graph: *const facegrad_graph,
    node: i64,
    shape: *mut i64,
    capacity: usize,
    ndim: *mut usize,
) -> facegrad_status {
    call(|| {
        let graph = get::<GraphObject, _>("graph", graph)?;
        let ndim = output("ndim", ndim)?;
        if capacity > 0 {
            output("shape", shape)?;
        }
        let node = id("node", node)?;
        let sizes = graph.0.with(Stream::default(), move |graph| {
            Ok(graph.value(node)?.size())
        })?;
        for (at, &size) in sizes.iter().take(capacity).enumerate() {
            // SAFETY: `at < capacity`, and the host promises that many writable numbers.
            unsafe { shape.add(at).write(size) };
        }
        // SAFETY: not NULL, and the host promises that it is writable.
        unsafe { ndim.write(sizes.len()) };
        Ok(())
    })
}

/// Copies a node's value to the host's tensor.
///
/// @param[out] tensor the node's shape, any float dtype
/// @param[in] stream cudaStream_t that the copy is put on; NULL on a CPU
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_graph_read(
    graph: *const facegrad_graph,
    node: i64,
    tensor: *const RawTensor,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let graph = get::<GraphObject, _>("graph", graph)?;
        let node = id("node", node)?;
        // SAFETY: the host's promise is `View::read`'s.
        let view = unsafe { result_view(&graph, tensor) }?;
        graph.0.with(Stream::new(stream), move |graph| {
            write(&view, node, graph.value(node)?)
        })
    })
}

/// Computes the gradients of a node with respect to all nodes before it. The gradients of an earlier call are dropped.
///
/// @param[in] node the node to differentiate, usually a loss
/// @param[in] seed the gradient with respect to `node`, of the same shape; NULL: ones
/// @param[in] stream cudaStream_t that the work is put on: the stream on which the nodes were made; NULL on a CPU
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_graph_backward(
    graph: *mut facegrad_graph,
    node: i64,
    seed: *const RawTensor,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let graph = get::<GraphObject, _>("graph", graph)?;
        let node = id("node", node)?;
        let seed = match seed.is_null() {
            true => None,
            // SAFETY: the host's promise is `View::read`'s.
            false => Some(unsafe { View::read("seed", seed, Use::Input) }?),
        };
        if let Some(seed) = &seed {
            seed.expect_float()?;
            seed.expect_device(graph.0.worker().device())?;
        }
        graph.0.with(graph.computes_on(stream)?, move |graph| {
            let seed = match seed {
                // The conversion to 64 bits makes a copy, so the graph does not keep the host's memory.
                Some(view) => Some(view.borrow()?.f_to_kind(Kind::Double)?),
                None => None,
            };
            graph.backward(node, seed)
        })
    })
}

/// Copies the gradient with respect to a node from the last `facegrad_graph_backward` to the host's tensor. It is zero
/// where the node has no influence.
///
/// @param[out] tensor the node's shape, any float dtype
/// @param[in] stream cudaStream_t that the copy is put on; NULL on a CPU
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_graph_gradient(
    graph: *const facegrad_graph,
    node: i64,
    tensor: *const RawTensor,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let graph = get::<GraphObject, _>("graph", graph)?;
        let node = id("node", node)?;
        // SAFETY: the host's promise is `View::read`'s.
        let view = unsafe { result_view(&graph, tensor) }?;
        graph.0.with(Stream::new(stream), move |graph| {
            write(&view, node, &graph.gradient(node)?)
        })
    })
}

/// Frees a graph with all its nodes.
#[unsafe(no_mangle)]
pub extern "C" fn facegrad_graph_free(graph: *mut facegrad_graph) {
    call(|| {
        handle::remove::<GraphObject, _>(graph);
        Ok(())
    });
}

fn id(name: &str, node: i64) -> Result<NodeId> {
    match NodeId::try_from(node) {
        Ok(id) => Ok(id),
        Err(_) => bail!(Argument, "{name}: expected a node, got {node}"),
    }
}

/// # Safety
/// As for [`View::read`].
unsafe fn result_view(graph: &GraphObject, tensor: *const RawTensor) -> Result<View> {
    // SAFETY: the caller's promise is the same.
    let view = unsafe { View::read("tensor", tensor, Use::Output) }?;
    view.expect_float()?;
    view.expect_device(graph.0.worker().device())?;
    Ok(view)
}

fn write(view: &View, node: NodeId, value: &Tensor) -> Result<()> {
    if view.shape() != value.size() {
        bail!(
            Shape,
            "tensor: expected the shape of node {node}, {:?}, got {:?}",
            value.size(),
            view.shape()
        );
    }
    // The stream may be another one than the node's.
    in_use(value)?;
    view.write(value)
}
