//! Figures of cgroups (Linux: Documentation/admin-guide/cgroup-v2.rst) and interfaces from the kernel's files, as the
//! agent and the daemon both tell them.

use crate::agent::{CgroupStats, DeviceIo, InterfaceStats, Pressure, PressureLine};

/// Block devices told of one cgroup; a guest has two or three.
const MAX_DEVICES: usize = 64;

/// The figures of the cgroup whose files `read` gives, empty when missing; those without a file are unset.
#[must_use]
pub fn cgroup(now_ns: i64, read: &dyn Fn(&str) -> String) -> CgroupStats {
    let mut stats = CgroupStats::new();
    stats.timestamp_ns = now_ns;
    cpu(&mut stats, &read("cpu.stat"));
    memory(&mut stats, read);
    stats.swap_usage_bytes = number(&read("memory.swap.current"));
    stats.swap_limit_bytes = number(&read("memory.swap.max"));
    stats.pids_current = number(&read("pids.current"));
    stats.pids_limit = number(&read("pids.max"));
    stats.cpu_pressure = pressure(&read("cpu.pressure")).into();
    stats.memory_pressure = pressure(&read("memory.pressure")).into();
    stats.io_pressure = pressure(&read("io.pressure")).into();
    stats.io = devices(&read("io.stat"));
    stats
}

/// The number behind `name` in a flat-keyed file.
#[must_use]
pub fn key(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok())
}

fn cpu(stats: &mut CgroupStats, text: &str) {
    let ns = |name| key(text, name).map(|us| us.saturating_mul(1000));
    stats.cpu_usage_ns = ns("usage_usec");
    stats.cpu_user_ns = ns("user_usec");
    stats.cpu_system_ns = ns("system_usec");
    stats.cpu_throttled_ns = ns("throttled_usec");
    stats.cpu_periods = key(text, "nr_periods");
    stats.cpu_throttled_periods = key(text, "nr_throttled");
}

fn memory(stats: &mut CgroupStats, read: &dyn Fn(&str) -> String) {
    let (text, events) = (read("memory.stat"), read("memory.events"));
    let usage = number(&read("memory.current"));
    stats.memory_usage_bytes = usage;
    stats.memory_working_set_bytes = usage.map(|usage| usage.saturating_sub(key(&text, "inactive_file").unwrap_or(0)));
    stats.memory_rss_bytes = key(&text, "anon");
    stats.memory_cache_bytes = key(&text, "file");
    stats.memory_kernel_bytes = key(&text, "kernel");
    stats.memory_mapped_file_bytes = key(&text, "file_mapped");
    stats.memory_page_faults = key(&text, "pgfault");
    stats.memory_major_page_faults = key(&text, "pgmajfault");
    stats.memory_limit_bytes = number(&read("memory.max"));
    stats.memory_peak_bytes = number(&read("memory.peak"));
    stats.memory_limit_hits = key(&events, "max");
    stats.oom_kills = key(&events, "oom_kill");
}

/// A file of one number; "max" is none.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and the same for `full`.
fn pressure(text: &str) -> Option<Pressure> {
    let line = |kind: &str| {
        let figures = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let figure = |name: &str| figures.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let average = |name| figure(name).and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0);
        let mut found = PressureLine::new();
        (found.avg10, found.avg60, found.avg300) = (average("avg10"), average("avg60"), average("avg300"));
        found.total_us = figure("total")?.parse().ok()?;
        Some(found)
    };
    let mut all = Pressure::new();
    (all.some, all.full) = (line("some").into(), line("full").into());
    (all.some.is_some() || all.full.is_some()).then_some(all)
}

