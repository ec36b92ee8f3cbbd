//! Who asks for predictions, and in which project.

use std::{borrow::Cow, sync::LazyLock};

use ahash::RandomState;
use axum::{
    extract::{FromRequestParts, RawPathParams, Request as HttpRequest, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, request::Parts};
use modelyard_auth::{
    Access, Action, Caller, Kind, Resource,
    http::{Again, authenticate},
};
use modelyard_common::error::Problem;
use tonic::Request;

use crate::error::Result;

/// The header, or metadata over gRPC, that names the project of an endpoint where the path does not.
pub(crate) const PROJECT_HEADER: &str = "modelyard-project";
/// The project of those who name none.
const DEFAULT_PROJECT: &str = "default";
/// The part of a path that names the project.
const PROJECT_PARAMETER: &str = "project";
/// Calls over gRPC that ask only whether the server is there: probes have no credentials.
const PROBES: [&str; 3] = [
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
    "/inference.GRPCInferenceService/ServerMetadata",
];

/// The call over gRPC that stays open for as long as its client wants.
pub const MODEL_STREAM_INFER: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// Who asks, and in which project.
pub(crate) struct Client {
    pub caller: Caller,
    pub project: Cow<'static, str>,
}

fn project(named: Option<&str>) -> Cow<'static, str> {
    match named {
        None | Some(DEFAULT_PROJECT) => Cow::Borrowed(DEFAULT_PROJECT),
        Some(other) => Cow::Owned(other.to_owned()),
    }
}

impl Client {
    /// A caller of an endpoint whose project the path names, or a header, or nothing.
    pub(crate) fn new(caller: Caller, in_path: Option<&str>, headers: &HeaderMap) -> Self {
        let in_header = || headers.get(PROJECT_HEADER).and_then(|name| name.to_str().ok());
        Self {
            caller,
            project: project(in_path.or_else(in_header)),
        }
    }

    /// The beginning of every operation.
    ///
    /// # Errors
    /// The caller may not do this.
    pub(crate) fn authorize(&self, action: Action, endpoint: &str) -> Result<()> {
        let resource = Resource::named(Kind::Endpoint, &self.project, endpoint);
        Ok(self.caller.authorize(action, resource)?)
    }

    /// The caller as a number: those of one caller take turns with those of others.
    pub(crate) fn number(&self) -> u64 {
        static HASHES: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        HASHES.hash_one(self.caller.principal())
    }

    /// Whether the caller may see an endpoint.
    pub(crate) fn sees(&self, endpoint: &str) -> bool {
        let resource = Resource::named(Kind::Endpoint, &self.project, endpoint);
        self.caller.may(Action::EndpointRead, resource)
    }

    /// Who sends what comes on a stream, by what they may by now.
    ///
    /// # Errors
    /// The caller is not known any more, or asks too often.
    pub(crate) async fn again(again: &Again, project: Cow<'static, str>) -> Result<Self, modelyard_auth::Error> {
        Ok(Self {
            caller: again.caller().await?,
            project,
        })
    }

    /// Who sent a call over gRPC.
    ///
    /// # Errors
    /// Nobody is known to have sent it.
    pub(crate) fn of<T>(request: &Request<T>) -> Result<Self> {
        let caller = request.extensions().get::<Caller>().cloned();
        let named = request.metadata().get(PROJECT_HEADER);
        Ok(Self {
            caller: caller.ok_or(modelyard_auth::Error::Missing)?,
            project: project(named.and_then(|name| name.to_str().ok())),
        })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Client {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let caller = Caller::from_request_parts(parts, state).await;
        let caller = caller.map_err(|problem: Problem| problem.into_response())?;
        let in_path = RawPathParams::from_request_parts(parts, state).await.ok();
        let in_path = in_path.as_ref().and_then(|parameters| {
            let mut parameters = parameters.iter();
            parameters.find_map(|(name, value)| (name == PROJECT_PARAMETER).then_some(value))
        });
        Ok(Self::new(caller, in_path, &parts.headers))
    }
}

/// Middleware of the contract over gRPC: like [`authenticate`], but probes come in without credentials, and who opens a
/// stream can be asked for again.
pub(crate) async fn authenticate_calls(access: State<Access>, mut request: HttpRequest, next: Next) -> Response {
    let path = request.uri().path();
    if PROBES.contains(&path) {
        return next.run(request).await;
    }
    if path == MODEL_STREAM_INFER {
        let (mut parts, body) = request.into_parts();
        let again = Again::new(access.0.clone(), parts.clone());
        parts.extensions.insert(again);
        request = HttpRequest::from_parts(parts, body);
    }
    authenticate(access, request, next).await
}
