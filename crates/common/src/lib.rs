//! modelyard-common
