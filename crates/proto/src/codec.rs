//! Messages of strangers, counted before room is made for them.

use std::{fmt, marker::PhantomData, sync::Arc};

use prost::{
    DecodeError, Message,
    bytes::Buf,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// The most parts of a message: values of its fields, each value of a repeated field for itself, and those of its tensors. An empty
/// part takes two bytes of the message, and hundreds once it is read, so that a message within its size could still be one that no
/// memory holds.
const MAX_PARTS: usize = 20_000;

/// The most elements of `BYTES` that are sent as typed contents, each of which takes dozens of bytes once it is read.
const MAX_TYPED_BYTES: usize = 4 << 20;

/// The field of tensors in a request or an answer, and that of typed contents in a tensor: both have the same number.
const TENSORS: u32 = 5;
const CONTENTS: u32 = 5;

/// What causes a status that says why a message was not taken here; one that came with a message has no such cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable;

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the message cannot be taken")
    }
}

impl std::error::Error for Unreadable {}

/// [`ProstCodec`], which refuses with `INVALID_ARGUMENT` what cannot be read, and messages of too many parts. The cause of
/// such a status is [`Unreadable`].
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
        let decoded = check_parts(buffer.chunk()).and_then(|()| {
            let decoded = self.0.decode(buffer);
            // Whoever sent it is to blame, and not whoever reads.
            decoded.map_err(|status| Status::invalid_argument(status.message()))
        });
        decoded.map_err(|mut status| {
            status.set_source(Arc::new(Unreadable));
            status
        })
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Counts the parts of a message.
///
/// # Errors
/// `INVALID_ARGUMENT` if there are too many.
pub fn check_parts(message: &[u8]) -> Result<(), Status> {
    let mut left = Left {
        parts: MAX_PARTS,
        typed_bytes: MAX_TYPED_BYTES,
    };
    if left.suffice(message, Level::Message) {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "the message has more than {MAX_PARTS} parts, or {MAX_TYPED_BYTES} elements of BYTES that are typed: send fewer tensors at \
         once, or their elements in raw_input_contents"
    )))
}

/// Where in a message parts are.
#[derive(Clone, Copy)]
enum Level {
    Message,
    Tensor,
    Contents,
}

/// How much more a message may have.
struct Left {
    parts: usize,
    typed_bytes: usize,
}

impl Left {
    /// Whether it is enough for a message or a part of it. What cannot be read is for the decoder to refuse.
    fn suffice(&mut self, mut message: &[u8], level: Level) -> bool {
        while let Ok(part) = next_part(&mut message) {
            let left = match level {
                Level::Contents => &mut self.typed_bytes,
                Level::Message | Level::Tensor => &mut self.parts,
            };
            if *left == 0 {
                return false;
            }
            *left -= 1;
            let inner = match (level, part.tag) {
                (Level::Message, TENSORS) => Some(Level::Tensor),
                (Level::Tensor, CONTENTS) => Some(Level::Contents),
                _ => None,
            };
            if let (Some(inner), Some(content)) = (inner, part.content)
                && !self.suffice(content, inner)
            {
                return false;
            }
        }
        true
    }
}

/// A part of a message.
struct Part<'a> {
    tag: u32,
    /// What it holds, if it has a length.
    content: Option<&'a [u8]>,
}

fn next_part<'a>(message: &mut &'a [u8]) -> Result<Part<'a>, DecodeError> {
    let (tag, wire_type) = decode_key(message)?;
    let whole = *message;
    skip_field(wire_type, tag, message, DecodeContext::default())?;
    let mut content = whole.get(..whole.len() - message.len()).unwrap_or_default();
    let has_length = wire_type == WireType::LengthDelimited && decode_varint(&mut content).is_ok();
    Ok(Part {
        tag,
        content: has_length.then_some(content),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::{InferTensorContents, ModelInferRequest, model_infer_request::InferInputTensor};

    fn is_taken(message: &[u8]) -> bool {
        let mut left = Left {
            parts: 100,
            typed_bytes: 1000,
        };
        left.suffice(message, Level::Message)
    }

    fn request(inputs: Vec<InferInputTensor>) -> Vec<u8> {
        let request = ModelInferRequest {
            model_name: "m".to_owned(),
            inputs,
            ..ModelInferRequest::default()
        };
        request.encode_to_vec()
    }

    #[test]
    fn parts_are_counted_before_room_is_made_for_them() {
        let inputs = |count| request(vec![InferInputTensor::default(); count]);
        assert!(is_taken(&inputs(99)));
        assert!(!is_taken(&inputs(100)));
        // Field 5, of no bytes, as often as a body may hold it.
        assert!(!is_taken(&[0x2a, 0].repeat(1 << 20)));
        // What is broken is not counted beyond that.
        for broken in [&[][..], &[0x2a], &[0x2a, 9, 1], &[0xff; 40], &[0x07; 40]] {
            assert!(is_taken(broken), "{broken:?}");
        }
    }

    #[test]
    fn parts_of_tensors_are_counted_too() {
        let typed = |elements| InferTensorContents {
            bytes_contents: vec![Vec::new(); elements],
            ..InferTensorContents::default()
        };
        let input = |elements| InferInputTensor {
            contents: Some(typed(elements)),
            ..InferInputTensor::default()
        };
        assert!(is_taken(&request(vec![input(500), input(500)])));
        assert!(!is_taken(&request(vec![input(500), input(501)])));
        let parameters = |count| InferInputTensor {
            parameters: (0..count)
                .map(|index: usize| (index.to_string(), crate::inference::InferParameter::default()))
                .collect(),
            ..InferInputTensor::default()
        };
        assert!(is_taken(&request(vec![parameters(98)])));
        assert!(!is_taken(&request(vec![parameters(99)])));
        // Numbers come packed: they are one part, however many they are.
        let numbers = InferTensorContents {
            fp32_contents: vec![1.0; 10_000],
            ..InferTensorContents::default()
        };
        let numbers = InferInputTensor {
            contents: Some(numbers),
            ..InferInputTensor::default()
        };
        assert!(is_taken(&request(vec![numbers])));
    }
}
