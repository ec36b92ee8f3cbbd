//! A trained pipeline as one ONNX graph.
//!
//! Inputs are the data's columns, each `[batch, 1]` in its own type. Strings go through a label encoder, numbers through
//! a cast to float32; joined to `[batch, columns]` they enter one tree operator. Its scores are calibrated to log odds,
//! these become probabilities, and the most probable class is looked up among the classes.

mod graph;
mod schema;
mod trees;

use prost::Message;

use crate::calibrate::{Calibrator, LOG_ODDS_LIMIT};
use crate::encode::{Code, Lookup};
use crate::error::{Error, Result, column};
use crate::model::{Head, Pipeline, Summary};
use crate::table::{Feature, FeatureKind};
use crate::target::Labels;
use graph::{Dim, GraphBuilder, float, floats, int, strings};
use schema::{
    DataType, IR_VERSION, ML_DOMAIN, ML_OPSET_VERSION, ModelProto, OPSET_VERSION, OperatorSetIdProto,
    StringStringEntryProto, TensorProto,
};

/// Output with the most probable class.
pub(crate) const LABEL: &str = "label";
/// Output with the probability of each class.
pub(crate) const PROBABILITIES: &str = "probabilities";
/// Output of a regression.
pub(crate) const PREDICTION: &str = "prediction";

/// Refuses features that are named like an output: in a graph every value has a name of its own.
pub(crate) fn check_names(features: &[String]) -> Result<()> {
    for name in features {
        if [LABEL, PROBABILITIES, PREDICTION].contains(&name.as_str()) {
            return Err(column(
                name,
                "is a feature with the name of a model's output: rename or exclude it",
            ));
        }
    }
    Ok(())
}

/// Writes the model.
pub(crate) fn export(pipeline: &Pipeline, summary: &Summary) -> Result<Vec<u8>> {
    let names: Vec<&str> = pipeline.features.iter().map(|feature| feature.name.as_str()).collect();
    let mut graph = GraphBuilder::new(&summary.target, &names);
    for feature in &pipeline.features {
        graph.input(&feature.name, input_type(feature.kind), input_doc(feature));
    }
    let matrix = add_encoding(&mut graph, pipeline);
    let scores = graph.node("TreeEnsembleRegressor", &[&matrix], trees::attributes(&pipeline.forest));
    match &pipeline.head {
        Head::Number { scale, center } => {
            let scale = graph.floats(&[1], vec![*scale]);
            let center = graph.floats(&[1], vec![*center]);
            let scaled = graph.node("Mul", &[&scores, &scale], Vec::new());
            graph.node_to("Add", &[&scaled, &center], Vec::new(), PREDICTION);
            let shape = [Dim::Batch, Dim::Fixed(1)];
            graph.output(PREDICTION, DataType::Float, &shape, &summary.target);
        }
        Head::Classes { classes, calibrators } => add_classes(&mut graph, &scores, classes, calibrators, summary),
    }
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: "modelyard-trainer".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        domain: "modelyard".to_owned(),
        model_version: 1,
        doc_string: doc(pipeline, summary),
        graph: Some(graph.finish()),
        opset_import: vec![
            OperatorSetIdProto {
                domain: String::new(),
                version: OPSET_VERSION,
            },
            OperatorSetIdProto {
                domain: ML_DOMAIN.to_owned(),
                version: ML_OPSET_VERSION,
            },
        ],
        metadata_props: metadata(pipeline, summary)?,
    };
    Ok(model.encode_to_vec())
}

fn input_type(kind: FeatureKind) -> DataType {
    match kind {
        FeatureKind::Bool => DataType::Bool,
        FeatureKind::Int8 => DataType::Int8,
        FeatureKind::Int16 => DataType::Int16,
        FeatureKind::Int32 => DataType::Int32,
        FeatureKind::Int64 => DataType::Int64,
        FeatureKind::UInt8 => DataType::UInt8,
        FeatureKind::UInt16 => DataType::UInt16,
        FeatureKind::UInt32 => DataType::UInt32,
        FeatureKind::UInt64 => DataType::UInt64,
        FeatureKind::Float32 => DataType::Float,
        FeatureKind::Float64 => DataType::Double,
        FeatureKind::Text => DataType::String,
    }
}

