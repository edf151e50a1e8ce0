//! Automatic differentiation at the level of whole operations. Every operation computes its own vector-Jacobian
//! product: it keeps a libtorch graph, recomputes one, or knows the derivative in closed form. The graph only carries
//! gradients from node to node.

mod latents;
mod local;

pub use latents::{Decode, Unpacking, Windows, predict_x0, unpack};
pub use local::Local;

use crate::error::{Result, bail};
use tch::Tensor;

/// One operation between the inputs and the loss.
pub trait Operation: Send {
    /// A word that errors begin with, such as `decode`.
    fn name(&self) -> &'static str;

    /// Computes the value. `needs_gradient` is false where `vjp` will not be called.
    fn forward(&mut self, inputs: &[&Tensor], needs_gradient: bool) -> Result<Tensor>;

    /// Gradients with respect to the inputs, given the gradient with respect to the value; `None`
    /// where an input has no influence. It may be called more than once.
    fn vjp(&mut self, inputs: &[&Tensor], gradient: &Tensor) -> Result<Vec<Option<Tensor>>>;
}

/// A node of one [`Graph`]. Nodes are numbered from 0 in the order in which they are made.
pub type NodeId = usize;

struct Node {
    value: Tensor,
    needs_gradient: bool,
    gradient: Option<Tensor>,
    /// `None` for an input.
    operation: Option<Box<dyn Operation>>,
    inputs: Vec<NodeId>,
}

/// A graph. A node is computed when it is made, and stays until the graph is dropped.
#[derive(Default)]
pub struct Graph {
    nodes: Vec<Node>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor. The graph does not copy it, so its memory must stay valid and unchanged as long as the graph.
    /// `needs_gradient`: whether its gradient is computed.
    pub fn input(&mut self, value: Tensor, needs_gradient: bool) -> NodeId {
        self.push(Node {
            value,
            needs_gradient,
            gradient: None,
            operation: None,
            inputs: vec![],
        })
    }

    /// Adds a node: computes `operation` over earlier nodes.
    pub fn apply(
        &mut self,
        mut operation: Box<dyn Operation>,
        inputs: &[NodeId],
    ) -> Result<NodeId> {
        let values = inputs
            .iter()
            .map(|&id| self.value(id))
            .collect::<Result<Vec<_>>>()?;
        let needs_gradient = inputs.iter().any(|&id| self.nodes[id].needs_gradient);
        let value = operation
            .forward(&values, needs_gradient)
            .map_err(|e| e.context(operation.name()))?
            .detach();
        Ok(self.push(Node {
            value,
            needs_gradient,
            gradient: None,
            operation: Some(operation),
            inputs: inputs.to_vec(),
        }))
    }

    /// A node's value.
    pub fn value(&self, id: NodeId) -> Result<&Tensor> {
        Ok(&self.node(id)?.value)
    }

    /// Computes the gradients of node `id`, weighted by `seed` (ones where `None`), with respect to all earlier nodes.
    /// The gradients of an earlier call are dropped.
    pub fn backward(&mut self, id: NodeId, seed: Option<Tensor>) -> Result<()> {
        let node = self.node(id)?;
        if !node.needs_gradient {
            bail!(
                Argument,
                "backward: node {id} does not depend on an input that needs a gradient"
            );
        }
        let seed = match seed {
            None => node.value.f_ones_like()?,
            Some(seed) if seed.size() == node.value.size() => seed,
            Some(seed) => bail!(
                Shape,
                "seed: expected the shape of node {id}, {:?}, got {:?}",
                node.value.size(),
                seed.size()
            ),
        };
        self.backward_from(vec![(id, seed)])
    }

    /// [`Graph::backward`] from several nodes at once; no node is named twice. A seed has its node's shape.
    pub(crate) fn backward_from(&mut self, seeds: Vec<(NodeId, Tensor)>) -> Result<()> {
        for node in &mut self.nodes {
            node.gradient = None;
        }
        let last = seeds.iter().map(|(id, _)| *id).max();
        for (id, seed) in seeds {
            self.nodes[id].gradient = Some(seed);
        }
        for at in (0..=last.unwrap_or(0)).rev() {
            self.step(at)?;
        }
        Ok(())
    }

    /// Carries the gradient of node `at` to its inputs.
    fn step(&mut self, at: NodeId) -> Result<()> {
        let (earlier, rest) = self.nodes.split_at_mut(at);
        let node = &mut rest[0];
        let (Some(operation), true) = (&mut node.operation, node.needs_gradient) else {
            return Ok(());
        };
        let Some(gradient) = &node.gradient else {
            return Ok(());
        };
        let values: Vec<&Tensor> = node.inputs.iter().map(|&id| &earlier[id].value).collect();
        let name = operation.name();
        let gradients = operation
            .vjp(&values, gradient)
            .map_err(|e| e.context(name))?;
        for (&id, gradient) in node.inputs.iter().zip(gradients) {
            let target = &mut earlier[id];
            if let (Some(gradient), true) = (gradient, target.needs_gradient) {
                target.gradient = Some(match target.gradient.take() {
                    None => gradient,
                    Some(sum) => sum.f_add(&gradient)?,
                });
            }
        }
        Ok(())
    }

    /// The gradient with respect to `id` from the last [`Graph::backward`]; zeros where `id` has no influence.
    pub fn gradient(&self, id: NodeId) -> Result<Tensor> {
        let node = self.node(id)?;
        if !node.needs_gradient {
            bail!(
                Argument,
                "gradient: node {id} was made without needing a gradient"
            );
        }
        Ok(match &node.gradient {
            Some(gradient) => gradient.shallow_clone(),
            None => node.value.f_zeros_like()?,
        })
    }

    fn push(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn node(&self, id: NodeId) -> Result<&Node> {
        match self.nodes.get(id) {
            Some(node) => Ok(node),
            None => bail!(
                Argument,
                "node {id}: the graph has {} node(s)",
                self.nodes.len()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    struct Product;

    impl Operation for Product {
        fn name(&self) -> &'static str {
            "product"
        }
        fn forward(&mut self, inputs: &[&Tensor], _: bool) -> Result<Tensor> {
            Ok(inputs[0].f_mul(inputs[1])?)
        }
        fn vjp(&mut self, inputs: &[&Tensor], gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
            Ok(vec![
                Some(gradient.f_mul(inputs[1])?),
                Some(gradient.f_mul(inputs[0])?),
            ])
        }
    }

    fn scalar(graph: &Graph, id: NodeId) -> f64 {
        graph.gradient(id).unwrap().f_double_value(&[]).unwrap()
    }

    #[test]
    fn a_node_used_twice_collects_both_gradients() {
        let number = |v: f64| Tensor::f_full([], v, (Kind::Double, Device::Cpu)).unwrap();
        let mut graph = Graph::new();
        let x = graph.input(number(3.0), true);
        let y = graph.input(number(5.0), true);
        let constant = graph.input(number(2.0), false);
        let square = graph.apply(Box::new(Product), &[x, x]).unwrap();
        let all = graph.apply(Box::new(Product), &[square, y]).unwrap();
        let out = graph.apply(Box::new(Product), &[all, constant]).unwrap();
        graph.backward(out, None).unwrap();
        assert_eq!(scalar(&graph, x), 2.0 * 3.0 * 5.0 * 2.0);
        assert_eq!(scalar(&graph, y), 9.0 * 2.0);
        assert!(graph.gradient(constant).is_err());
        graph.backward(out, Some(number(0.5))).unwrap();
        assert_eq!(scalar(&graph, y), 9.0);
        assert!(graph.value(99).is_err());
    }
}
