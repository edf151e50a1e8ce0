//! The node graph: the same loss, wired node by node.

use super::boundary::call;
use super::context::Model;
use super::context::{Context, make};
use super::handle::get;
use super::handle::{self, Object};
use super::loss::{RawTargets, ReportSink};
use super::read::output;
use super::types::*;
use super::views;
use crate::error::{Result, bail};
use crate::graph::{Graph, NodeId};
use crate::loss::{FaceLoss, Loss};
use crate::tensor::{RawTensor, Stream, Use, View};
use crate::worker::{Owned, lock};
use std::ffi::c_void;
use tch::Kind;

/// What a `facegrad_graph` stands for.
struct Tape(Owned<Graph>);

impl Object for Tape {
    const NAME: &'static str = "graph";
}

/// Makes an empty tape. Its nodes are numbers that count from 0 in the order of making; every node
/// is computed when it is made and stays until the tape is freed.
///
/// @param[out] out the new tape; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_graph_new(
    context: *const facegrad_context,
    out: *mut *mut facegrad_graph,
) -> facegrad_status {
    let body = || {
        let context = get::<Context, _>("context", context)?;
        Ok(Tape(Owned::build(&context.worker, |_| Ok(Graph::new()))?))
    };
    // SAFETY: the host promises that `out` is NULL or writable.
    unsafe { make(out, body) }
}

/// Puts a copy of a tensor on the tape.
///
/// @param[in] tensor float32, float16 or bfloat16, any shape
/// @param[in] needs_gradient not 0: `facegrad_graph_gradient` will be asked for it
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
        let graph = get::<Tape, _>("graph", graph)?;
        let node = output("node", node)?;
        // SAFETY: the host's promise is `View::read`'s.
        let view = unsafe { View::read("tensor", tensor, Use::Input) }?;
        view.expect_float()?;
        view.expect_device(graph.0.worker().device())?;
        let id = graph.0.with(Stream::new(stream), move |graph| {
            let host = view.borrow()?;
            let mut copy = host.f_empty_like()?;
            copy.f_copy_(&host)?;
            Ok(graph.input(copy, needs_gradient != 0))
        })?;
        // SAFETY: not NULL, and the host promises that it is writable.
        unsafe { node.write(id as i64) };
        Ok(())
    })
}

/// The loss of a node of images: a scalar float32 node. The same numbers as `facegrad_loss_images`.
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
        let graph = get::<Tape, _>("graph", graph)?;
        let loss = get::<Model<Loss>, _>("loss", loss)?;
        views::same_context("loss", graph.0.worker(), loss.owned.worker())?;
        let node = output("node", node)?;
        let images = id("images", images)?;
        let stream = Stream::new(stream);
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
        let shared = loss.owned.share();
        let (id, report) = graph.0.with(stream, move |graph| {
            let operation = FaceLoss::new(shared, targets.into_targets()?);
            let report = operation.report();
            let id = graph.apply(Box::new(operation), &[images])?;
            let report = std::mem::take(&mut *lock(&report));
            Ok((id, report))
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

/// The sizes of a node's value.
///
/// @param[out] shape receives the first `capacity` sizes; may be NULL with `capacity` 0
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
        let graph = get::<Tape, _>("graph", graph)?;
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

/// Copies a node's value out.
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
        let graph = get::<Tape, _>("graph", graph)?;
        let node = id("node", node)?;
        // SAFETY: the host's promise is `View::read`'s.
        let view = unsafe { result_view(&graph, tensor) }?;
        graph.0.with(Stream::new(stream), move |graph| {
            write(&view, node, graph.value(node)?)
        })
    })
}

/// Walks back from a node. Gradients of an earlier walk on this tape are forgotten.
///
/// @param[in] node the node to start from, usually a loss
/// @param[in] seed the gradient with respect to it, of its shape; NULL: ones
/// @param[in] stream cudaStream_t that the work is put on; NULL on a CPU
#[unsafe(no_mangle)]
pub unsafe extern "C" fn facegrad_graph_backward(
    graph: *mut facegrad_graph,
    node: i64,
    seed: *const RawTensor,
    stream: *mut c_void,
) -> facegrad_status {
    call(|| {
        let graph = get::<Tape, _>("graph", graph)?;
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
        graph.0.with(Stream::new(stream), move |graph| {
            let seed = match seed {
                // In 64 bits, so that it is a copy and not the host's memory.
                Some(view) => Some(view.borrow()?.f_to_kind(Kind::Double)?),
                None => None,
            };
            graph.backward(node, seed)
        })
    })
}

/// Copies the gradient that the last `facegrad_graph_backward` brought to a node; zeros where none
/// arrived.
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
        let graph = get::<Tape, _>("graph", graph)?;
        let node = id("node", node)?;
        // SAFETY: the host's promise is `View::read`'s.
        let view = unsafe { result_view(&graph, tensor) }?;
        graph.0.with(Stream::new(stream), move |graph| {
            write(&view, node, &graph.gradient(node)?)
        })
    })
}

/// Frees a tape with all its nodes.
#[unsafe(no_mangle)]
pub extern "C" fn facegrad_graph_free(graph: *mut facegrad_graph) {
    call(|| {
        handle::remove::<Tape, _>(graph);
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
unsafe fn result_view(graph: &Tape, tensor: *const RawTensor) -> Result<View> {
    // SAFETY: the caller's promise is the same.
    let view = unsafe { View::read("tensor", tensor, Use::Output) }?;
    view.expect_float()?;
    view.expect_device(graph.0.worker().device())?;
    Ok(view)
}

fn write(view: &View, node: NodeId, value: &tch::Tensor) -> Result<()> {
    if view.shape() != value.size() {
        bail!(
            Shape,
            "tensor: expected the shape of node {node}, {:?}, got {:?}",
            value.size(),
            view.shape()
        );
    }
    view.write(value)
}