fn input_doc(feature: &Feature) -> &'static str {
    match feature.kind {
        FeatureKind::Text => "the empty string is missing",
        FeatureKind::Float32 | FeatureKind::Float64 => "NaN is missing",
        _ => "cannot be missing",
    }
}

/// All features as one float32 matrix: `[batch, columns]`.
fn add_encoding(graph: &mut GraphBuilder, pipeline: &Pipeline) -> String {
    let mut columns = Vec::with_capacity(pipeline.encoder.columns.len());
    for column in &pipeline.encoder.columns {
        let feature = &pipeline.features[column.feature];
        columns.push(match &column.code {
            Code::Number if feature.kind == FeatureKind::Float32 => feature.name.clone(),
            Code::Number => {
                let to = vec![int("to", DataType::Float as i64)];
                graph.node("Cast", &[&feature.name], to)
            }
            Code::Lookup(lookup) => graph.node("LabelEncoder", &[&feature.name], lookup_attributes(lookup)),
        });
    }
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    graph.node("Concat", &columns, vec![int("axis", 1)])
}

fn lookup_attributes(lookup: &Lookup) -> Vec<schema::AttributeProto> {
    let known = || lookup.categories.iter();
    // Missing strings arrive empty.
    let keys = std::iter::once("").chain(known().map(|(category, _)| category.as_str()));
    let values = std::iter::once(lookup.missing).chain(known().map(|(_, value)| *value));
    vec![
        strings("keys_strings", keys),
        floats("values_floats", values.collect()),
        float("default_float", lookup.unseen),
    ]
}

fn add_classes(
    graph: &mut GraphBuilder,
    scores: &str,
    classes: &Labels,
    calibrators: &[Calibrator],
    summary: &Summary,
) {
    let log_odds = add_calibration(graph, scores, calibrators);
    let shares = add_sigmoid(graph, &log_odds);
    if calibrators.len() == 1 {
        let one = graph.floats(&[1], vec![1.0]);
        let negative = graph.node("Sub", &[&one, &shares], Vec::new());
        graph.node_to("Concat", &[&negative, &shares], vec![int("axis", 1)], PROBABILITIES);
    } else {
        let axes = graph.integers(vec![1]);
        let total = graph.node("ReduceSum", &[&shares, &axes], vec![int("keepdims", 1)]);
        graph.node_to("Div", &[&shares, &total], Vec::new(), PROBABILITIES);
    }
    let best = graph.node("ArgMax", &[PROBABILITIES], vec![int("axis", 1), int("keepdims", 0)]);
    let (kind, table) = class_table(classes);
    let table = graph.constant(table);
    graph.node_to("Gather", &[&table, &best], vec![int("axis", 0)], LABEL);
    graph.output(LABEL, kind, &[Dim::Batch], &summary.target);
    graph.output(
        PROBABILITIES,
        DataType::Float,
        &[Dim::Batch, Dim::Fixed(classes.len())],
        "the probability of each class, in the order of the metadata's classes",
    );
}

/// Log odds of each output: `[batch, outputs]`.
fn add_calibration(graph: &mut GraphBuilder, scores: &str, calibrators: &[Calibrator]) -> String {
    if calibrators.iter().all(|calibrator| *calibrator == Calibrator::Identity) {
        return scores.to_owned();
    }
    if let [calibrator] = calibrators {
        return add_calibrator(graph, scores, calibrator);
    }
    let mut columns = Vec::with_capacity(calibrators.len());
    for (output, calibrator) in calibrators.iter().enumerate() {
        let index = graph.integers(vec![output as i64]);
        let score = graph.node("Gather", &[scores, &index], vec![int("axis", 1)]);
        columns.push(add_calibrator(graph, &score, calibrator));
    }
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    graph.node("Concat", &columns, vec![int("axis", 1)])
}

