//! An ONNX file as plain data: nodes in topological order, initialisers as arrays.

mod depth;

use super::{Array, Dtype};
use crate::error::{Error, Result, bail};
use rten_onnx::onnx::{
    AttributeProto, AttributeType, DataLocation, DataType, GraphProto, ModelProto, NodeProto,
    TensorProto, ValueInfoProto,
};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// A model's graph.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// Version of the default operator set.
    pub opset: i64,
    /// What the caller must give: graph inputs that no initialiser fills.
    pub inputs: Vec<Value>,
    /// What the graph yields, in file order.
    pub outputs: Vec<Value>,
    /// Topologically sorted: every input of a node is a graph input, an initialiser or an earlier
    /// output.
    pub nodes: Vec<Node>,
    /// Constants by name.
    pub initializers: BTreeMap<String, Array>,
}

/// A graph input or output.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// Its name in the graph.
    pub name: String,
    /// Element type, where the file gives it.
    pub dtype: Option<Dtype>,
    /// Sizes; `None` where symbolic, unknown or not positive.
    pub shape: Vec<Option<i64>>,
}

/// One operator call.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The node's own name; may be empty.
    pub name: String,
    /// Operator (`Conv`).
    pub op: String,
    /// Operator set; empty for the default one.
    pub domain: String,
    /// Value names; an empty name is an omitted optional input.
    pub inputs: Vec<String>,
    /// Value names.
    pub outputs: Vec<String>,
    /// Attributes by name.
    pub attributes: BTreeMap<String, Attribute>,
}

/// The value of a node's attribute.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Attribute {
    Int(i64),
    Float(f32),
    Text(String),
    Tensor(Array),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
}

const MAX_RANK: usize = 16;

/// Reads a model file.
pub fn read(path: &Path) -> Result<Model> {
    let read = || match super::kind(path)? {
        super::Kind::Onnx => parse(&super::bytes(path)?),
        other => bail!(Format, "expected an ONNX model, found {other:?}"),
    };
    read().map_err(|e| e.context(path.display()))
}

/// Reads a model from a file's content.
pub fn parse(bytes: &[u8]) -> Result<Model> {
    depth::check(bytes)?;
    let model = ModelProto::parse_buf(bytes)
        .map_err(|e| Error::Format(format!("a damaged ONNX model: {e:?}; download it again")))?;
    let Some(graph) = model.graph else {
        bail!(Format, "an ONNX model without a graph; download it again");
    };
    let default =
        |domain: &Option<String>| matches!(domain.as_deref(), None | Some("") | Some("ai.onnx"));
    let opset = model
        .opset_import
        .iter()
        .find(|set| default(&set.domain))
        .and_then(|set| set.version);
    let Some(opset) = opset.filter(|&version| version > 0) else {
        bail!(Format, "an ONNX model that names no operator set");
    };
    convert(graph, opset)
}

fn convert(graph: GraphProto, opset: i64) -> Result<Model> {
    let mut initializers = BTreeMap::new();
    for tensor in graph.initializer {
        let name = tensor.name.clone().unwrap_or_default();
        let array = array(tensor).map_err(|e| e.context(format!("initialiser {name}")))?;
        initializers.insert(name, array);
    }
    let inputs = graph
        .input
        .into_iter()
        .map(value)
        .filter(|input| !initializers.contains_key(&input.name))
        .collect::<Vec<_>>();
    let nodes = graph
        .node
        .into_iter()
        .map(node)
        .collect::<Result<Vec<_>>>()?;
    let known = inputs
        .iter()
        .map(|input| input.name.as_str())
        .chain(initializers.keys().map(String::as_str));
    let order = sorted(&nodes, known)?;
    let outputs: Vec<Value> = graph.output.into_iter().map(value).collect();
    for output in &outputs {
        let made = nodes.iter().any(|node| node.outputs.contains(&output.name));
        let given = initializers.contains_key(&output.name)
            || inputs.iter().any(|input| input.name == output.name);
        if !made && !given {
            bail!(
                Format,
                "the graph's output {} is made by no node",
                output.name
            );
        }
    }
    let mut slots: Vec<Option<Node>> = nodes.into_iter().map(Some).collect();
    Ok(Model {
        opset,
        inputs,
        outputs,
        nodes: order
            .into_iter()
            .filter_map(|at| slots[at].take())
            .collect(),
        initializers,
    })
}

/// The nodes' order of computing: each after those that make its inputs.
fn sorted<'a>(nodes: &'a [Node], known: impl Iterator<Item = &'a str>) -> Result<Vec<usize>> {
    let mut maker: HashMap<&str, Option<usize>> = known.map(|name| (name, None)).collect();
    for (at, node) in nodes.iter().enumerate() {
        for output in node.outputs.iter().filter(|name| !name.is_empty()) {
            if maker.insert(output, Some(at)).is_some() {
                bail!(Format, "the value {output} is made twice");
            }
        }
    }
    let mut waiting = vec![0usize; nodes.len()];
    let mut users: Vec<Vec<usize>> = vec![vec![]; nodes.len()];
    for (at, node) in nodes.iter().enumerate() {
        for input in node.inputs.iter().filter(|name| !name.is_empty()) {
            match maker.get(input.as_str()) {
                Some(Some(from)) => {
                    users[*from].push(at);
                    waiting[at] += 1;
                }
                Some(None) => {}
                None => bail!(
                    Format,
                    "node {} ({}) uses the value {input}, which nothing makes",
                    node.name,
                    node.op
                ),
            }
        }
    }
    let mut ready: std::collections::BTreeSet<usize> =
        (0..nodes.len()).filter(|&at| waiting[at] == 0).collect();
    let mut order = vec![];
    while let Some(at) = ready.pop_first() {
        order.push(at);
        for &user in &users[at] {
            waiting[user] -= 1;
            if waiting[user] == 0 {
                ready.insert(user);
            }
        }
    }
    if order.len() < nodes.len() {
        let stuck = (0..nodes.len()).find(|&at| waiting[at] > 0).unwrap_or(0);
        bail!(
            Format,
            "node {} ({}) waits for its own output: the graph has a cycle",
            nodes[stuck].name,
            nodes[stuck].op
        );
    }
    Ok(order)
}

