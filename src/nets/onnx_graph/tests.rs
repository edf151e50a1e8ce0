//! Tests with graphs that no exporter writes.

use super::*;
use crate::weights::onnx::{Attribute, Node};
use crate::weights::{Array, Dtype};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

fn integers(values: &[i64]) -> Array {
    shaped(&[values.len()], values)
}

fn shaped(shape: &[usize], values: &[i64]) -> Array {
    let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Array {
        dtype: Dtype::I64,
        shape: shape.to_vec(),
        data,
    }
}

fn floats(shape: &[usize]) -> Array {
    let count = shape.iter().product::<usize>();
    let data = (0..count)
        .flat_map(|i| (i as f32 * 0.37 - 1.0).to_le_bytes())
        .collect();
    Array {
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        data,
    }
}

fn node(op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> Node {
    Node {
        name: op.to_lowercase(),
        op: op.into(),
        domain: String::new(),
        inputs: inputs.iter().map(|name| name.to_string()).collect(),
        outputs: vec!["y".into()],
        attributes: attributes
            .iter()
            .map(|(name, value)| (name.to_string(), value.clone()))
            .collect(),
    }
}

/// Over an input `x`, with an output `y`.
fn model(nodes: Vec<Node>, constants: &[(&str, Array)]) -> Model {
    let value = |name: &str| Value {
        name: name.into(),
        dtype: None,
        shape: vec![],
    };
    Model {
        opset: 18,
        inputs: vec![value("x")],
        outputs: vec![value("y")],
        nodes,
        initializers: constants
            .iter()
            .map(|(name, array)| (name.to_string(), array.clone()))
            .collect(),
    }
}

fn run(model: &Model) -> Result<Vec<Tensor>> {
    let values: Vec<f32> = (0..3 * 16 * 16).map(|i| i as f32 * 1e-3).collect();
    let x = Tensor::f_from_slice(&values)?.f_reshape([1, 3, 16, 16])?;
    OnnxGraph::new(model, Device::Cpu, Kind::Float)?.forward(&[&x])
}

/// Checks that a model is refused with `Limit`, and quickly.
fn too_much(name: &str, model: &Model) {
    let start = Instant::now();
    let error = run(model).expect_err(name);
    assert_eq!(error.status(), 102, "{name}: {error}");
    // A second where nothing else runs.
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{name}: {:?}",
        start.elapsed()
    );
}

