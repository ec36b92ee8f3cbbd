//! The models of the benchmark, of made-up weights that are the same in every run.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::onnx::{Attribute, Graph};

/// What the weights are made of.
const SEED: u64 = 7;

/// The input of every model but the encoder, and the output of every one.
pub const INPUT: &str = "x";
pub const OUTPUT: &str = "y";
/// The input of the encoder.
pub const TOKENS: &str = "input_ids";

/// The features of the gradient-boosted model.
pub const FEATURES: usize = 30;
const TREES: usize = 100;
const DEPTH: u32 = 6;

/// The layers of the perceptron.
pub const LAYERS: [usize; 4] = [256, 768, 768, 16];

/// The encoder's tokens are 1 and more; 0 is what sequences are filled up with.
pub const VOCABULARY: i64 = 1000;
/// The longest sequence.
pub const MAX_LENGTH: usize = 128;
const ENCODER_LAYERS: usize = 6;
const HIDDEN: i64 = 384;
const HEADS: i64 = 12;
const FEED_FORWARD: i64 = 1536;
/// What attention to a token that is none gets added.
const MASKED: f32 = -10_000.0;

fn random() -> StdRng {
    StdRng::seed_from_u64(SEED)
}

/// Made-up values about zero.
fn weights(random: &mut StdRng, count: i64, most: f32) -> Vec<f32> {
    (0..count).map(|_| random.random_range(-most..most)).collect()
}

/// Complete trees of made-up splits and leaves over numeric features, as boosting makes them: their sum is the answer.
pub fn gradient_boosted() -> Vec<u8> {
    let mut random = random();
    let (inner, all) = ((1_i64 << DEPTH) - 1, (1_i64 << (DEPTH + 1)) - 1);
    let (mut trees, mut nodes, mut features, mut values) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut modes, mut below, mut above) = (Vec::new(), Vec::new(), Vec::new());
    let (mut leaf_trees, mut leaves, mut leaf_values) = (Vec::new(), Vec::new(), Vec::new());
    for tree in 0..TREES as i64 {
        for node in 0..all {
            let is_leaf = node >= inner;
            trees.push(tree);
            nodes.push(node);
            modes.push(if is_leaf { "LEAF" } else { "BRANCH_LEQ" });
            features.push(if is_leaf {
                0
            } else {
                random.random_range(0..FEATURES as i64)
            });
            values.push(if is_leaf { 0.0 } else { random.random_range(-1.0..1.0) });
            below.push(if is_leaf { 0 } else { 2 * node + 1 });
            above.push(if is_leaf { 0 } else { 2 * node + 2 });
            if is_leaf {
                leaf_trees.push(tree);
                leaves.push(node);
                leaf_values.push(random.random_range(-0.1..0.1));
            }
        }
    }
    let mut graph = Graph::new();
    graph.input_floats(INPUT, &[-1, FEATURES as i64]);
    graph.output_floats(OUTPUT, &[-1, 1]);
    let attributes = vec![
        Attribute::number("n_targets", 1),
        Attribute::numbers("nodes_treeids", trees),
        Attribute::numbers("nodes_nodeids", nodes),
        Attribute::texts("nodes_modes", &modes),
        Attribute::numbers("nodes_featureids", features),
        Attribute::floats("nodes_values", values),
        Attribute::numbers("nodes_truenodeids", below),
        Attribute::numbers("nodes_falsenodeids", above),
        Attribute::numbers("target_ids", vec![0; leaves.len()]),
        Attribute::numbers("target_treeids", leaf_trees),
        Attribute::numbers("target_nodeids", leaves),
        Attribute::floats("target_weights", leaf_values),
    ];
    graph.tree_node("TreeEnsembleRegressor", INPUT, OUTPUT, attributes);
    graph.into_file()
}

