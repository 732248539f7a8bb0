//! Boots the guest kernel on KVM with a small first process, and ends it in every way there is.
//!
//! Skipped, with the reason, where KVM cannot run a stock guest: tests/lab is a machine where it can.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use bulkhead_vmm::boot::{self, Entry, Payload};
use bulkhead_vmm::devices::block::{BlockConfig, BlockDevice, FlushPolicy, RawFile, VirtioBlock};
use bulkhead_vmm::devices::console::VirtioConsole;
use bulkhead_vmm::devices::virtio::{ActivateError, Activation, VirtioDevice};
use bulkhead_vmm::kvm::exits::ExitKind;
use bulkhead_vmm::kvm::machine::Position;
use bulkhead_vmm::kvm::{Builder, End, Machine};
use bulkhead_vmm::monitor::microvm::kernel_arguments;
use bulkhead_vmm::state::{DeviceState, Snapshot, SnapshotError};
use tokio::sync::mpsc::UnboundedReceiver;
use vm_memory::{Bytes, GuestAddress};

/// Emulated hosts are slow.
const LIMIT: Duration = Duration::from_secs(120);

/// What the guest prints.
#[derive(Debug, Clone, Default)]
struct Words(Arc<(Mutex<String>, Condvar)>);

impl Write for Words {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.0.lock().unwrap().push_str(&String::from_utf8_lossy(bytes));
        self.0.1.notify_all();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Words {
    fn text(&self) -> String {
        self.0.0.lock().unwrap().clone()
    }

    /// Waits until the text fulfils the condition.
    fn wait(&self, what: &str, is_met: impl Fn(&str) -> bool) -> Result<(), String> {
        let text = self.0.0.lock().unwrap();
        let (text, waited) = self.0.1.wait_timeout_while(text, LIMIT, |text| !is_met(text)).unwrap();
        if waited.timed_out() { Err(format!("no {what}; the guest said:\n{text}")) } else { Ok(()) }
    }
}

struct Guest {
    machine: Machine,
    ends: UnboundedReceiver<End>,
    words: Words,
}

impl Guest {
    fn end(&mut self) -> End {
        let started = Instant::now();
        while started.elapsed() < LIMIT {
            match self.ends.try_recv() {
                Ok(end) => return end,
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        panic!("no end; {:#?}\nthe guest said:\n{}", self.machine.look(), self.words.text());
    }
}

fn boot(vcpus: u8, arguments: &str, drive: Option<File>) -> Guest {
    let words = Words::default();
    let mut builder = Builder::new(vcpus, 256).unwrap();
    let mut devices: Vec<Box<dyn Snapshot>> = vec![Box::new(VirtioConsole::new(Box::new(words.clone())))];
    if let Some(file) = drive {
        let backend = Arc::new(RawFile::new(file, FlushPolicy::Ephemeral).unwrap());
        let device = Arc::new(BlockDevice::new(backend, BlockConfig { serial: "test".into(), queues: 1 }));
        devices.push(Box::new(VirtioBlock::new("drive", device)));
    }
    let named: Vec<String> = devices.into_iter().map(|device| builder.add_device(device).unwrap()).collect();
    let command_line = kernel_arguments(vcpus, &named, arguments);
    let (kernel, initramfs) = (File::open(kernel().unwrap()).unwrap(), initramfs());
    let memory_bytes = builder.memory_bytes();
    let payload =
        Payload { kernel: &kernel, initramfs: Some(initramfs), command_line: &command_line, vcpus, memory_bytes };
    let entry = boot::load(builder.ram(), &payload).unwrap();
    let (machine, ends) = builder.start(entry, Box::new(words.clone())).unwrap();
    machine.resume();
    Guest { machine, ends, words }
}

/// Whether guests run here at all; tells why not.
fn can_run() -> bool {
    static VERDICT: OnceLock<Result<(), String>> = OnceLock::new();
    let verdict = VERDICT.get_or_init(|| {
        initramfs();
        kernel().ok_or("there is no guest kernel in BULKHEAD_KERNEL or the cache; make guest builds one")?;
        match Builder::new(1, 64) {
            Ok(builder) => drop(builder),
            Err(error) => return Err(error.to_string()),
        }
        let mut guest = boot(1, "end=power_off", None);
        match guest.end() {
            End::Failed(why) => Err(format!("KVM cannot run a stock guest here: {why}")),
            _ => Ok(()),
        }
    });
    if let Err(why) = verdict {
        eprintln!("skipped: kvm_boot: {why}");
    }
    verdict.is_ok()
}

fn kernel() -> Option<PathBuf> {
    let named = std::env::var_os("BULKHEAD_KERNEL").map(PathBuf::from);
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?.join("guest/vmlinux");
    named.into_iter().chain([built]).find(|path| path.exists())
}

/// With the first process; built once for each version of its source.
fn initramfs() -> &'static File {
    static FILE: OnceLock<File> = OnceLock::new();
    FILE.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/kvm.rs");
        let init = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kvm_boot_init");
        let time = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
        if time(&init) < time(&source) {
            let mut rustc = Command::new("rustc");
            rustc.args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-o"]).args([&init, &source]);
            assert!(rustc.status().unwrap().success(), "the test guest's init does not build");
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&archive(&std::fs::read(&init).unwrap())).unwrap();
        file
    })
}

