//! Bytes through the network card, the sockets and the drive of a guest (vmm/tests/guest/bench.rs), and what they cost.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bulkhead_tests::wait;

use super::Setup;
use super::cgroup::Cgroup;
use super::comparison::{Row, Unit};
use super::failures::Failures;
use super::running::Running;

const GUEST: &str = "192.0.2.2";
const SOURCE_PORT: u16 = 7001;
const SINK_PORT: u16 = 7002;
const ECHO_PORT: u16 = 7003;
const DRIVE_PORT: u16 = 7004;
/// What does not come by then does not come.
const LIMIT: Duration = Duration::from_secs(60);
/// Of each stream.
const STREAM_MIB: usize = 32;
const ROUND_TRIPS: u32 = 200;
const DRIVE_REQUESTS: u32 = 48;
const RANDOM_REQUESTS: u32 = 300;
const MEBIBYTE: usize = 1 << 20;

const THROUGHPUT: &str = "at least 1 x QEMU";
const COST: &str = "at most 1 x QEMU";

trait Stream: Read + Write {}
impl Stream for TcpStream {}
impl Stream for UnixStream {}

/// The rows of one device.
struct Rows {
    to_guest: Row,
    to_guest_cost: Row,
    from_guest: Row,
    from_guest_cost: Row,
    latency: Row,
}

impl Rows {
    fn new(device: &str, [to, from, small]: [&str; 3]) -> Self {
        let rate = |what| Row::new(format!("{device}: {what}"), Unit::MebibytesPerSecond, THROUGHPUT);
        let cost = |what| Row::new(format!("{device}: {what}, processor time"), Unit::MicrosecondsPerMebibyte, COST);
        Self {
            to_guest: rate(to),
            to_guest_cost: cost(to),
            from_guest: rate(from),
            from_guest_cost: cost(from),
            latency: Row::new(format!("{device}: {small}"), Unit::Microseconds, COST),
        }
    }

    fn into_rows(self) -> [Row; 5] {
        [self.to_guest, self.to_guest_cost, self.from_guest, self.from_guest_cost, self.latency]
    }
}

/// Moves the same bytes `rounds` times with each monitor, in turns.
///
/// What a guest does not answer is among the failures then.
pub fn measure(setup: &Setup, rounds: usize, failures: &mut Failures) -> Vec<Row> {
    let streams = ["to the guest", "from the guest", "round trip of a byte"];
    let mut net = Rows::new("net", streams);
    let mut vsock = Rows::new("vsock", streams);
    let mut drive = Rows::new("drive", ["reads of 1 MiB", "writes of 1 MiB", "a random read of 4 KiB"]);
    let mut memory = Row::new("monitor's own memory after that", Unit::Mebibytes, "at most 5 MiB");
    for number in 1..=rounds {
        eprintln!("transfer: round {number} of {rounds}");
        for (column, kind) in &setup.kinds {
            let column = *column;
            let Some(running) =
                failures.attempt(column, "boot of the guest that serves", || Running::start(kind, &setup.guest()))
            else {
                continue;
            };
            let cgroup = &running.cgroup;
            failures.attempt(column, "net", || streams_of(&mut net, column, cgroup, tcp));
            if let Some(path) = &running.vsock {
                let connect = |port| connect_vsock(path, port);
                failures.attempt(column, "vsock", || streams_of(&mut vsock, column, cgroup, connect));
            }
            failures.attempt(column, "drive", || requests(&mut drive, column, cgroup));
            if let Some(bytes) = failures.attempt(column, "memory", || running.own_memory()) {
                memory.add(column, super::mebibytes(bytes));
            }
        }
    }
    let rows = [net, vsock, drive].into_iter().flat_map(Rows::into_rows);
    rows.chain([memory]).collect()
}

fn tcp(port: u16) -> Result<Box<dyn Stream>> {
    // The guest's card is up before its mark, but its first frame may meet a driver that has no buffers yet.
    let stream = wait::until_ok("a connection to the guest", LIMIT, || Ok(TcpStream::connect((GUEST, port))?))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(Box::new(stream))
}

