//! What the process tells whoever started it and waits for word (systemd, `Type=notify`). Without `NOTIFY_SOCKET` in the
//! environment nobody does.

use sd_notify::NotifyState;

/// The process serves.
pub(crate) fn ready() {
    tell(NotifyState::Ready);
}

/// The process was told to end, and drains.
pub(crate) fn stopping() {
    tell(NotifyState::Stopping);
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "can't tell the supervisor what this process is at");
    }
}
