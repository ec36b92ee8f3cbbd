//! Messages of strangers, counted before room is made for them.

use std::marker::PhantomData;

use prost::{
    DecodeError, Message,
    bytes::Buf,
    encoding::{DecodeContext, decode_key, skip_field},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// The most parts of a message: values of its fields, each value of a repeated field for itself. An empty part takes two bytes of
/// the message, and hundreds once it is read, so that a message within its size could still be one that no memory holds.
const MAX_PARTS: usize = 20_000;

/// [`ProstCodec`], which refuses messages of too many parts with `INVALID_ARGUMENT`.
#[derive(Debug, Clone)]
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(ProstCodec::<T, U>::default().decoder())
    }
}

/// The half that reads.
#[derive(Debug, Clone)]
pub struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // A message lies in one piece.
        if has_too_many_parts(buffer.chunk()) {
            return Err(Status::invalid_argument(format!(
                "the message has more than {MAX_PARTS} parts: send fewer tensors in a request"
            )));
        }
        self.0.decode(buffer)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Whether a message has more parts than are read. One that cannot be read is for the decoder to refuse.
fn has_too_many_parts(mut message: &[u8]) -> bool {
    let mut parts = 0;
    while parts <= MAX_PARTS && skip_part(&mut message).is_ok() {
        parts += 1;
    }
    parts > MAX_PARTS
}

fn skip_part(message: &mut &[u8]) -> Result<(), DecodeError> {
    let (tag, wire_type) = decode_key(message)?;
    skip_field(wire_type, tag, message, DecodeContext::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::{ModelInferRequest, model_infer_request::InferInputTensor};

    #[test]
    fn parts_are_counted_before_room_is_made_for_them() {
        let request = |inputs| ModelInferRequest {
            model_name: "m".to_owned(),
            inputs: vec![InferInputTensor::default(); inputs],
            ..ModelInferRequest::default()
        };
        assert!(!has_too_many_parts(&request(MAX_PARTS - 1).encode_to_vec()));
        assert!(has_too_many_parts(&request(MAX_PARTS).encode_to_vec()));
        // Field 5, of no bytes, as often as a body may hold it.
        assert!(has_too_many_parts(&[0x2a, 0].repeat(1 << 20)));
        // What is broken is not counted beyond that.
        for broken in [&[][..], &[0x2a], &[0x2a, 9, 1], &[0xff; 40], &[0x07; 40]] {
            assert!(!has_too_many_parts(broken), "{broken:?}");
        }
    }
}
