//! placeholder

pub mod devices;
pub mod vhost_user;
