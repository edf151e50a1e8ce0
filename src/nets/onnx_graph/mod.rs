//! Any recogniser or detector ONNX as libtorch operations: frozen, and differentiable with respect to
//! its inputs. What depends on constants alone is computed once; a batch norm after a convolution is
//! folded into it.
//!
//! Shape arithmetic (Shape, Gather, Slice, … on integers) stays on the CPU whatever the device, so that a
//! GPU is never waited for.

mod conv;
mod elementwise;
mod fold;
mod node;
mod reduce;
mod resize;
mod shape;

use crate::error::{Error, Result, bail};
use crate::tensor::from_array;
use crate::weights::onnx::{Model, Node, Value};
use node::{Call, Operator};
use std::collections::{BTreeSet, HashMap};
use tch::{Device, Kind, Tensor};

/// The tables of operators, one a file.
const TABLES: [&[(&str, Operator)]; 5] = [
    conv::OPERATORS,
    elementwise::OPERATORS,
    reduce::OPERATORS,
    resize::OPERATORS,
    shape::OPERATORS,
];

/// A value's place in the table of values.
type Slot = usize;

struct Step {
    node: Node,
    operator: Operator,
    inputs: Vec<Option<Slot>>,
    outputs: Vec<Option<Slot>>,
    /// Slots that no later step needs.
    ends: Vec<Slot>,
}

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
}

impl OnnxGraph {
    /// Converts the constants to `kind` on `device` (integers stay 64-bit on the CPU) and checks that
    /// every operator is known.
    ///
    /// Errors: `Operator` naming every operator that is missing.
    pub fn new(model: &Model, device: Device, kind: Kind) -> Result<Self> {
        let mut model = model.clone();
        known(&model)?;
        fold::batch_norms(&mut model);
        let mut slots: HashMap<String, Slot> = HashMap::new();
        let mut slot = |name: &str| {
            let next = slots.len();
            *slots.entry(name.to_string()).or_insert(next)
        };
        let input_slots: Vec<Slot> = model.inputs.iter().map(|v| slot(&v.name)).collect();
        let mut constants = HashMap::new();
        for (name, array) in &model.initializers {
            let constant = node::constant(from_array(array, Device::Cpu)?, device, kind)
                .map_err(|e| e.context(name))?;
            constants.insert(slot(name), constant);
        }
        let mut steps = vec![];
        for node in std::mem::take(&mut model.nodes) {
            let mut all = |names: &[String]| -> Vec<Option<Slot>> {
                names
                    .iter()
                    .map(|name| (!name.is_empty()).then(|| slot(name)))
                    .collect()
            };
            let (inputs, outputs) = (all(&node.inputs), all(&node.outputs));
            let Some(operator) = find(&node) else {
                bail!(Internal, "operator {} was known a moment ago", node.op);
            };
            steps.push(Step {
                node,
                operator,
                inputs,
                outputs,
                ends: vec![],
            });
        }
        let output_slots = model.outputs.iter().map(|v| slot(&v.name)).collect();
        let mut graph = Self {
            opset: model.opset,
            slots: slots.len(),
            inputs: model.inputs,
            outputs: model.outputs,
            input_slots,
            output_slots,
            constants,
            steps,
        };
        graph.precompute(device, kind)?;
        graph.find_ends();
        Ok(graph)
    }

    /// The inputs that [`OnnxGraph::forward`] takes, in order.
    pub fn inputs(&self) -> &[Value] {
        &self.inputs
    }

    /// The outputs that it returns, in order.
    pub fn outputs(&self) -> &[Value] {
        &self.outputs
    }

    /// Runs the model.
    pub fn forward(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        if inputs.len() != self.inputs.len() {
            bail!(
                Internal,
                "the model takes {} inputs, got {}",
                self.inputs.len(),
                inputs.len()
            );
        }
        let mut values: Vec<Option<Tensor>> = (0..self.slots).map(|_| None).collect();
        for (&slot, input) in self.input_slots.iter().zip(inputs) {
            values[slot] = Some(input.shallow_clone());
        }
        for step in &self.steps {
            let made = self.run(step, |slot| values[slot].as_ref())?;
            for (slot, value) in step.outputs.iter().zip(made) {
                if let Some(slot) = slot {
                    values[*slot] = Some(value);
                }
            }
            for &slot in &step.ends {
                values[slot] = None;
            }
        }
        let outputs = self.output_slots.iter().zip(&self.outputs);
        outputs
            .map(|(&slot, output)| {
                match values[slot].as_ref().or_else(|| self.constants.get(&slot)) {
                    Some(value) => Ok(value.shallow_clone()),
                    None => bail!(Internal, "output {} was not computed", output.name),
                }
            })
            .collect()
    }

    fn run<'a>(
        &'a self,
        step: &Step,
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
            inputs,
        };
        (step.operator)(&call).map_err(|e| e.context(call.title()))
    }

    /// Runs what depends on constants alone, once.
    fn precompute(&mut self, device: Device, kind: Kind) -> Result<()> {
        let _frozen = tch::no_grad_guard();
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
            let made = self.run(&step, |_| None)?;
            for (slot, value) in step.outputs.iter().zip(made) {
                if let Some(slot) = slot {
                    self.constants
                        .insert(*slot, node::constant(value, device, kind)?);
                }
            }
        }
        self.steps = rest;
        Ok(())
    }

    /// Marks after which step every value can go.
    fn find_ends(&mut self) {
        let mut needed: BTreeSet<Slot> = self.output_slots.iter().copied().collect();
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

fn find(node: &Node) -> Option<Operator> {
    if !matches!(node.domain.as_str(), "" | "ai.onnx") {
        return None;
    }
    TABLES
        .iter()
        .flat_map(|table| table.iter())
        .find(|(name, _)| *name == node.op)
        .map(|(_, operator)| *operator)
}

/// Whether an operator is implemented, for a message before anything is loaded.
fn known(model: &Model) -> Result<()> {
    let missing: BTreeSet<String> = model
        .nodes
        .iter()
        .filter(|node| find(node).is_none())
        .map(|node| match node.domain.as_str() {
            "" | "ai.onnx" => node.op.clone(),
            domain => format!("{domain}.{}", node.op),
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let example = model.nodes.iter().find(|node| find(node).is_none());
    let example = example.map_or("", |node| node.name.as_str());
    Err(Error::Operator(format!(
        "the model uses operators that are not implemented: {} (opset {}; for example in node \"{example}\")",
        missing.into_iter().collect::<Vec<_>>().join(", "),
        model.opset
    )))
}
