//! modelyard-monitoring
