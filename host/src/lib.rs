//! The daemon's parts. `main.rs` only parses the command line and calls [`cli`].
//!
//! * [`cri`]: the verbs: validate, call the domain, convert.
//! * [`sandbox`], [`container`], [`image`]: the domain; state machines over a durable journal.
//! * [`streaming`]: the server of exec, attach and port-forward.
//! * [`sandboxer`]: the per-pod process that carries a VM; [`guest`]: the agent inside it; [`network`]: CNI and taps.
//! * [`nri`]: plugins of the node that watch and change containers.
//! * [`events`], [`metrics`]: what happens and what is measured, for whoever watches.
//! * [`store`], [`journaled`], [`serial`], [`creations`]: how state is kept and changed; [`blocking`]: paths of other
//!   people; [`systemd`]: the owner of cgroups where it is; [`sys`]: the unsafe index.
//! * [`check`]: what this host has and lacks; [`config`], [`cli`]: what people set and type; [`version`]: of processes that
//!   run on through an upgrade.

pub mod blocking;
pub mod check;
pub mod cli;
pub mod config;
pub mod container;
pub mod creations;
pub mod cri;
pub mod events;
pub mod guest;
pub mod image;
pub mod journaled;
pub mod metrics;
pub mod network;
pub mod node;
pub mod nri;
pub mod sandbox;
pub mod sandboxer;
pub mod serial;
pub mod store;
pub mod streaming;
pub mod sys;
pub mod systemd;
pub mod version;

/// An error and its causes in one line: what was tried, why it failed.
#[must_use]
pub fn error_text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some errors quote their cause already.
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
