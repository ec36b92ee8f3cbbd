//! Questions that were asked, and their answers.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use ahash::RandomState;
use hashbrown::Equivalent;

use super::{Decision, Question, Via};
use crate::{
    action::Action,
    principal::Principal,
    resource::{Kind, Resource},
    state::Grant,
};

/// Answers by their questions. The hashes are keyed: callers choose the names in questions.
pub(super) type Remembered = hashbrown::HashMap<Asked, Arc<Decision>, RandomState>;

/// A question that was asked, to be found by an equal one.
pub(super) struct Asked {
    principal: Principal,
    scope: Option<Vec<Grant>>,
    via: Via,
    action: Action,
    kind: Kind,
    project: String,
    name: String,
}

impl Asked {
    fn question(&self) -> Question<'_> {
        Question {
            principal: &self.principal,
            scope: self.scope.as_deref(),
            via: self.via,
            action: self.action,
            resource: Resource::named(self.kind, &self.project, &self.name),
        }
    }
}

impl From<&Question<'_>> for Asked {
    fn from(question: &Question<'_>) -> Self {
        Self {
            principal: question.principal.clone(),
            scope: question.scope.map(<[Grant]>::to_vec),
            via: question.via,
            action: question.action,
            kind: question.resource.kind(),
            project: question.resource.project_name().to_owned(),
            name: question.resource.name().to_owned(),
        }
    }
}

impl Hash for Asked {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.question().hash(state);
    }
}

impl PartialEq for Asked {
    fn eq(&self, other: &Self) -> bool {
        self.question() == other.question()
    }
}

impl Eq for Asked {}

impl Equivalent<Asked> for Question<'_> {
    fn equivalent(&self, asked: &Asked) -> bool {
        *self == asked.question()
    }
}
