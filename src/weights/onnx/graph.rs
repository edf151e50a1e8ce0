//! Reads the messages of onnx.proto (<https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>) to a
//! [`Model`]. There is one function per message. It calls only functions further down this file, so there is no
//! recursion. The numbers are those of the fields.

use super::external::Neighbours;
use super::tensor;
use super::wire::{self, Field, damaged, fields};
use super::{Attribute, Model, Node, Value};
use crate::error::{Result, bail, brief};
use crate::weights::budget::Budget;

// The bytes that are kept for a node, a name, an attribute, the first attribute of a node, a graph's input and a
// size while the nodes are sorted, without the letters of names.
const NODE: usize = 512;
const NAME: usize = 160;
const ATTRIBUTE: usize = 320;
const ATTRIBUTES: usize = 1536;
const VALUE: usize = 320;
const NUMBER: usize = 32;

/// The most dimensions of an input: more than any exporter writes.
const MAX_RANK: usize = 16;

/// Reads the messages of one file.
pub struct Reader<'a> {
    /// What reading the file may still cost.
    pub budget: &'a Budget,
    /// The files beside the model.
    pub neighbours: &'a Neighbours<'a>,
}

impl Reader<'_> {
    /// ModelProto. The nodes are in the file's order.
    pub fn model(&self, message: &[u8]) -> Result<Model> {
        let (mut opset, mut graph) = (None, None);
        for field in fields(message) {
            match field? {
                (7, value) if graph.is_none() => graph = Some(value.bytes()?),
                (7, _) => return Err(damaged("a second graph")),
                (8, value) => {
                    if let Some(version) = default_opset(value.bytes()?)? {
                        opset = opset.or(Some(version));
                    }
                }
                _ => {}
            }
        }
        let Some(graph) = graph else {
            bail!(Format, "an ONNX model without a graph; download it again");
        };
        let Some(opset) = opset.filter(|&version| version > 0) else {
            bail!(Format, "an ONNX model that names no operator set");
        };
        let mut model = Model {
            opset,
            ..Model::default()
        };
        self.graph(graph, &mut model)?;
        // Before IR version 4 every initialiser was listed among the inputs too.
        let constants = &model.initializers;
        model
            .inputs
            .retain(|input| !constants.contains_key(&input.name));
        Ok(model)
    }

    /// GraphProto.
    fn graph(&self, message: &[u8], model: &mut Model) -> Result<()> {
        for field in fields(message) {
            match field? {
                (1, value) => model.nodes.push(self.node(value.bytes()?)?),
                (5, value) => {
                    let array = tensor::named(value.bytes()?, self.budget, self.neighbours);
                    let (name, array) = array.map_err(|e| e.context("an initialiser"))?;
                    self.budget.take(ATTRIBUTE)?;
                    if model.initializers.insert(self.name(name)?, array).is_some() {
                        return Err(damaged(&format!("initialiser {} twice", brief(name))));
                    }
                }
                (11, value) => model.inputs.push(self.value(value.bytes()?)?),
                (12, value) => model.outputs.push(self.value(value.bytes()?)?),
                (15, _) => bail!(
                    Operator,
                    "a sparse initialiser; export the model with dense ones"
                ),
                _ => {}
            }
        }
        Ok(())
    }

    /// NodeProto.
    fn node(&self, message: &[u8]) -> Result<Node> {
        self.budget.take(NODE)?;
        let mut node = Node::default();
        for field in fields(message) {
            match field? {
                (1, value) => node.inputs.push(self.name(value.text()?)?),
                (2, value) => node.outputs.push(self.name(value.text()?)?),
                (3, value) => node.name = self.name(value.text()?)?,
                (4, value) => node.op = self.name(value.text()?)?,
                (7, value) => node.domain = self.name(value.text()?)?,
                _ => {}
            }
        }
        for field in fields(message) {
            let (5, value) = field? else {
                continue;
            };
            self.budget.take(match node.attributes.is_empty() {
                true => ATTRIBUTES,
                false => ATTRIBUTE,
            })?;
            let (name, attribute) = self.attribute(value.bytes()?).map_err(|e| {
                let (name, op) = (brief(&node.name), brief(&node.op));
                e.context(format!("node {name} ({op})"))
            })?;
            node.attributes.insert(name, attribute);
        }
        Ok(node)
    }

    /// AttributeProto. Of its many values, the one is used that its type names.
    fn attribute(&self, message: &[u8]) -> Result<(String, Attribute)> {
        let (mut name, mut kind) = ("", 0);
        for field in fields(message) {
            match field? {
                (1, value) => name = value.text()?,
                (20, value) => kind = value.int()?,
                _ => {}
            }
        }
        let attribute = self
            .typed(message, kind)
            .map_err(|e| e.context(format!("attribute {}", brief(name))))?;
        Ok((self.name(name)?, attribute))
    }

    fn typed(&self, message: &[u8], kind: i64) -> Result<Attribute> {
        let mut attribute = match kind {
            1 => Attribute::Float(0.0),
            2 => Attribute::Int(0),
            3 => Attribute::Text(String::new()),
            4 => return self.constant(message),
            6 => Attribute::Floats(vec![]),
            7 => Attribute::Ints(vec![]),
            5 | 10 => bail!(
                Operator,
                "a graph inside a node (If, Loop, Scan); export the model without control flow"
            ),
            8 => bail!(Operator, "a list of texts, which no operator here takes"),
            9 => bail!(Operator, "a list of tensors, which no operator here takes"),
            other => bail!(Operator, "an attribute of kind {other}, which is not read"),
        };
        for field in fields(message) {
            match (field?, &mut attribute) {
                ((2, Field::Fixed32(bytes)), Attribute::Float(f)) => *f = f32::from_le_bytes(bytes),
                ((2, _), Attribute::Float(_)) => return Err(damaged("a float of the wrong kind")),
                ((3, value), Attribute::Int(i)) => *i = value.int()?,
                ((4, value), Attribute::Text(text)) => {
                    let bytes = value.bytes()?;
                    // Bytes that are not text become three times as long.
                    self.budget.take(4 * bytes.len())?;
                    *text = String::from_utf8_lossy(bytes).into_owned();
                }
                ((7, value), Attribute::Floats(list)) => wire::fixeds::<4>(value, |bytes| {
                    self.budget.take(NUMBER * bytes.len() / 4)?;
                    let floats = bytes.chunks_exact(4);
                    list.extend(
                        floats.map(|b| f32::from_le_bytes(b.try_into().unwrap_or_default())),
                    );
                    Ok(())
                })?,
                ((8, value), Attribute::Ints(list)) => wire::ints(value, |number| {
                    self.budget.take(NUMBER)?;
                    list.push(number);
                    Ok(())
                })?,
                _ => {}
            }
        }
        Ok(attribute)
    }

    /// The tensor of an attribute.
    fn constant(&self, message: &[u8]) -> Result<Attribute> {
        let mut found = None;
        for field in fields(message) {
            if let (5, value) = field? {
                found = Some(value.bytes()?);
            }
        }
        match found {
            Some(message) => tensor::named(message, self.budget, self.neighbours)
                .map(|(_, array)| Attribute::Tensor(array)),
            None => bail!(Format, "a tensor attribute without a tensor"),
        }
    }

    /// ValueInfoProto.
    fn value(&self, message: &[u8]) -> Result<Value> {
        self.budget.take(VALUE)?;
        let mut value = Value {
            name: String::new(),
            dtype: None,
            shape: vec![],
        };
        for field in fields(message) {
            match field? {
                (1, name) => value.name = self.name(name.text()?)?,
                (2, kind) => {
                    for field in fields(kind.bytes()?) {
                        if let (1, tensor) = field? {
                            tensor_type(tensor.bytes()?, &mut value)?;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(value)
    }

    fn name(&self, name: &str) -> Result<String> {
        self.budget.take(NAME + 2 * name.len())?;
        Ok(name.to_string())
    }
}

/// TypeProto.Tensor.
fn tensor_type(message: &[u8], value: &mut Value) -> Result<()> {
    for field in fields(message) {
        match field? {
            (1, kind) => value.dtype = tensor::dtype(kind.int()?),
            (2, shape) => {
                value.shape.clear();
                for field in fields(shape.bytes()?) {
                    let (1, size) = field? else {
                        continue;
                    };
                    if value.shape.len() == MAX_RANK {
                        bail!(
                            Limit,
                            "{}: more than {MAX_RANK} dimensions",
                            brief(&value.name)
                        );
                    }
                    value.shape.push(dimension(size.bytes()?)?);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// TensorShapeProto.Dimension.
fn dimension(message: &[u8]) -> Result<Option<i64>> {
    let mut size = None;
    for field in fields(message) {
        if let (1, value) = field? {
            size = Some(value.int()?).filter(|&n| n > 0);
        }
    }
    Ok(size)
}

/// The version of an OperatorSetIdProto; `None` where it is not the default set's.
fn default_opset(message: &[u8]) -> Result<Option<i64>> {
    let (mut domain, mut version) = ("", None);
    for field in fields(message) {
        match field? {
            (1, value) => domain = value.text()?,
            (2, value) => version = Some(value.int()?),
            _ => {}
        }
    }
    Ok(version.filter(|_| matches!(domain, "" | "ai.onnx")))
}