/// `254:16 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`
fn devices(text: &str) -> Vec<DeviceIo> {
    let device = |line: &str| {
        let (number, figures) = line.split_once(' ')?;
        let (major, minor) = number.split_once(':')?;
        let figure = |name: &str| {
            let value = figures.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            value.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        let mut found = DeviceIo::new();
        (found.major, found.minor) = (major.parse().ok()?, minor.parse().ok()?);
        (found.read_bytes, found.written_bytes) = (figure("rbytes"), figure("wbytes"));
        (found.reads, found.writes) = (figure("rios"), figure("wios"));
        Some(found)
    };
    text.lines().filter_map(device).take(MAX_DEVICES).collect()
}

/// The kernel's table of interfaces (/proc/net/dev), less the loopback.
#[must_use]
pub fn interfaces(table: &str) -> Vec<InterfaceStats> {
    table
        .lines()
        .filter_map(|line| {
            let (name, figures) = line.split_once(':')?;
            let figures: Vec<u64> = figures.split_whitespace().filter_map(|figure| figure.parse().ok()).collect();
            let mut stats = InterfaceStats::new();
            stats.name = name.trim().into();
            let [rx_bytes, rx_packets, rx_errors, rx_dropped] = *figures.first_chunk()?;
            let [tx_bytes, tx_packets, tx_errors, tx_dropped] = *figures.get(8..)?.first_chunk()?;
            (stats.rx_bytes, stats.rx_packets, stats.rx_errors, stats.rx_dropped) =
                (rx_bytes, rx_packets, rx_errors, rx_dropped);
            (stats.tx_bytes, stats.tx_packets, stats.tx_errors, stats.tx_dropped) =
                (tx_bytes, tx_packets, tx_errors, tx_dropped);
            (stats.name != "lo").then_some(stats)
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_whole_words() {
        let text = "pgfault_x 1\npgfault 27\nanon 4096\n";
        assert_eq!((key(text, "pgfault"), key(text, "anon"), key(text, "file")), (Some(27), Some(4096), None));
    }

    #[test]
    fn a_missing_file_is_no_figure() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("cpu.stat"), "usage_usec 7\nuser_usec 4\nsystem_usec 3\n").unwrap();
        std::fs::write(directory.path().join("memory.max"), "max\n").unwrap();
        let stats = cgroup(5, &|name| std::fs::read_to_string(directory.path().join(name)).unwrap_or_default());
        assert_eq!((stats.cpu_usage_ns, stats.cpu_periods), (Some(7000), None));
        assert_eq!((stats.memory_usage_bytes, stats.memory_limit_bytes, stats.pids_current), (None, None, None));
        assert!(stats.cpu_pressure.is_none() && stats.io.is_empty());
    }

    #[test]
    fn the_working_set_leaves_inactive_pages_out() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        write("memory.current", "1000\n");
        write("memory.stat", "anon 300\nfile 500\ninactive_file 400\npgfault 9\npgmajfault 2\n");
        write("memory.events", "low 0\nhigh 0\nmax 4\noom 1\noom_kill 3\n");
        let stats = cgroup(5, &|name| std::fs::read_to_string(directory.path().join(name)).unwrap_or_default());
        assert_eq!((stats.memory_usage_bytes, stats.memory_working_set_bytes), (Some(1000), Some(600)));
        assert_eq!((stats.memory_limit_hits, stats.oom_kills), (Some(4), Some(3)));
        assert_eq!((stats.memory_page_faults, stats.memory_major_page_faults), (Some(9), Some(2)));
    }

    #[test]
    fn pressure_and_devices_are_read() {
        let text =
            "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        let found = pressure(text).unwrap();
        assert_eq!(
            (found.some.avg10, found.some.avg60, found.some.total_us, found.full.total_us),
            (1.5, 0.25, 1234, 5)
        );
        assert!(pressure("").is_none() && pressure("some nonsense\n").is_none());
        let io = devices("254:16 rbytes=4096 wbytes=8 rios=1 wios=2 dbytes=0 dios=0\nnonsense\n254:0 \n");
        assert_eq!(io.len(), 2);
        assert_eq!((io[0].major, io[0].minor, io[0].read_bytes, io[0].writes), (254, 16, 4096, 2));
    }

    #[test]
    fn the_interface_table_is_read() {
        let table = "Inter-|   Receive\n face |bytes packets errs\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
            \x20 eth0: 100 2 3 0 0 0 0 0 200 4 5 0 0 0 0 0\n  bad: 1\n";
        let found = interfaces(table);
        assert_eq!(found.len(), 1);
        let eth0 = &found[0];
        assert_eq!((eth0.name.as_str(), eth0.rx_bytes, eth0.rx_errors), ("eth0", 100, 3));
        assert_eq!((eth0.tx_bytes, eth0.tx_packets, eth0.tx_errors), (200, 4, 5));
    }
}
