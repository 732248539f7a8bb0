//! Takes what the virtio-fs library logs to standard error, where `bulkhead-vmm`'s own words go.

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("bulkhead-fs: {} {}", record.level(), record.args());
        }
    }

    fn flush(&self) {}
}

/// For the whole process; a second call changes nothing.
pub(super) fn install() {
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
}
