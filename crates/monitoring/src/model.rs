//! What monitoring is about: windows, monitors, scores, labels, alert rules and alerts. Pure: no database, no network, no
//! time of its own.

pub mod alert;
pub mod comparison;
pub mod fields;
pub mod judge;
pub mod label;
pub mod monitor;
pub mod page;
pub mod prediction;
pub mod resource;
pub mod rule;
pub mod score;
pub mod segment;
pub mod window;
