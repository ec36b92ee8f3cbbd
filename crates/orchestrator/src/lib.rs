//! modelyard-orchestrator
