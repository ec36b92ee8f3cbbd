//! modelyard-gateway
