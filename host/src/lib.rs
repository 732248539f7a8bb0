//! The daemon's parts. `main.rs` only parses the command line and calls [`cli`].
