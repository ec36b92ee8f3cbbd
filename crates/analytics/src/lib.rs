//! modelyard-analytics