/// One calibrator: `[batch, 1]` to `[batch, 1]`.
fn add_calibrator(graph: &mut GraphBuilder, score: &str, calibrator: &Calibrator) -> String {
    match calibrator {
        Calibrator::Identity => score.to_owned(),
        Calibrator::Line { slope, offset } => {
            let slope = graph.floats(&[1], vec![*slope]);
            let offset = graph.floats(&[1], vec![*offset]);
            let scaled = graph.node("Mul", &[score, &slope], Vec::new());
            graph.node("Add", &[&scaled, &offset], Vec::new())
        }
        // The first knot's log odds plus, for each segment, its slope times the part of it that lies below the score.
        Calibrator::Curve(knots) => {
            let segments = knots.len() - 1;
            let pairs = || knots.windows(2).map(|pair| (pair[0], pair[1]));
            let begins = graph.floats(&[segments], pairs().map(|(left, _)| left.0).collect());
            let widths = pairs().map(|(left, right)| right.0 - left.0).collect();
            let widths = graph.floats(&[segments], widths);
            let slopes = pairs()
                .map(|(left, right)| {
                    let rise = f64::from(right.1) - f64::from(left.1);
                    (rise / (f64::from(right.0) - f64::from(left.0))) as f32
                })
                .collect();
            let slopes = graph.floats(&[segments, 1], slopes);
            let zero = graph.floats(&[1], vec![0.0]);
            let first = graph.floats(&[1], vec![knots[0].1]);
            let beyond = graph.node("Sub", &[score, &begins], Vec::new());
            let beyond = graph.node("Max", &[&beyond, &zero], Vec::new());
            let inside = graph.node("Min", &[&beyond, &widths], Vec::new());
            let rise = graph.node("MatMul", &[&inside, &slopes], Vec::new());
            graph.node("Add", &[&rise, &first], Vec::new())
        }
    }
}

/// The logistic function spelled out: unlike the operator of that name it stays exact, relative to its value, where it
/// is small, and dividing by the sum of small values would magnify what is lost there.
fn add_sigmoid(graph: &mut GraphBuilder, log_odds: &str) -> String {
    let low = graph.floats(&[], vec![-LOG_ODDS_LIMIT]);
    let high = graph.floats(&[], vec![LOG_ODDS_LIMIT]);
    let one = graph.floats(&[1], vec![1.0]);
    let bounded = graph.node("Clip", &[log_odds, &low, &high], Vec::new());
    let negated = graph.node("Neg", &[&bounded], Vec::new());
    let power = graph.node("Exp", &[&negated], Vec::new());
    let denominator = graph.node("Add", &[&power, &one], Vec::new());
    graph.node("Reciprocal", &[&denominator], Vec::new())
}

fn class_table(classes: &Labels) -> (DataType, TensorProto) {
    let mut table = TensorProto {
        dims: vec![classes.len() as i64],
        ..TensorProto::default()
    };
    let kind = match classes {
        Labels::Bool(values) => {
            table.int32_data = values.iter().map(|&value| i32::from(value)).collect();
            DataType::Bool
        }
        Labels::Int32(values) => {
            table.int32_data.clone_from(values);
            DataType::Int32
        }
        Labels::Int64(values) => {
            table.int64_data.clone_from(values);
            DataType::Int64
        }
        Labels::Float32(values) => {
            table.float_data.clone_from(values);
            DataType::Float
        }
        Labels::Float64(values) => {
            table.double_data.clone_from(values);
            DataType::Double
        }
        Labels::Text(values) => {
            table.string_data = values.iter().map(|value| value.as_bytes().to_vec()).collect();
            DataType::String
        }
    };
    table.data_type = kind as i32;
    (kind, table)
}

