//! modelyard-trainer