/// Layers with rectified sums between them; about 800,000 weights.
pub fn perceptron() -> Vec<u8> {
    let mut random = random();
    let mut graph = Graph::new();
    let widths = LAYERS.map(|width| width as i64);
    let [first, .., last] = widths;
    graph.input_floats(INPUT, &[-1, first]);
    graph.output_floats(OUTPUT, &[-1, last]);
    let mut at = INPUT.to_owned();
    for (layer, pair) in widths.windows(2).enumerate() {
        let &[rows, columns] = pair else { continue };
        let (weight, bias) = (format!("w{layer}"), format!("b{layer}"));
        graph.floats(&weight, &[rows, columns], &weights(&mut random, rows * columns, 0.05));
        graph.floats(&bias, &[columns], &weights(&mut random, columns, 0.05));
        if layer + 2 == widths.len() {
            graph.node("Gemm", &[&at, &weight, &bias], OUTPUT);
        } else {
            let sum = format!("sum{layer}");
            graph.node("Gemm", &[&at, &weight, &bias], &sum);
            at = format!("h{layer}");
            graph.node("Relu", &[&sum], &at);
        }
    }
    graph.into_file()
}

/// `y = x * factor` for rows of so many floats.
pub fn scale(width: usize, factor: f32) -> Vec<u8> {
    let mut graph = Graph::new();
    graph.input_floats(INPUT, &[-1, width as i64]);
    graph.output_floats(OUTPUT, &[-1, width as i64]);
    graph.floats("factor", &[1], &[factor]);
    graph.node("Mul", &[INPUT, "factor"], OUTPUT);
    graph.into_file()
}

/// An encoder of the shape of MiniLM: tokens in, the mean of the last layer over the tokens that are not 0 out. What is filled up
/// with 0 changes no answer.
pub fn encoder() -> Vec<u8> {
    let mut encoder = Encoder {
        graph: Graph::new(),
        random: random(),
    };
    let mut at = encoder.embed();
    for layer in 0..ENCODER_LAYERS {
        let attended = encoder.attend(&format!("l{layer}_attention"), &at);
        let joined = encoder.join(&format!("l{layer}_attended"), &at, &attended);
        let fed = encoder.feed(&format!("l{layer}_feed"), &joined);
        at = encoder.join(&format!("l{layer}"), &joined, &fed);
    }
    encoder.pool(&at);
    encoder.graph.into_file()
}

/// An encoder as it grows. What its parts are called begins with the layer's name.
struct Encoder {
    graph: Graph,
    random: StdRng,
}

impl Encoder {
    /// Tokens and places as vectors; and the masks, as factors and as what is added to scores.
    fn embed(&mut self) -> String {
        let graph = &mut self.graph;
        graph.input_numbers(TOKENS, &[-1, -1]);
        let words = weights(&mut self.random, VOCABULARY * HIDDEN, 0.5);
        graph.floats("words", &[VOCABULARY, HIDDEN], &words);
        let places = weights(&mut self.random, MAX_LENGTH as i64 * HIDDEN, 0.5);
        graph.floats("places", &[MAX_LENGTH as i64, HIDDEN], &places);
        graph.numbers("zero", &[1], &[0]);
        graph.numbers("one", &[1], &[1]);
        graph.numbers("two", &[1], &[2]);
        graph.node("Gather", &["words", TOKENS], "word_vectors");
        let length = vec![Attribute::number("start", 1)];
        graph.node_with("Shape", &[TOKENS], "length", length);
        graph.node("Slice", &["places", "zero", "length", "zero"], "place_vectors");
        graph.node("Add", &["word_vectors", "place_vectors"], "vectors");
        graph.node("Equal", &[TOKENS, "zero"], "is_fill");
        graph.node_with("Cast", &["is_fill"], "fill", vec![Attribute::number("to", 1)]);
        graph.floats("masked", &[1], &[MASKED]);
        graph.node("Mul", &["fill", "masked"], "fill_scores");
        graph.numbers("score_axes", &[2], &[1, 2]);
        graph.node("Unsqueeze", &["fill_scores", "score_axes"], "scores_mask");
        graph.floats("whole", &[1], &[1.0]);
        graph.node("Sub", &["whole", "fill"], "kept");
        graph.node("Unsqueeze", &["kept", "two"], "kept_vectors");
        graph.numbers("by_head", &[4], &[0, 0, HEADS, HIDDEN / HEADS]);
        graph.numbers("of_all_heads", &[3], &[0, 0, HIDDEN]);
        graph.floats("scale", &[1], &[((HIDDEN / HEADS) as f32).sqrt().recip()]);
        self.normalize("embedded", "vectors");
        "embedded".to_owned()
    }

