//! Runs any recogniser or detector ONNX as libtorch operations. The network is frozen, and differentiable with
//! respect to its inputs. Values that depend on constants alone are computed once. A batch norm after a
//! convolution is folded into it.
//!
//! The file decides what is computed. Therefore a [`Budget`] is asked before anything is allocated, and an
//! attribute that an operator does not understand is an error.
//!
//! Shape arithmetic (Shape, Gather, Slice, … on integers) runs on the CPU on every device, so that the host
//! never waits for a GPU.

mod activation;
mod arithmetic;
mod budget;
mod builder;
mod conv;
mod coordinates;
mod fold;
mod node;
mod operators;
mod pick;
mod pool;
mod reduce;
mod resize;
mod scatter;
mod shape;
#[cfg(test)]
mod tests;
mod window;

use crate::error::{Error, Result, bail};
use crate::weights::onnx::{Model, Value};
use budget::Budget;
use builder::{Builder, Slot, Step};
use node::Call;
use operators::{find, known};
use std::collections::{HashMap, HashSet};
use tch::{Device, Kind, Tensor};

/// A model ready to run.
pub struct OnnxGraph {
    opset: i64,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    input_slots: Vec<Slot>,
    output_slots: Vec<Slot>,
    constants: HashMap<Slot, Tensor>,
    steps: Vec<Step>,
    slots: usize,
    /// Whether feature maps are laid out pixel by pixel (channels last). libtorch's convolutions on a CPU (oneDNN) then
    /// need not convert every value before and after a convolution.
    by_pixels: bool,
    free_batch: bool,
}

impl OnnxGraph {
    /// Converts the constants to `kind` on `device` (integers stay 64-bit on the CPU) and checks that
    /// every operator and every attribute is known.
    ///
    /// # Errors
    /// `Operator`; the text names every operator that is missing, or the attribute. `Limit` where the model asks for
    /// more than a model of its size may. `Format` where its values do not fit together.
    pub fn new(model: &Model, device: Device, kind: Kind) -> Result<Self> {
        known(model)?;
        let mut builder = Builder::new(device, kind);
        let input_slots: Vec<Slot> = model.inputs.iter().map(|v| builder.slot(&v.name)).collect();
        let steps = builder.steps(model)?;
        let output_slots = model
            .outputs
            .iter()
            .map(|v| builder.slot(&v.name))
            .collect();
        builder.initializers(model)?;
        let mut graph = Self {
            opset: model.opset,
            slots: builder.count,
            inputs: model.inputs.clone(),
            outputs: model.outputs.clone(),
            input_slots,
            output_slots,
            constants: builder.constants,
            by_pixels: device == Device::Cpu
                && kind == Kind::Float
                && steps.iter().any(|step| step.node.op == "Conv"),
            steps,
            free_batch: false,
        };
        graph.precompute(fold::elements(model), device, kind)?;
        graph.find_ends();
        graph.find_places();
        Ok(graph)
    }

    /// Checks a file before another engine reads it. Engines compute the part that depends on constants alone while
    /// they load a file, so it is computed here first, within the limits. Operators that are not implemented here are
    /// skipped.
    ///
    /// # Errors
    /// `Limit`.
    pub fn check_constants(model: &Model) -> Result<()> {
        let mut constant: HashSet<&str> = model.initializers.keys().map(String::as_str).collect();
        let (mut nodes, mut used) = (vec![], HashSet::new());
        for node in &model.nodes {
            let given = |names: &[String]| {
                names
                    .iter()
                    .all(|n| n.is_empty() || constant.contains(n.as_str()))
            };
            if find(node).is_some() && given(&node.inputs) {
                constant.extend(node.outputs.iter().map(String::as_str));
                used.extend(node.inputs.iter().map(String::as_str));
                nodes.push(node.clone());
            }
        }
        let initializers = model
            .initializers
            .iter()
            .filter(|(name, _)| used.contains(name.as_str()));
        let part = Model {
            opset: model.opset,
            initializers: initializers
                .map(|(name, array)| (name.clone(), array.clone()))
                .collect(),
            nodes,
            ..Model::default()
        };
        match Self::new(&part, Device::Cpu, Kind::Float) {
            Err(Error::Limit(text)) => Err(Error::Limit(text)),
            _ => Ok(()),
        }
    }

    /// The inputs that [`OnnxGraph::forward`] takes, in order.
    pub fn inputs(&self) -> &[Value] {
        &self.inputs
    }

    /// The outputs that it returns, in order.
    pub fn outputs(&self) -> &[Value] {
        &self.outputs
    }

    /// Lets a shape that begins with 1 in a Reshape or a Resize begin with the batch instead, for a file that was exported
    /// for one image. The caller must compare the results with those of single images, to know whether the file means that.
    pub fn free_batch(&mut self, free: bool) {
        self.free_batch = free;
    }