#[test]
fn a_small_file_cannot_ask_for_much() {
    use Attribute::{Int, Ints, Text};
    let one = |op: &str,
               inputs: &[&str],
               attributes: &[(&str, Attribute)],
               constants: &[(&str, Array)]| {
        model(vec![node(op, inputs, attributes)], constants)
    };
    // Of constants alone, and of the input.
    for x in ["x", "c"] {
        let c = ("c", floats(&[1, 1, 1, 1]));
        let cases = [
            (
                "Expand",
                one(
                    "Expand",
                    &[x, "s"],
                    &[],
                    &[c.clone(), ("s", integers(&[99_999_999, 3, 16, 16]))],
                ),
            ),
            (
                "Tile",
                one(
                    "Tile",
                    &[x, "s"],
                    &[],
                    &[c.clone(), ("s", integers(&[1, 1, 60000, 60000]))],
                ),
            ),
            (
                "Resize",
                one(
                    "Resize",
                    &[x, "", "", "s"],
                    &[],
                    &[c.clone(), ("s", integers(&[1, 1, 60000, 60000]))],
                ),
            ),
            (
                "Resize linear",
                one(
                    "Resize",
                    &[x, "", "", "s"],
                    &[("mode", Text("cubic".into()))],
                    &[c.clone(), ("s", integers(&[60000, 3, 60000, 16]))],
                ),
            ),
            (
                "Pad",
                one(
                    "Pad",
                    &[x, "p"],
                    &[],
                    &[c.clone(), ("p", integers(&[0, 0, 0, 1 << 40, 0, 0, 0, 9]))],
                ),
            ),
            (
                "Pad edge",
                one(
                    "Pad",
                    &[x, "p"],
                    &[("mode", Text("edge".into()))],
                    &[c.clone(), ("p", integers(&[0, 0, 0, 1 << 30, 0, 0, 0, 9]))],
                ),
            ),
            (
                "Conv",
                one(
                    "Conv",
                    &["x", "w"],
                    &[("pads", Ints(vec![9999; 4]))],
                    &[("w", floats(&[2, 3, 3, 3]))],
                ),
            ),
            (
                "Pool",
                one(
                    "MaxPool",
                    &["x"],
                    &[
                        ("kernel_shape", Ints(vec![9999; 2])),
                        ("pads", Ints(vec![9998; 4])),
                    ],
                    &[],
                ),
            ),
            (
                "Gather",
                one(
                    "Gather",
                    &["x", "i"],
                    &[("axis", Int(3))],
                    &[("i", integers(&vec![0; 1 << 20]))],
                ),
            ),
        ];
        for (name, model) in cases {
            too_much(&format!("{name} of {x}"), &model);
        }
    }
    too_much(
        "ConstantOfShape",
        &one(
            "ConstantOfShape",
            &["s"],
            &[],
            &[("s", integers(&[1 << 20, 1 << 10]))],
        ),
    );
    too_much(
        "ConstantOfShape",
        &one(
            "ConstantOfShape",
            &["s"],
            &[],
            &[("s", integers(&[i64::MAX, i64::MAX]))],
        ),
    );
    too_much(
        "Reshape",
        &one(
            "Reshape",
            &["e", "s"],
            &[("allowzero", Int(1))],
            &[("e", floats(&[0])), ("s", integers(&[0, 1 << 62, 1 << 62]))],
        ),
    );
    too_much(
        "Unsqueeze",
        &one(
            "Unsqueeze",
            &["x", "a"],
            &[],
            &[("a", integers(&(0..100).collect::<Vec<_>>()))],
        ),
    );
    // A column times a row.
    let constants = [("a", floats(&[1 << 13, 1])), ("b", floats(&[1, 1 << 13]))];
    too_much("MatMul", &one("MatMul", &["a", "b"], &[], &constants));
    too_much("Gemm", &one("Gemm", &["a", "b"], &[], &constants));
    too_much("Add", &one("Add", &["a", "b"], &[], &constants));
}

#[test]
fn small_steps_add_up() {
    // Doubled forty times over: what is computed once, and what a run computes.
    for first in ["c", "x"] {
        let mut nodes = vec![];
        for at in 0..40 {
            let from = if at == 0 {
                first.to_string()
            } else {
                format!("v{at}")
            };
            let mut double = node("Concat", &[&from, &from], &[("axis", Attribute::Int(0))]);
            double.outputs = vec![if at == 39 {
                "y".into()
            } else {
                format!("v{}", at + 1)
            }];
            nodes.push(double);
        }
        too_much("doubled", &model(nodes, &[("c", floats(&[16]))]));
    }
    // Many values of a size that one may have.
    let mut nodes = vec![];
    for at in 0..1000 {
        let mut tile = node("Tile", &["x", "n"], &[]);
        tile.outputs = vec![format!("t{at}")];
        nodes.push(tile);
    }
    let names: Vec<String> = (0..1000).map(|at| format!("t{at}")).collect();
    nodes.push(node(
        "Sum",
        &names.iter().map(String::as_str).collect::<Vec<_>>(),
        &[],
    ));
    too_much("kept", &model(nodes, &[("n", integers(&[1, 1, 16, 16]))]));
    // More nodes and names than a network has.
    let many = |count| (0..count).map(|_| node("Relu", &["x"], &[])).collect();
    too_much("nodes", &model(many(1 << 17), &[]));
    too_much(
        "names",
        &model(vec![node("Sum", &vec!["x"; 1 << 21], &[])], &[]),
    );
}

