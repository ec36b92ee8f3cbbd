//! modelyard-artifacts
