//! modelyard-jobs