fn connect_vsock(path: &Path, port: u16) -> Result<Box<dyn Stream>> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(LIMIT))?;
    writeln!(stream, "CONNECT {port}")?;
    let (mut line, mut byte) = (Vec::new(), [0]);
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
        line.extend(byte);
    }
    ensure!(line.starts_with(b"OK "), "the guest's port {port}: {}", String::from_utf8_lossy(&line));
    Ok(Box::new(stream))
}

/// The time that `work` takes, and the processor time of the monitor and its guest in it.
fn measured<T>(cgroup: &Cgroup, work: impl FnOnce() -> Result<T>) -> Result<(T, Duration, Duration)> {
    let (before, started) = (cgroup.used()?, Instant::now());
    let value = work()?;
    let took = started.elapsed();
    Ok((value, took, cgroup.used()?.saturating_sub(before)))
}

#[allow(clippy::cast_precision_loss)] // some mebibytes
fn add(rate: &mut Row, cost: &mut Row, column: usize, mebibytes: usize, took: Duration, used: Duration) {
    rate.add(column, mebibytes as f64 / took.as_secs_f64());
    cost.add(column, used.as_secs_f64() * 1e6 / mebibytes as f64);
}

fn streams_of(
    rows: &mut Rows,
    column: usize,
    cgroup: &Cgroup,
    connect: impl Fn(u16) -> Result<Box<dyn Stream>>,
) -> Result<()> {
    let bytes = STREAM_MIB * MEBIBYTE;
    let count = (bytes as u64).to_le_bytes();
    let mut buffer = vec![0x5a; 256 << 10];

    let mut sink = connect(SINK_PORT)?;
    let ((), took, used) = measured(cgroup, || {
        sink.write_all(&count)?;
        for _ in 0..bytes / buffer.len() {
            sink.write_all(&buffer)?;
        }
        Ok(sink.read_exact(&mut [0])?)
    })?;
    add(&mut rows.to_guest, &mut rows.to_guest_cost, column, STREAM_MIB, took, used);

    let mut source = connect(SOURCE_PORT)?;
    let ((), took, used) = measured(cgroup, || {
        source.write_all(&count)?;
        let mut left = bytes;
        while left > 0 {
            let got = source.read(&mut buffer)?;
            ensure!(got > 0, "the stream ended {left} bytes early");
            left -= got.min(left);
        }
        Ok(())
    })?;
    add(&mut rows.from_guest, &mut rows.from_guest_cost, column, STREAM_MIB, took, used);

    let mut echo = connect(ECHO_PORT)?;
    let ((), took, _) = measured(cgroup, || {
        for _ in 0..ROUND_TRIPS {
            echo.write_all(&[7])?;
            echo.read_exact(&mut [0])?;
        }
        Ok(())
    })?;
    rows.latency.add_time(column, took / ROUND_TRIPS);
    Ok(())
}

fn requests(rows: &mut Rows, column: usize, cgroup: &Cgroup) -> Result<()> {
    let mut control = BufReader::new(tcp(DRIVE_PORT)?);
    let mut order = |verb: &str, bytes: usize, count: u32| {
        measured(cgroup, || {
            control.get_mut().write_all(format!("{verb} {bytes} {count}\n").as_bytes())?;
            let mut answer = String::new();
            control.read_line(&mut answer)?;
            let nanoseconds = answer.trim().parse().with_context(|| format!("the guest's drive: {answer}"))?;
            Ok(Duration::from_nanos(nanoseconds))
        })
    };
    let mebibytes = DRIVE_REQUESTS as usize;
    let (took, _, used) = order("read", MEBIBYTE, DRIVE_REQUESTS)?;
    add(&mut rows.to_guest, &mut rows.to_guest_cost, column, mebibytes, took, used);
    let (took, _, used) = order("write", MEBIBYTE, DRIVE_REQUESTS)?;
    add(&mut rows.from_guest, &mut rows.from_guest_cost, column, mebibytes, took, used);
    let (took, ..) = order("random", 4096, RANDOM_REQUESTS)?;
    rows.latency.add_time(column, took / RANDOM_REQUESTS);
    Ok(())
}
