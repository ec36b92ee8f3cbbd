//! A forest as the attributes of one tree operator.

use crate::forest::{Forest, Node};
use crate::onnx::graph::{floats, int, ints, string, strings};
use crate::onnx::schema::AttributeProto;

/// The parallel arrays that describe all nodes of all trees.
#[derive(Default)]
struct Nodes {
    tree_ids: Vec<i64>,
    node_ids: Vec<i64>,
    modes: Vec<&'static str>,
    columns: Vec<i64>,
    thresholds: Vec<f32>,
    left: Vec<i64>,
    right: Vec<i64>,
    missing_left: Vec<i64>,
    leaf_trees: Vec<i64>,
    leaf_ids: Vec<i64>,
    leaf_outputs: Vec<i64>,
    leaf_values: Vec<f32>,
}

impl Nodes {
    fn push(&mut self, tree: i64, id: i64, output: i64, node: Node) {
        self.tree_ids.push(tree);
        self.node_ids.push(id);
        match node {
            Node::Split {
                column,
                threshold,
                left,
                right,
                missing_left,
                ..
            } => {
                self.modes.push("BRANCH_LT");
                self.columns.push(i64::from(column));
                self.thresholds.push(threshold);
                self.left.push(i64::from(left));
                self.right.push(i64::from(right));
                self.missing_left.push(i64::from(missing_left));
            }
            Node::Leaf(value) => {
                self.modes.push("LEAF");
                self.columns.push(0);
                self.thresholds.push(0.0);
                self.left.push(0);
                self.right.push(0);
                self.missing_left.push(0);
                self.leaf_trees.push(tree);
                self.leaf_ids.push(id);
                self.leaf_outputs.push(output);
                self.leaf_values.push(value);
            }
        }
    }
}

/// Attributes of a `TreeEnsembleRegressor` that answers the forest's scores: `[rows, outputs]`.
pub(crate) fn attributes(forest: &Forest) -> Vec<AttributeProto> {
    let mut nodes = Nodes::default();
    let mut tree_id = 0;
    for (output, ensemble) in forest.outputs.iter().enumerate() {
        for tree in &ensemble.trees {
            for (id, node) in tree.nodes.iter().enumerate() {
                nodes.push(tree_id, id as i64, output as i64, *node);
            }
            tree_id += 1;
        }
    }
    let bases = forest.outputs.iter().map(|ensemble| ensemble.base).collect();
    vec![
        string("aggregate_function", "SUM"),
        string("post_transform", "NONE"),
        int("n_targets", forest.outputs.len() as i64),
        floats("base_values", bases),
        ints("nodes_treeids", nodes.tree_ids),
        ints("nodes_nodeids", nodes.node_ids),
        strings("nodes_modes", nodes.modes.into_iter()),
        ints("nodes_featureids", nodes.columns),
        floats("nodes_values", nodes.thresholds),
        ints("nodes_truenodeids", nodes.left),
        ints("nodes_falsenodeids", nodes.right),
        ints("nodes_missing_value_tracks_true", nodes.missing_left),
        ints("target_treeids", nodes.leaf_trees),
        ints("target_nodeids", nodes.leaf_ids),
        ints("target_ids", nodes.leaf_outputs),
        floats("target_weights", nodes.leaf_values),
    ]
}
