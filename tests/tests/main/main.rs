//! What users rely on, seen from outside: the built binary, its files, its network, and clients of others.

mod attacks;
mod bad_input;
mod clients;
mod deployment;
mod durable_log;
mod main_job;
mod mlflow;
mod mlflow_import;
mod observability;
mod openid;
mod permissions;
mod tls;
