//! modelyard-testkit