#[test]
fn folding_is_linear() {
    // Thousands of norms behind convolutions, and many that share one large weight.
    let constants = [
        ("w", floats(&[1, 1, 1, 1])),
        ("large", floats(&[1, 1, 1000, 1000])),
        ("one", floats(&[1])),
    ];
    for (weight, count) in [("w", 30_000), ("large", 1000)] {
        let mut nodes = vec![];
        for at in 0..count {
            let from = if at == 0 {
                "x".to_string()
            } else {
                format!("n{at}")
            };
            let mut conv = node("Conv", &[&from, weight], &[]);
            conv.outputs = vec![format!("c{at}")];
            let mut norm = node(
                "BatchNormalization",
                &[&format!("c{at}"), "one", "one", "one", "one"],
                &[],
            );
            norm.outputs = vec![if at + 1 == count {
                "y".into()
            } else {
                format!("n{}", at + 1)
            }];
            nodes.extend([conv, norm]);
        }
        let model = model(nodes, &constants);
        let start = Instant::now();
        let graph = OnnxGraph::new(&model, Device::Cpu, Kind::Float).unwrap();
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{weight}: {:?}",
            start.elapsed()
        );
        assert!(graph.steps.len() >= count, "{}", graph.steps.len());
    }
}

#[test]
fn integers_never_trap() {
    let numbers = [i64::MIN, -7, -1, 0, 1, 7, i64::MAX];
    for op in ["Div", "Mod", "Mul", "Add", "Sub", "Pow", "Max", "Min"] {
        for b in numbers {
            let constants = [("a", integers(&numbers)), ("b", integers(&[b]))];
            let mut attributes = vec![vec![]];
            if op == "Mod" {
                attributes.push(vec![("fmod", Attribute::Int(1))]);
            }
            for attributes in attributes {
                let made = run(&model(vec![node(op, &["a", "b"], &attributes)], &constants));
                match (op, b) {
                    ("Div" | "Mod", 0) => assert_eq!(made.unwrap_err().status(), 101),
                    ("Pow", b) if b < 0 => assert_eq!(made.unwrap_err().status(), 104),
                    _ => assert_eq!(made.unwrap()[0].size(), [7]),
                }
            }
        }
    }
    // Any of the sizes, strides and places.
    for (a, b) in numbers.iter().flat_map(|a| numbers.map(|b| (*a, b))) {
        let s = [
            ("s", integers(&[a])),
            ("e", integers(&[b])),
            ("a", integers(&[2])),
            ("t", integers(&[b])),
        ];
        let pair = [("s", integers(&[a, b]))];
        let ints = |name: &'static str, values: Vec<i64>| vec![(name, Attribute::Ints(values))];
        let four = vec![a, b, b, a];
        let cases = [
            model(vec![node("Slice", &["x", "s", "e", "a", "t"], &[])], &s),
            model(vec![node("Slice", &["x", "e", "s", "a", "s"], &[])], &s),
            model(vec![node("Reshape", &["x", "s"], &[])], &pair),
            model(vec![node("Expand", &["x", "s"], &[])], &pair),
            model(vec![node("Gather", &["x", "s"], &[])], &pair),
            model(vec![node("ConstantOfShape", &["s"], &[])], &pair),
            model(vec![node("Split", &["x", "s"], &[])], &pair),
            model(
                vec![node(
                    "Shape",
                    &["x"],
                    &[("start", Attribute::Int(a)), ("end", Attribute::Int(b))],
                )],
                &[],
            ),
            model(
                vec![node("Flatten", &["x"], &[("axis", Attribute::Int(a))])],
                &[],
            ),
            model(
                vec![node("Transpose", &["x"], &ints("perm", four.clone()))],
                &[],
            ),
            model(
                vec![node("Pad", &["x", "p"], &[])],
                &[("p", integers(&[0, 0, a, 0, 0, 0, b, 0]))],
            ),
            model(
                vec![node("Tile", &["x", "p"], &[])],
                &[("p", integers(&four))],
            ),
            model(
                vec![node("Resize", &["x", "", "", "p"], &[])],
                &[("p", integers(&four))],
            ),
            model(
                vec![node("Conv", &["x", "w"], &ints("pads", four.clone()))],
                &[("w", floats(&[1, 3, 2, 2]))],
            ),
            model(
                vec![node("Conv", &["x", "w"], &ints("strides", vec![a, b]))],
                &[("w", floats(&[1, 3, 2, 2]))],
            ),
            model(
                vec![node("Conv", &["x", "w"], &ints("dilations", vec![a, b]))],
                &[("w", floats(&[1, 3, 2, 2]))],
            ),
            model(
                vec![node("Conv", &["x", "w"], &[("group", Attribute::Int(a))])],
                &[("w", floats(&[1, 3, 2, 2]))],
            ),
            model(
                vec![node("MaxPool", &["x"], &ints("kernel_shape", vec![a, b]))],
                &[],
            ),
            model(
                vec![node(
                    "AveragePool",
                    &["x"],
                    &[
                        ("kernel_shape", Attribute::Ints(vec![2, 2])),
                        ("strides", Attribute::Ints(vec![a, b])),
                        ("ceil_mode", Attribute::Int(1)),
                    ],
                )],
                &[],
            ),
        ];
        for case in cases {
            if let Err(error) = run(&case) {
                assert!(
                    (101..=104).contains(&error.status()),
                    "{a} {b} {}: {error}",
                    case.nodes[0].op
                );
            }
        }
    }
}

