//! modelyard-stats
