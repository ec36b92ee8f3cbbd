//! Shows how each model is, and lets go of those that nobody asks for.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{
    loader::Loader,
    meters::{Load, RouteMeters},
    predict::Gateway,
};

/// How often is looked. A gauge is read every few seconds at most, and it shows what was true of one moment.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Looks at the models now and then, until the soft end.
///
/// Requests do not do it themselves: what one of them sees on its way out may be written after what a later one saw,
/// and those that leave the queue otherwise (their time is over, their client is gone) see nothing. Either way the gauge
/// would stay at what was, with nobody waiting.
pub(crate) async fn watch(
    gateway: Arc<Gateway>,
    loader: Arc<Loader>,
    soft: CancellationToken,
) -> Result<(), Infallible> {
    let mut ticks = interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shown: Vec<Arc<RouteMeters>> = Vec::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = soft.cancelled() => return Ok(()),
        }
        loader.rest();
        let loads = gateway.table.load().loads();
        // Routes that are gone first: one that came back has the same gauge.
        for meters in &shown {
            if !loads.iter().any(|(present, _)| Arc::ptr_eq(present, meters)) {
                meters.load(Load::default());
            }
        }
        for (meters, load) in &loads {
            meters.load(*load);
        }
        shown = loads.into_iter().map(|(meters, _)| meters).collect();
    }
}