fn node(node: NodeProto) -> Result<Node> {
    let name = node.name.unwrap_or_default();
    let op = node.op_type.unwrap_or_default();
    let mut attributes = BTreeMap::new();
    for proto in node.attribute {
        let key = proto.name.clone().unwrap_or_default();
        let value = attribute(proto)
            .map_err(|e| e.context(format!("node {name} ({op}), attribute {key}")))?;
        attributes.insert(key, value);
    }
    Ok(Node {
        name,
        op,
        domain: node.domain.unwrap_or_default(),
        inputs: node.input,
        outputs: node.output,
        attributes,
    })
}

fn attribute(proto: AttributeProto) -> Result<Attribute> {
    Ok(match proto.r#type {
        Some(AttributeType::FLOAT) => Attribute::Float(proto.f.unwrap_or_default()),
        Some(AttributeType::INT) => Attribute::Int(proto.i.unwrap_or_default()),
        Some(AttributeType::STRING) => Attribute::Text(proto.s.unwrap_or_default()),
        Some(AttributeType::FLOATS) => Attribute::Floats(proto.floats),
        Some(AttributeType::INTS) => Attribute::Ints(proto.ints),
        Some(AttributeType::TENSOR) => match proto.t {
            Some(tensor) => Attribute::Tensor(array(tensor)?),
            None => bail!(Format, "a tensor attribute without a tensor"),
        },
        Some(AttributeType::GRAPH) => bail!(
            Operator,
            "a graph inside a node (If, Loop, Scan); export the model without control flow"
        ),
        other => bail!(Operator, "an attribute of kind {other:?}"),
    })
}

fn value(info: ValueInfoProto) -> Value {
    let tensor = info.r#type.and_then(|t| t.tensor_type);
    let dims = tensor.as_ref().and_then(|t| t.shape.as_ref());
    Value {
        name: info.name.unwrap_or_default(),
        dtype: tensor.as_ref().and_then(|t| t.elem_type).and_then(dtype),
        shape: dims.map_or(vec![], |shape| {
            let size = |d: &rten_onnx::onnx::Dimension| d.dim_value.filter(|&n| n > 0);
            shape.dim.iter().map(size).collect()
        }),
    }
}

fn dtype(kind: DataType) -> Option<Dtype> {
    Some(match kind {
        DataType::FLOAT => Dtype::F32,
        DataType::DOUBLE => Dtype::F64,
        DataType::FLOAT16 => Dtype::F16,
        DataType::BFLOAT16 => Dtype::Bf16,
        DataType::INT64 => Dtype::I64,
        DataType::INT32 => Dtype::I32,
        DataType::INT16 => Dtype::I16,
        DataType::INT8 => Dtype::I8,
        DataType::UINT8 => Dtype::U8,
        DataType::BOOL => Dtype::Bool,
        _ => return None,
    })
}

fn array(tensor: TensorProto) -> Result<Array> {
    if tensor.data_location == Some(DataLocation::EXTERNAL) || !tensor.external_data.is_empty() {
        bail!(
            Format,
            "its data lies in another file; save the model in one file (onnx.save with \
             save_as_external_data=False)"
        );
    }
    let kind = tensor.data_type.unwrap_or(DataType(0));
    let Some(dtype) = dtype(kind) else {
        bail!(
            Format,
            "element type {} is not read",
            kind.name().unwrap_or("unknown")
        );
    };
    if tensor.dims.len() > MAX_RANK {
        bail!(Limit, "{} dimensions", tensor.dims.len());
    }
    let shape: Option<Vec<usize>> = tensor
        .dims
        .iter()
        .map(|&size| usize::try_from(size).ok())
        .collect();
    let bytes = shape
        .as_deref()
        .and_then(Array::elements)
        .and_then(|count| count.checked_mul(dtype.size()));
    let (Some(shape), Some(bytes)) = (shape, bytes) else {
        bail!(Format, "impossible sizes {:?}", tensor.dims);
    };
    let data = match tensor.raw_data {
        Some(raw) if !raw.borrow().is_empty() => raw.into_inner(),
        _ => {
            // Types narrower than 32 bits are stored one a 32-bit number, halves by their bits.
            let narrow = |n: &i32| n.to_le_bytes()[..dtype.size().min(4)].to_vec();
            match dtype {
                Dtype::F32 => tensor
                    .float_data
                    .iter()
                    .flat_map(|v| v.to_le_bytes())
                    .collect(),
                Dtype::F64 => tensor
                    .double_data
                    .iter()
                    .flat_map(|v| v.to_le_bytes())
                    .collect(),
                Dtype::I64 => tensor
                    .int64_data
                    .iter()
                    .flat_map(|v| v.to_le_bytes())
                    .collect(),
                _ => tensor
                    .int32_data
                    .iter()
                    .flat_map(narrow)
                    .collect::<Vec<u8>>(),
            }
        }
    };
    if data.len() != bytes {
        bail!(
            Format,
            "sizes {shape:?} need {bytes} bytes, the file has {}; it is damaged",
            data.len()
        );
    }
    Ok(Array { dtype, shape, data })
}
