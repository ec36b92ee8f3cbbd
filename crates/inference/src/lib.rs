//! modelyard-inference
