//! The decoders of what comes from outside, for `fuzz/`. Each takes any bytes and must return: an error is fine, a panic is not.

use bytes::Bytes;
use modelyard_inference::{DataType, Signature, Tensor, TensorSpec};
use modelyard_proto::{
    codec::check_parts,
    inference::{ModelInferRequest, ModelInferResponse},
};
use prost::Message as _;

use crate::{
    grpc::read_tensors,
    loader::Description,
    oip::{self, Encoding, decompress},
    scoring, spool, upstream,
};

/// Inputs of several kinds, which rows are fitted to.
fn signature() -> Signature {
    let spec = |name: &str, datatype, shape: &[i64]| TensorSpec {
        name: name.to_owned(),
        datatype,
        shape: shape.to_vec(),
    };
    Signature {
        inputs: vec![
            spec("x", DataType::Fp32, &[-1, 2]),
            spec("n", DataType::Int8, &[-1, 1]),
            spec("who", DataType::Bytes, &[-1]),
        ],
        outputs: vec![spec("y", DataType::Fp64, &[-1])],
    }
}

/// The first byte, and the rest.
fn split(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}

/// A request of the Open Inference Protocol over HTTP; the first two bytes say how many are JSON, zero that it is not said.
pub fn http_request(data: &[u8]) {
    let (low, rest) = split(data);
    let (high, body) = split(rest);
    let said = usize::from(u16::from_le_bytes([low, high]));
    let said = (said > 0).then_some(said);
    let _ = oip::read(&Bytes::copy_from_slice(body), said);
}

/// The same over gRPC.
pub fn grpc_request(data: &[u8]) {
    if check_parts(data).is_ok()
        && let Ok(request) = ModelInferRequest::decode(data)
    {
        let _ = read_tensors(request.inputs, request.raw_input_contents);
    }
}

/// Rows in JSON, CSV or Parquet, as the first byte says.
pub fn rows(data: &[u8]) {
    let (kind, body) = split(data);
    let media = ["application/json", "text/csv", scoring::PARQUET][usize::from(kind % 3)];
    let _ = scoring::read_rows(media, Bytes::copy_from_slice(body), &signature());
}

/// A compressed body, as the first byte says how.
pub fn compressed(data: &[u8]) {
    let (kind, body) = split(data);
    let encoding = [Encoding::Gzip, Encoding::Deflate][usize::from(kind % 2)];
    let _ = decompress(Some(&encoding.header()), Bytes::copy_from_slice(body));
}

/// The raw contents of a tensor: the first byte says of which datatype, the second of how many rows.
pub fn tensor(data: &[u8]) {
    let (kind, rest) = split(data);
    let (rows, content) = split(rest);
    let datatype = DataType::ALL[usize::from(kind) % DataType::ALL.len()];
    let content = Bytes::copy_from_slice(content);
    if let Ok(tensor) = Tensor::from_raw("x", datatype, vec![rows.into()], content.clone()) {
        assert_eq!(tensor.into_raw().ok(), Some(content), "{datatype}");
    }
}

/// What another server answers.
pub fn upstream_answer(data: &[u8]) {
    if let Ok(answer) = ModelInferResponse::decode(data) {
        let _ = upstream::read_answer(&signature(), answer);
    }
}

/// A description of how an artifact is run.
pub fn description(data: &[u8]) {
    if let Ok(Description::Mlflow(saved)) = serde_json::from_slice(data) {
        let _ = saved.places();
    }
}

/// A record of the inference log's spool, as a crash may have left it.
pub fn spool_record(data: &[u8]) {
    let _ = spool::read_live(Bytes::copy_from_slice(data));
}
