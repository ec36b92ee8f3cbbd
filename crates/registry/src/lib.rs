//! modelyard-registry