    /// A matrix and what is added to it.
    fn dense(&mut self, name: &str, input: &str, rows: i64, columns: i64) {
        let (weight, bias, product) = (format!("{name}_w"), format!("{name}_b"), format!("{name}_product"));
        let values = weights(&mut self.random, rows * columns, 0.05);
        self.graph.floats(&weight, &[rows, columns], &values);
        let values = weights(&mut self.random, columns, 0.05);
        self.graph.floats(&bias, &[columns], &values);
        self.graph.node("MatMul", &[input, &weight], &product);
        self.graph.node("Add", &[&product, &bias], name);
    }

    fn normalize(&mut self, name: &str, input: &str) {
        let (scale, bias) = (format!("{name}_scale"), format!("{name}_bias"));
        let ones = vec![1.0; HIDDEN as usize];
        self.graph.floats(&scale, &[HIDDEN], &ones);
        let values = weights(&mut self.random, HIDDEN, 0.05);
        self.graph.floats(&bias, &[HIDDEN], &values);
        let last_axis = vec![Attribute::number("axis", -1)];
        self.graph
            .node_with("LayerNormalization", &[input, &scale, &bias], name, last_axis);
    }

    /// A sum, normalized.
    fn join(&mut self, name: &str, one: &str, other: &str) -> String {
        let sum = format!("{name}_sum");
        self.graph.node("Add", &[one, other], &sum);
        let normal = format!("{name}_normal");
        self.normalize(&normal, &sum);
        normal
    }

    /// A part of attention, one matrix a head.
    fn heads(&mut self, name: &str, input: &str, order: [i64; 4]) -> String {
        self.dense(name, input, HIDDEN, HIDDEN);
        let (split, turned) = (format!("{name}_split"), format!("{name}_heads"));
        self.graph.node("Reshape", &[name, "by_head"], &split);
        let order = vec![Attribute::numbers("perm", order.to_vec())];
        self.graph.node_with("Transpose", &[&split], &turned, order);
        turned
    }

    fn attend(&mut self, name: &str, input: &str) -> String {
        let query = self.heads(&format!("{name}_query"), input, [0, 2, 1, 3]);
        let key = self.heads(&format!("{name}_key"), input, [0, 2, 3, 1]);
        let value = self.heads(&format!("{name}_value"), input, [0, 2, 1, 3]);
        let part = |what: &str| format!("{name}_{what}");
        let graph = &mut self.graph;
        graph.node("MatMul", &[&query, &key], &part("products"));
        graph.node("Mul", &[&part("products"), "scale"], &part("scaled"));
        graph.node("Add", &[&part("scaled"), "scores_mask"], &part("scores"));
        let last_axis = vec![Attribute::number("axis", -1)];
        graph.node_with("Softmax", &[&part("scores")], &part("shares"), last_axis);
        graph.node("MatMul", &[&part("shares"), &value], &part("mixed"));
        let order = vec![Attribute::numbers("perm", vec![0, 2, 1, 3])];
        graph.node_with("Transpose", &[&part("mixed")], &part("turned"), order);
        graph.node("Reshape", &[&part("turned"), "of_all_heads"], &part("joined"));
        let out = part("out");
        self.dense(&out, &part("joined"), HIDDEN, HIDDEN);
        out
    }

    fn feed(&mut self, name: &str, input: &str) -> String {
        let (wide, bent, out) = (format!("{name}_wide"), format!("{name}_bent"), format!("{name}_out"));
        self.dense(&wide, input, HIDDEN, FEED_FORWARD);
        self.graph.node("Gelu", &[&wide], &bent);
        self.dense(&out, &bent, FEED_FORWARD, HIDDEN);
        out
    }

    /// The mean over the tokens that are none to fill up.
    fn pool(&mut self, input: &str) {
        let graph = &mut self.graph;
        graph.output_floats(OUTPUT, &[-1, HIDDEN]);
        let keep = || vec![Attribute::number("keepdims", 0)];
        graph.node("Mul", &[input, "kept_vectors"], "last");
        graph.node_with("ReduceSum", &["last", "one"], "total", keep());
        graph.node_with("ReduceSum", &["kept_vectors", "one"], "counted", keep());
        // A sequence of nothing but 0 has a mean, too.
        graph.node("Max", &["counted", "whole"], "count");
        graph.node("Div", &["total", "count"], OUTPUT);
    }
}
