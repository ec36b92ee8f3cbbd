//! The hint that there is work.

use tokio::sync::watch;

/// Tells the workers of this process that there may be work. Only a hint: workers poll without it, too.
#[derive(Debug, Clone)]
pub struct Wake {
    sender: watch::Sender<()>,
}

impl Default for Wake {
    fn default() -> Self {
        Self {
            sender: watch::Sender::new(()),
        }
    }
}

impl Wake {
    /// Wakes all workers. Call it after the commit, or they look too early.
    pub fn notify(&self) {
        self.sender.send_replace(());
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.sender.subscribe()
    }
}
