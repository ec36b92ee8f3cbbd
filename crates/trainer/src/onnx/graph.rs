//! Building a graph node by node.

use crate::onnx::schema::{
    AttributeProto, AttributeType, DataType, DimensionProto, GraphProto, ML_DOMAIN, NodeProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};

/// Name of the dynamic first dimension.
pub(crate) const BATCH: &str = "batch";

/// A graph under construction. Values inside have a prefix that no input has, so that names never clash.
pub(crate) struct GraphBuilder {
    graph: GraphProto,
    prefix: String,
}

/// Length of a dimension.
pub(crate) enum Dim {
    /// The number of rows.
    Batch,
    Fixed(usize),
}

impl GraphBuilder {
    pub(crate) fn new(name: &str, inputs: &[&str]) -> Self {
        let mut prefix = "model/".to_owned();
        while inputs.iter().any(|input| input.starts_with(&prefix)) {
            prefix.insert(0, '_');
        }
        Self {
            graph: GraphProto {
                name: name.to_owned(),
                ..GraphProto::default()
            },
            prefix,
        }
    }

    pub(crate) fn input(&mut self, name: &str, kind: DataType, doc: &str) {
        let info = value_info(name, kind, &[Dim::Batch, Dim::Fixed(1)], doc);
        self.graph.input.push(info);
    }

    pub(crate) fn output(&mut self, name: &str, kind: DataType, shape: &[Dim], doc: &str) {
        self.graph.output.push(value_info(name, kind, shape, doc));
    }

    /// Adds a node with one output and returns that output's name.
    pub(crate) fn node(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let output = format!("{}{}/{}", self.prefix, self.graph.node.len(), op);
        self.node_to(op, inputs, attributes, &output);
        output
    }

    /// Adds a node whose output has a name of its own.
    pub(crate) fn node_to(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>, output: &str) {
        let domain = match op {
            "LabelEncoder" | "TreeEnsembleRegressor" => ML_DOMAIN,
            _ => "",
        };
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|input| (*input).to_owned()).collect(),
            output: vec![output.to_owned()],
            name: format!("{}{}", self.prefix, self.graph.node.len()),
            op_type: op.to_owned(),
            attribute: attributes,
            domain: domain.to_owned(),
        });
    }

    /// Adds a constant and returns its name. The tensor's own name is replaced.
    pub(crate) fn constant(&mut self, mut tensor: TensorProto) -> String {
        let name = format!("{}constant/{}", self.prefix, self.graph.initializer.len());
        tensor.name.clone_from(&name);
        self.graph.initializer.push(tensor);
        name
    }

    pub(crate) fn floats(&mut self, dims: &[usize], values: Vec<f32>) -> String {
        self.constant(TensorProto {
            dims: dims.iter().map(|&dim| dim as i64).collect(),
            data_type: DataType::Float as i32,
            float_data: values,
            ..TensorProto::default()
        })
    }

    pub(crate) fn integers(&mut self, values: Vec<i64>) -> String {
        self.constant(TensorProto {
            dims: vec![values.len() as i64],
            data_type: DataType::Int64 as i32,
            int64_data: values,
            ..TensorProto::default()
        })
    }

    pub(crate) fn finish(self) -> GraphProto {
        self.graph
    }
}

fn value_info(name: &str, kind: DataType, shape: &[Dim], doc: &str) -> ValueInfoProto {
    let dim = shape
        .iter()
        .map(|dim| match dim {
            Dim::Batch => DimensionProto {
                dim_value: None,
                dim_param: Some(BATCH.to_owned()),
            },
            Dim::Fixed(length) => DimensionProto {
                dim_value: Some(*length as i64),
                dim_param: None,
            },
        })
        .collect();
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: kind as i32,
                shape: Some(TensorShapeProto { dim }),
            }),
        }),
        doc_string: doc.to_owned(),
    }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: kind as i32,
        ..AttributeProto::default()
    }
}

pub(crate) fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        f: Some(value),
        ..attribute(name, AttributeType::Float)
    }
}

pub(crate) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        i: Some(value),
        ..attribute(name, AttributeType::Int)
    }
}

pub(crate) fn string(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        s: Some(value.as_bytes().to_vec()),
        ..attribute(name, AttributeType::String)
    }
}

pub(crate) fn floats(name: &str, values: Vec<f32>) -> AttributeProto {
    AttributeProto {
        floats: values,
        ..attribute(name, AttributeType::Floats)
    }
}

pub(crate) fn ints(name: &str, values: Vec<i64>) -> AttributeProto {
    AttributeProto {
        ints: values,
        ..attribute(name, AttributeType::Ints)
    }
}

pub(crate) fn strings<'a>(name: &str, values: impl Iterator<Item = &'a str>) -> AttributeProto {
    AttributeProto {
        strings: values.map(|value| value.as_bytes().to_vec()).collect(),
        ..attribute(name, AttributeType::Strings)
    }
}
