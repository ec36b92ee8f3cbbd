//! modelyard-db
