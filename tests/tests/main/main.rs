//! What users rely on, seen from outside: the built binary, its files, its network, and clients of others.

mod attacks;
mod bad_input;
mod clients;
mod deployment;
mod devices;
mod durable_log;
mod inference_clients;
mod main_job;
mod mlflow;
mod mlflow_import;
mod observability;
mod openid;
mod outages;
mod permissions;
mod rollouts;
mod runtimes;
mod signatures;
mod soak;
mod tls;