#[test]
fn every_operator_meets_every_value() {
    let values = [
        ("empty", floats(&[0])),
        ("hollow", floats(&[1, 3, 0, 4])),
        ("nothing", integers(&[])),
        ("number", floats(&[])),
        ("index", shaped(&[], &[1])),
        ("negative", integers(&[-1, i64::MIN])),
        ("row", floats(&[4])),
        ("picture", floats(&[1, 3, 4, 4])),
        ("list", integers(&[1, 3, 4, 4])),
    ];
    let names: Vec<&str> = values
        .iter()
        .map(|(name, _)| *name)
        .chain(["", "x"])
        .collect();
    let attributes: BTreeMap<&str, Attribute> = BTreeMap::from([
        ("kernel_shape", Attribute::Ints(vec![2, 2])),
        ("axis", Attribute::Int(0)),
        ("to", Attribute::Int(7)),
    ]);
    let (mut done, mut refused) = (0, 0);
    for operator in operators::TABLES.iter().flat_map(|table| table.iter()) {
        let given: Vec<(&str, Attribute)> = operator
            .attributes
            .iter()
            .filter_map(|name| Some((*name, attributes.get(name)?.clone())))
            .collect();
        for (a, b, c) in names.iter().flat_map(|a| {
            names
                .iter()
                .flat_map(|b| ["", "row", "list"].map(|c| (*a, *b, c)))
        }) {
            for inputs in [
                vec![a],
                vec![a, b],
                vec![a, b, c],
                vec![a, "", "", b],
                vec![a, b, "row", "row", c],
            ] {
                match run(&model(vec![node(operator.name, &inputs, &given)], &values)) {
                    Ok(made) => done += made.len(),
                    Err(error) => {
                        let text = format!("{} {inputs:?}: {error}", operator.name);
                        assert!((101..=104).contains(&error.status()), "{text}");
                        refused += 1;
                    }
                }
            }
        }
        let none = run(&model(vec![node(operator.name, &[], &given)], &values));
        assert!(
            none.is_err() || operator.name == "Constant",
            "{}",
            operator.name
        );
    }
    assert!(done > 1000 && refused > 1000, "{done} {refused}");
}

