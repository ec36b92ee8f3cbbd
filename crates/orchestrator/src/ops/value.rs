//! `value`: gives what it is given. Useful to name a value once, and to join branches.

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::{Op, OpShape, StepContext, StepError};

/// Takes any keys; its outputs are the same.
pub(crate) struct ValueOp;

#[async_trait]
impl Op for ValueOp {
    fn name(&self) -> &'static str {
        "value"
    }

    fn shape(&self) -> OpShape {
        OpShape::default()
    }

    fn check(&self, _: &Map<String, Value>) -> Vec<String> {
        Vec::new()
    }

    async fn run(&self, step: &StepContext) -> Result<Value, StepError> {
        Ok(Value::Object(step.with.clone()))
    }
}
