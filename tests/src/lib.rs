//! modelyard-tests