/// A newc archive of /init, three empty directories and the console.
fn archive(init: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut entry = |name: &str, mode: u32, device: (u32, u32), content: &[u8]| {
        let fields = [1, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        bytes.extend(b"070701");
        fields.iter().for_each(|field| bytes.extend(format!("{field:08x}").into_bytes()));
        for part in [[name.as_bytes(), b"\0"].concat().as_slice(), content] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    };
    for name in ["dev", "proc", "sys"] {
        entry(name, 0o40755, (0, 0), b"");
    }
    entry("dev/console", 0o20600, (5, 1), b"");
    entry("init", 0o100755, (0, 0), init);
    entry("TRAILER!!!", 0, (0, 0), b"");
    bytes
}

/// Apart, so that it can be done where that is fast.
#[test]
fn the_guest_builds() {
    assert!(initramfs().metadata().unwrap().len() > 1000);
}

/// One after the other: machines of an emulated host are slow enough alone.
#[test]
fn a_stock_kernel_boots_runs_and_ends() {
    if !can_run() {
        return;
    }
    processors_are_found();
    ends_are_told_apart();
    a_paused_guest_does_nothing();
    a_drive_is_read();
}

fn processors_are_found() {
    let mut guest = boot(2, "end=power_off", None);
    assert_eq!(guest.end(), End::PowerOff);
    let text = guest.words.text();
    assert!(text.contains("cpus 0-1 clock kvm-clock"), "{text}");
    for position in guest.machine.positions() {
        eprintln!("processor {}: {:?}", position.index, position.exits);
    }
}

fn ends_are_told_apart() {
    for (arguments, expected, said) in [
        ("end=reboot", End::Reset, "cpus 0"),
        ("end=triple_fault reboot=t", End::TripleFault, "cpus 0"),
        ("end=panic", End::Reset, "Kernel panic - not syncing: sysrq triggered crash"),
        ("end=exit", End::Reset, "Kernel panic - not syncing: Attempted to kill init!"),
        ("rdinit=/absent panic_on_oops=1", End::Reset, "Kernel panic - not syncing: "),
    ] {
        let mut guest = boot(1, arguments, None);
        let end = guest.end();
        let text = guest.words.text();
        assert_eq!(end, expected, "{arguments}:\n{text}");
        assert!(text.contains(said), "{arguments}:\n{text}");
    }
}

fn a_paused_guest_does_nothing() {
    let guest = boot(2, "", None);
    guest.words.wait("ticks", |text| text.contains("tick 3")).unwrap();
    assert!(guest.machine.pause());
    // What was printed before is on its way: it stops coming.
    let settled = || {
        let text = guest.words.text();
        std::thread::sleep(Duration::from_millis(200));
        text == guest.words.text()
    };
    let started = Instant::now();
    while !settled() {
        assert!(started.elapsed() < LIMIT, "a paused guest goes on");
    }
    let before = guest.words.text().lines().count();
    assert!(guest.machine.look().iter().all(|position| position.instruction != 0));
    assert!(!guest.machine.is_running());
    guest.machine.resume();
    guest.words.wait("more ticks", |text| text.lines().count() > before + 3).unwrap();
}

/// A load across two devices' pages, which KVM reports in two pieces, with a pause between them.
#[test]
fn a_pause_loses_no_part_of_an_access() {
    const CODE: u64 = 1 << 20;
    const RESULT: u64 = 2 << 20;
    let mut builder = match Builder::new(1, 64) {
        Ok(builder) => builder,
        Err(error) => return eprintln!("skipped: kvm_boot: {error}"),
    };
    let (loads, load) = mpsc::channel();
    let (answer, answers) = mpsc::channel();
    for device in [Stub { loads, answers: Mutex::new(answers) }, Stub::default()] {
        builder.add_device(Box::new(device)).unwrap();
    }
    #[rustfmt::skip]
    let code = [
        0xa1, 0xfe, 0x0f, 0x00, 0xd0, // mov eax, [0xd0000ffe]
        0xa3, 0x00, 0x00, 0x20, 0x00, // mov [RESULT], eax
        0x66, 0xba, 0x04, 0x06, // mov dx, 0x604
        0x66, 0xb8, 0x00, 0x20, // mov ax, 0x2000
        0x66, 0xef, // out dx, ax
        0xf4_u8, // hlt
    ];
    builder.ram().write_slice(&code, GuestAddress(CODE)).unwrap();
    let ram = builder.ram().clone();
    let (machine, ends) = builder.start(Entry { address: CODE, start_info: 0 }, Box::new(std::io::sink())).unwrap();
    let mut guest = Guest { machine, ends, words: Words::default() };
    guest.machine.resume();
    let place = load.recv_timeout(LIMIT).unwrap();
    assert_eq!(place, (0xefe, 2));
    std::thread::scope(|scope| {
        let pause = scope.spawn(|| guest.machine.pause());
        while guest.machine.is_running() {
            std::thread::yield_now();
        }
        answer.send(vec![0x11, 0x22]).unwrap();
        assert!(pause.join().unwrap());
    });
    let loads = |position: &Position| position.exits.iter().find(|(kind, _)| *kind == ExitKind::MmioRead).unwrap().1;
    assert_eq!(guest.machine.positions().iter().map(loads).sum::<u64>(), 2);
    guest.machine.resume();
    assert_eq!(guest.end(), End::PowerOff);
    // The second piece is a register that only whole words are read from: zeros, not what the first one left behind.
    assert_eq!(ram.read_obj::<u32>(GuestAddress(RESULT)).unwrap(), 0x2211);
}

/// Tells of loads from its configuration space, and answers when the test says what.
#[derive(Debug)]
struct Stub {
    loads: mpsc::Sender<(usize, usize)>,
    answers: Mutex<mpsc::Receiver<Vec<u8>>>,
}

impl Default for Stub {
    fn default() -> Self {
        Self { loads: mpsc::channel().0, answers: Mutex::new(mpsc::channel().1) }
    }
}

impl VirtioDevice for Stub {
    fn device_type(&self) -> u32 {
        4
    }
    fn queue_sizes(&self) -> Vec<u16> {
        Vec::new()
    }
    fn features(&self) -> u64 {
        1 << 32
    }
    fn read_config(&self, offset: usize, len: usize) -> Vec<u8> {
        self.loads.send((offset, len)).unwrap();
        self.answers.lock().unwrap().recv_timeout(LIMIT).unwrap()
    }
    fn write_config(&mut self, _offset: usize, _bytes: &[u8]) {}
    fn activate(&mut self, _activation: Activation) -> Result<(), ActivateError> {
        Ok(())
    }
    fn reset(&mut self) {}
}

impl Snapshot for Stub {
    fn suspend(&mut self) -> Result<DeviceState, SnapshotError> {
        Err(SnapshotError::Lost("stub"))
    }
    fn restore(&mut self, _state: &DeviceState) -> Result<(), SnapshotError> {
        Err(SnapshotError::Lost("stub"))
    }
}

fn a_drive_is_read() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[3; 1 << 20]).unwrap();
    let mut guest = boot(1, "end=drive", Some(file));
    assert_eq!(guest.end(), End::PowerOff);
    let text = guest.words.text();
    assert!(text.contains(&format!("drive {} {}", 1 << 20, 3 << 20)), "{text}");
}