#[test]
fn what_is_used_twice_is_not_overwritten() {
    // relu(x + x) − (x + x), with the sum also looked at afterwards.
    let mut sum = node("Add", &["x", "x"], &[]);
    sum.outputs = vec!["s".into()];
    let mut relu = node("Relu", &["s"], &[]);
    relu.outputs = vec!["r".into()];
    let twice = model(
        vec![sum.clone(), relu.clone(), node("Sub", &["r", "s"], &[])],
        &[],
    );
    let graph = OnnxGraph::new(&twice, Device::Cpu, Kind::Float).unwrap();
    assert!(!graph.steps.iter().any(|step| step.in_place));
    let once = model(vec![sum, relu, node("Identity", &["r"], &[])], &[]);
    let graph = OnnxGraph::new(&once, Device::Cpu, Kind::Float).unwrap();
    assert!(graph.steps[1].in_place && !graph.steps[0].in_place);
    let x = Tensor::f_from_slice(&[-1f32, 2.0])
        .unwrap()
        .f_set_requires_grad(true)
        .unwrap();
    let made = graph.forward(&[&x]).unwrap().remove(0);
    let ones = made.f_ones_like().unwrap();
    let gradient = crate::tensor::vjp(&made, &[&x], &ones, false)
        .unwrap()
        .remove(0);
    assert_eq!(Vec::<f32>::try_from(&gradient).unwrap(), [0.0, 2.0]);
    assert_eq!(Vec::<f32>::try_from(x.detach()).unwrap(), [-1.0, 2.0]);
}

#[test]
fn a_batch_of_one_that_is_baked_in_can_be_freed() {
    let flat = node("Reshape", &["x", "s"], &[]);
    let model = model(vec![flat], &[("s", integers(&[1, -1]))]);
    let mut graph = OnnxGraph::new(&model, Device::Cpu, Kind::Float).unwrap();
    let two = Tensor::f_from_slice(&[1f32, 2.0, 3.0, 4.0])
        .unwrap()
        .f_reshape([2, 2])
        .unwrap();
    assert_eq!(graph.forward(&[&two]).unwrap()[0].size(), [1, 4]);
    graph.free_batch(true);
    assert_eq!(graph.forward(&[&two]).unwrap()[0].size(), [2, 2]);
}

#[test]
fn a_batch_of_one_that_is_baked_into_a_resize_can_be_freed() {
    let larger = node(
        "Resize",
        &["x", "", "", "s"],
        &[("mode", Attribute::Text("nearest".into()))],
    );
    let model = model(vec![larger], &[("s", integers(&[1, 1, 2, 1]))]);
    let mut graph = OnnxGraph::new(&model, Device::Cpu, Kind::Float).unwrap();
    let two = Tensor::f_from_slice(&[1f32, 2.0])
        .unwrap()
        .f_reshape([2, 1, 1, 1])
        .unwrap();
    assert_eq!(graph.forward(&[&two]).unwrap()[0].size(), [1, 1, 2, 1]);
    graph.free_batch(true);
    let made = graph.forward(&[&two]).unwrap().remove(0);
    assert_eq!(made.size(), [2, 1, 2, 1]);
    let made = Vec::<f32>::try_from(made.f_view(-1).unwrap()).unwrap();
    assert_eq!(made, [1.0, 1.0, 2.0, 2.0]);
}

#[test]
fn another_engine_is_not_given_what_folds_without_end() {
    let vast = model(
        vec![node("ConstantOfShape", &["s"], &[])],
        &[("s", integers(&[1 << 20, 1 << 10]))],
    );
    assert_eq!(OnnxGraph::check_constants(&vast).unwrap_err().status(), 102);
    let mut unknown = model(
        vec![node("Einsum", &["s"], &[]), node("Relu", &["x"], &[])],
        &[],
    );
    OnnxGraph::check_constants(&unknown).unwrap();
    unknown.nodes.clear();
    OnnxGraph::check_constants(&unknown).unwrap();
}

#[test]
fn what_an_operator_does_not_understand_is_an_error() {
    let relu = node("Relu", &["x"], &[("axis", Attribute::Int(1))]);
    let error = run(&model(vec![relu], &[])).unwrap_err();
    assert_eq!(error.status(), 104);
    assert!(error.message().contains("attribute axis"), "{error}");
    let flat = node("Flatten", &["x"], &[("axis", Attribute::Float(1.0))]);
    assert_eq!(run(&model(vec![flat], &[])).unwrap_err().status(), 101);
}