    /// Runs the model. The gradient flows back to `inputs`.
    ///
    /// # Errors
    /// `Limit` where the model asks for more memory or work than its inputs' sizes allow, before it is taken; `Format`
    /// where values do not fit together; `Operator` for operators that are not implemented.
    pub fn forward(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        if inputs.len() != self.inputs.len() {
            bail!(
                Internal,
                "the model takes {} inputs, got {}",
                self.inputs.len(),
                inputs.len()
            );
        }
        let mut budget = Budget::running(inputs.iter().map(|input| node::elements(input)).sum());
        let mut values: Vec<Option<Tensor>> = (0..self.slots).map(|_| None).collect();
        for (&slot, input) in self.input_slots.iter().zip(inputs) {
            values[slot] = Some(match self.by_pixels && input.dim() == 4 {
                true => input
                    .f_permute([0, 2, 3, 1])?
                    .f_contiguous()?
                    .f_permute([0, 3, 1, 2])?,
                false => input.shallow_clone(),
            });
        }
        for step in &self.steps {
            let made = self.run(step, &mut budget, |slot| values[slot].as_ref())?;
            for (slot, value) in step.outputs.iter().zip(made) {
                if let Some(slot) = slot {
                    budget.hold(node::elements(&value));
                    values[*slot] = Some(value);
                }
            }
            for &slot in &step.ends {
                budget.release(values[slot].take().as_ref().map_or(0, node::elements));
            }
        }
        let outputs = self.output_slots.iter().zip(&self.outputs);
        outputs
            .map(|(&slot, output)| {
                match values[slot].as_ref().or_else(|| self.constants.get(&slot)) {
                    Some(value) => Ok(value.shallow_clone()),
                    None => bail!(Format, "output {} was not computed", output.name),
                }
            })
            .collect()
    }

    fn run<'a>(
        &'a self,
        step: &Step,
        budget: &mut Budget,
        value: impl Fn(Slot) -> Option<&'a Tensor>,
    ) -> Result<Vec<Tensor>> {
        let inputs = step
            .inputs
            .iter()
            .map(|slot| slot.and_then(|slot| value(slot).or_else(|| self.constants.get(&slot))))
            .collect();
        let call = Call {
            node: &step.node,
            opset: self.opset,
            free_batch: self.free_batch,
            in_place: step.in_place,
            inputs,
        };
        (step.operator.cost)(&call)
            .and_then(|cost| budget.take(cost))
            .and_then(|()| (step.operator.run)(&call))
            .map_err(|e| match e {
                // The file asks for something that libtorch cannot compute. A failing device is another error.
                Error::Torch(text) if !text.contains("CUDA") => Error::Format(text),
                other => other,
            })
            .map_err(|e| e.context(call.title()))
    }

    /// Computes the values that depend on constants alone, and drops the constants that no later step needs.
    fn precompute(&mut self, elements: u64, device: Device, kind: Kind) -> Result<()> {
        let _frozen = tch::no_grad_guard();
        let mut budget = Budget::folding(elements);
        let mut rest = vec![];
        for step in std::mem::take(&mut self.steps) {
            let constant = step
                .inputs
                .iter()
                .flatten()
                .all(|slot| self.constants.contains_key(slot));
            if !constant {
                rest.push(step);
                continue;
            }
            let made = self.run(&step, &mut budget, |_| None)?;
            for (slot, value) in step.outputs.iter().zip(made) {
                if let Some(slot) = slot {
                    self.constants
                        .insert(*slot, node::constant(value, device, kind)?);
                }
            }
        }
        self.steps = rest;
        let used = self
            .steps
            .iter()
            .flat_map(|step| step.inputs.iter().flatten());
        let used: HashSet<Slot> = used.chain(&self.output_slots).copied().collect();
        self.constants.retain(|slot, _| used.contains(slot));
        Ok(())
    }

    /// Marks the steps that may overwrite their first input: no other step uses it, and the backward pass of the
    /// operator that made it does not need it.
    fn find_places(&mut self) {
        let mut uses: HashMap<Slot, usize> = HashMap::new();
        let used = self
            .steps
            .iter()
            .flat_map(|step| step.inputs.iter().flatten());
        for &slot in used.chain(&self.output_slots) {
            *uses.entry(slot).or_default() += 1;
        }
        let mut free = HashSet::new();
        for step in &mut self.steps {
            step.in_place = matches!(step.inputs.first(), Some(Some(slot)) if free.contains(slot));
            if matches!(step.node.op.as_str(), "Conv" | "Add" | "BatchNormalization") {
                let made = step.outputs.iter().flatten();
                free.extend(made.filter(|slot| uses.get(slot) == Some(&1)).copied());
            }
        }
    }

    /// Marks after which step each value can be dropped.
    fn find_ends(&mut self) {
        let mut needed: HashSet<Slot> = self.output_slots.iter().copied().collect();
        for step in self.steps.iter_mut().rev() {
            let used = step
                .inputs
                .iter()
                .flatten()
                .chain(step.outputs.iter().flatten());
            step.ends = used.copied().filter(|&slot| needed.insert(slot)).collect();
        }
    }
}