fn doc(pipeline: &Pipeline, summary: &Summary) -> String {
    let outputs = match &pipeline.head {
        Head::Number { .. } => "Output: `prediction` [batch, 1].",
        Head::Classes { .. } => "Outputs: `label` [batch] and `probabilities` [batch, classes].",
    };
    format!(
        "Gradient-boosted trees that predict `{}` from {} features, trained on {} rows with {} rounds. Inputs are [batch, \
         1]: missing numbers are NaN, missing strings are empty, integers and booleans cannot be missing. {outputs}",
        summary.target,
        pipeline.features.len(),
        summary.rows,
        summary.best_iteration,
    )
}

/// Facts for tools: the keys are `producer`, `target`, `task`, `classes` (where there are any), `features` and
/// `training`, all but the first two in JSON.
fn metadata(pipeline: &Pipeline, summary: &Summary) -> Result<Vec<StringStringEntryProto>> {
    let mut entries = vec![
        ("producer", "modelyard-trainer".to_owned()),
        ("target", summary.target.clone()),
        ("task", json(&summary.task)?),
    ];
    if let Head::Classes { classes, .. } = &pipeline.head {
        entries.push(("classes", json(classes)?));
    }
    entries.push(("features", json(&pipeline.features)?));
    entries.push(("training", json(summary)?));
    Ok(entries
        .into_iter()
        .map(|(key, value)| StringStringEntryProto {
            key: key.to_owned(),
            value,
        })
        .collect())
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::Internal(format!("metadata cannot be written: {error}")))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::ops::ControlFlow;
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use arrow::record_batch::RecordBatch;

    use super::*;
    use crate::{TrainConfig, train};

    #[test]
    fn a_written_model_says_what_it_is() {
        let texts: ArrayRef = Arc::new((0..40).map(|row| Some(["a", "b"][row % 2])).collect::<StringArray>());
        let labels: ArrayRef = Arc::new((0..40).map(|row| row % 2 + 3).collect::<Int64Array>());
        let data = RecordBatch::try_from_iter(vec![("text", texts), ("y", labels)]).unwrap();
        let config = TrainConfig {
            target: "y".to_owned(),
            trees: 2,
            ..TrainConfig::default()
        };
        let model = train(&data, &config, &|_| ControlFlow::Continue(())).unwrap();
        let read = ModelProto::decode(model.onnx()).unwrap();
        let facts: HashMap<&str, &str> = read
            .metadata_props
            .iter()
            .map(|entry| (entry.key.as_str(), entry.value.as_str()))
            .collect();
        assert_eq!(facts["producer"], "modelyard-trainer");
        assert_eq!(facts["target"], "y");
        assert_eq!(facts["task"], "\"binary\"");
        assert_eq!(facts["classes"], r#"{"type":"int64","values":[3,4]}"#);
        assert_eq!(
            facts["features"],
            r#"[{"name":"text","kind":"text","missing_in_training":false}]"#
        );
        assert!(facts["training"].contains("\"best_iteration\":2"));
        assert!(
            read.doc_string.contains("predict `y` from 1 features"),
            "{}",
            read.doc_string
        );
        // A zero is written, not left out: readers tell "no value" from 0.
        let graph = read.graph.unwrap();
        let argmax = graph.node.iter().find(|node| node.op_type == "ArgMax").unwrap();
        assert!(
            argmax
                .attribute
                .iter()
                .any(|attribute| attribute.name == "keepdims" && attribute.i == Some(0))
        );
    }

    #[test]
    fn names_inside_the_graph_avoid_those_of_inputs() {
        let mut graph = GraphBuilder::new("g", &["model/0/Cast", "_model/x"]);
        let name = graph.node("Cast", &["model/0/Cast"], Vec::new());
        assert!(name.starts_with("__model/"), "{name}");
    }
}
