//! modelyard-server
