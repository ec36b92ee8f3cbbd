//! What a model takes and gives as Triton's clients ask for it: its "configuration". The load generators among them cannot do
//! without.

use modelyard_auth::Action;
use modelyard_inference::{Batching, DataType, TensorSpec};
use modelyard_proto::inference::{
    DataType as WireType, ModelConfig, ModelDynamicBatching, ModelInput, ModelInstanceGroup, ModelOutput,
    model_instance_group::Kind,
};
use serde_json::{Value, json};

use crate::{client::Client, error::Result, predict::Gateway, routing::Version};

const fn wire_type(datatype: DataType) -> WireType {
    match datatype {
        DataType::Bool => WireType::TypeBool,
        DataType::Uint8 => WireType::TypeUint8,
        DataType::Uint16 => WireType::TypeUint16,
        DataType::Uint32 => WireType::TypeUint32,
        DataType::Uint64 => WireType::TypeUint64,
        DataType::Int8 => WireType::TypeInt8,
        DataType::Int16 => WireType::TypeInt16,
        DataType::Int32 => WireType::TypeInt32,
        DataType::Int64 => WireType::TypeInt64,
        DataType::Fp16 => WireType::TypeFp16,
        DataType::Bf16 => WireType::TypeBf16,
        DataType::Fp32 => WireType::TypeFp32,
        DataType::Fp64 => WireType::TypeFp64,
        DataType::Bytes => WireType::TypeString,
    }
}

/// The configuration of an endpoint's version, or of the one that stands for it.
///
/// # Errors
/// The client may not read about the endpoint, or there is no such version.
pub(crate) fn model_config(
    gateway: &Gateway,
    client: &Client,
    endpoint: &str,
    version: Option<&str>,
) -> Result<ModelConfig> {
    client.authorize(Action::EndpointRead, endpoint)?;
    let found = gateway.endpoint(&client.project, endpoint)?;
    Ok(config_of(endpoint, found.describe(version)?))
}

/// The configuration of a version under the endpoint's name.
fn config_of(endpoint: &str, version: &Version) -> ModelConfig {
    let model = &version.model;
    let is_batched = model.batching() == Batching::Rows;
    // Where rows are merged, the first dimension is theirs, and `dims` are what follows it.
    let dims = |spec: &TensorSpec| {
        let start = usize::from(is_batched);
        spec.shape.get(start..).unwrap_or_default().to_vec()
    };
    let options = model.options();
    let inputs = version.signature().inputs.iter().map(|spec| ModelInput {
        name: spec.name.clone(),
        data_type: wire_type(spec.datatype).into(),
        dims: dims(spec),
    });
    let outputs = version.signature().outputs.iter().map(|spec| ModelOutput {
        name: spec.name.clone(),
        data_type: wire_type(spec.datatype).into(),
        dims: dims(spec),
    });
    ModelConfig {
        name: endpoint.to_owned(),
        platform: model.platform().name().to_owned(),
        backend: model.platform().backend().to_owned(),
        max_batch_size: if is_batched {
            i32::try_from(options.max_batch_rows).unwrap_or(i32::MAX)
        } else {
            0
        },
        input: inputs.collect(),
        output: outputs.collect(),
        dynamic_batching: is_batched.then(|| ModelDynamicBatching {
            preferred_batch_size: Vec::new(),
            max_queue_delay_microseconds: u64::try_from(options.max_queue_delay.as_micros()).unwrap_or(u64::MAX),
        }),
        instance_group: vec![ModelInstanceGroup {
            name: endpoint.to_owned(),
            kind: Kind::Cpu.into(),
            count: i32::try_from(model.workers()).unwrap_or(i32::MAX),
        }],
    }
}

/// A configuration as JSON, with numbers where protobuf's own JSON would write 64 bits as texts.
pub(crate) fn model_config_json(config: &ModelConfig) -> Value {
    let inputs = config
        .input
        .iter()
        .map(|input| json!({"name": input.name, "data_type": input.data_type().as_str_name(), "dims": input.dims}));
    let outputs = config
        .output
        .iter()
        .map(|output| json!({"name": output.name, "data_type": output.data_type().as_str_name(), "dims": output.dims}));
    let groups = config
        .instance_group
        .iter()
        .map(|group| json!({"name": group.name, "kind": group.kind().as_str_name(), "count": group.count}));
    let mut object = json!({
        "name": config.name,
        "platform": config.platform,
        "backend": config.backend,
        "max_batch_size": config.max_batch_size,
        "input": inputs.collect::<Vec<_>>(),
        "output": outputs.collect::<Vec<_>>(),
        "instance_group": groups.collect::<Vec<_>>(),
    });
    if let Some(batching) = &config.dynamic_batching {
        object["dynamic_batching"] = json!({
            "preferred_batch_size": batching.preferred_batch_size,
            "max_queue_delay_microseconds": batching.max_queue_delay_microseconds,
        });
    }
    object
}
