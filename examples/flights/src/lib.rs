//! modelyard-flights
