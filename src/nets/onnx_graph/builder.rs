//! From a model's nodes and constants to the steps and slots of a graph.

use super::fold::{self, Folded};
use super::node::{self, Operator};
use super::{budget, operators};
use crate::error::{Result, bail};
use crate::tensor::from_array;
use crate::weights::Array;
use crate::weights::onnx::{Model, Node};
use std::collections::HashMap;
use tch::{Device, Kind, Tensor};

/// A value's place in the table of values.
pub type Slot = usize;

/// One operator call of a graph.
pub struct Step {
    /// The node.
    pub node: Node,
    /// Its operator.
    pub operator: &'static Operator,
    /// The slots of its inputs; `None` where an optional one is left out.
    pub inputs: Vec<Option<Slot>>,
    /// The slots of its outputs; `None` where one is not used.
    pub outputs: Vec<Option<Slot>>,
    /// Slots that no later step needs.
    pub ends: Vec<Slot>,
    /// Whether the first input's memory may hold the output.
    pub in_place: bool,
}

/// Gives every value a slot.
pub struct Builder<'a> {
    slots: HashMap<&'a str, Slot>,
    /// How many slots there are.
    pub count: usize,
    /// The constants by slot.
    pub constants: HashMap<Slot, Tensor>,
    device: Device,
    kind: Kind,
}

impl<'a> Builder<'a> {
    /// A builder whose constants are on `device`, floats in `kind`.
    pub fn new(device: Device, kind: Kind) -> Self {
        Self {
            slots: HashMap::new(),
            count: 0,
            constants: HashMap::new(),
            device,
            kind,
        }
    }

    /// The slot of the value `name`.
    pub fn slot(&mut self, name: &'a str) -> Slot {
        let count = &mut self.count;
        *self.slots.entry(name).or_insert_with(|| {
            *count += 1;
            *count - 1
        })
    }

    /// The slots of values; `None` for an empty name.
    fn all(&mut self, names: &'a [String]) -> Vec<Option<Slot>> {
        let slot = |name: &'a String| (!name.is_empty()).then(|| self.slot(name));
        names.iter().map(slot).collect()
    }

    /// A slot for a constant without a name.
    fn constant(&mut self, array: &Array) -> Result<Slot> {
        let slot = self.count;
        self.count += 1;
        self.constants.insert(slot, self.tensor(array)?);
        Ok(slot)
    }

    /// A constant as a tensor.
    fn tensor(&self, array: &Array) -> Result<Tensor> {
        budget::limited_array(array)?;
        node::constant(from_array(array, Device::Cpu)?, self.device, self.kind)
    }

    /// The steps of a model, with batch norms folded into convolutions.
    pub fn steps(&mut self, model: &'a Model) -> Result<Vec<Step>> {
        let mut folded = fold::batch_norms(model);
        let mut steps = vec![];
        for (at, node) in model.nodes.iter().enumerate() {
            let Some(operator) = operators::find(node) else {
                bail!(Internal, "operator {} was known a moment ago", node.op);
            };
            let (inputs, outputs) = match folded.remove(&at) {
                Some(Folded::Gone) => continue,
                Some(Folded::Conv { norm, weight, bias }) => {
                    let mut inputs = self.all(&node.inputs[..1]);
                    inputs.push(Some(self.constant(&weight)?));
                    inputs.push(Some(self.constant(&bias)?));
                    (inputs, self.all(&model.nodes[norm].outputs))
                }
                None => (self.all(&node.inputs), self.all(&node.outputs)),
            };
            steps.push(Step {
                node: node.clone(),
                operator,
                inputs,
                outputs,
                ends: vec![],
                in_place: false,
            });
        }
        Ok(steps)
    }

    /// Adds the file's constants that some node uses.
    pub fn initializers(&mut self, model: &Model) -> Result<()> {
        for (name, array) in &model.initializers {
            if let Some(&slot) = self.slots.get(name.as_str()) {
                let constant = self.tensor(array).map_err(|e| e.context(name))?;
                self.constants.insert(slot, constant);
            }
        }
        Ok(())
    }
}
